from __future__ import annotations

import pytest

from foundation.errors import Problem
from foundation.identity.names import new_id, parse, tenant_of


@pytest.mark.parametrize(
    ("name", "tenant"),
    [
        ("tenants/acme", "acme"),
        ("tenants/acme/connections/main", "acme"),
        ("", ""),
        ("acme", ""),
        ("tenants/", ""),
        ("/tenants/acme", ""),
        ("tenant/acme", ""),
    ],
)
def test_a_name_tells_its_tenant(name: str, tenant: str) -> None:
    assert tenant_of(name) == tenant


def test_a_name_gives_its_parts() -> None:
    assert parse("tenants/*/connections/*", "tenants/acme/connections/main", "name") == ("acme", "main")


@pytest.mark.parametrize(
    "name", ["", "tenants/acme", "tenants/acme/connections/", "tenants/acme/credentials/x", "a/b/c/d/e"]
)
def test_a_name_of_another_shape_is_refused(name: str) -> None:
    with pytest.raises(
        Problem, match=r"`name` is not acceptable: .* is not of the form tenants/…/connections/…"
    ):
        parse("tenants/*/connections/*", name, "name")


@pytest.mark.parametrize("text", ["a", "acme", "a-b-1", "x" * 63])
def test_what_an_id_may_be(text: str) -> None:
    assert new_id(text, "tenant_id") == text


@pytest.mark.parametrize("text", ["", "-a", "a-", "A", "1a", "a_b", "a/b", "ä", "x" * 64, "a\n"])
def test_what_an_id_may_not_be(text: str) -> None:
    with pytest.raises(Problem, match="`tenant_id` is not acceptable"):
        new_id(text, "tenant_id")
