"""Stored rows that somebody with all rights in the database changed, cut or moved: none of them opens."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.credentials.keys.vault import Holding, place_for_platform, place_of_tenant_key
from tests.services.credentials.conftest import Client, Running, replica
from tests.services.credentials.test_service import (
    SECRET,
    lease,
    make_credential,
    make_grant,
    make_tenant,
)
from tieline.common.v1.failure_pb2 import FAILURE_KIND_INTERNAL
from tieline.credentials.v1.credentials_pb2 import AddCredentialVersionRequest
from tieline.credentials.v1.secrets_pb2 import SecretValue, WebhookSecret

Row = tuple[bytes, bytes, int]
"""Wrapped key, sealed value, version of the tenant's key."""
OURS = ("acme", "hook", 2)
EXAMPLES = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
IDS = st.text("ab1-", max_size=4)


@dataclass
class Stored:
    running: Running
    rows: dict[tuple[str, str, int], Row] = field(default_factory=dict)

    async def put(self, row: Row) -> None:
        """In the place of the version that is in use."""
        await self.running.sql(
            """update credentials.credential_versions set wrapped_key = $1, sealed = $2, key_version = $3
               where tenant = 'acme' and credential = 'hook' and version = 2""",
            *row,
        )


@pytest.fixture
async def stored(running: Running, admin: Client) -> Stored:
    for tenant in ("acme", "other"):
        await make_tenant(admin, tenant)
        await make_credential(admin, tenant, secret="the first secret, of another version")
    await make_credential(admin, credential="second", secret="a secret of another credential")
    await make_grant(admin)
    new = SecretValue(webhook_secret=WebhookSecret(secret=SECRET))
    await admin.credentials.AddCredentialVersion(
        AddCredentialVersionRequest(
            name="tenants/acme/credentials/hook", value=new, overlap=Duration(seconds=36_000)
        )
    )
    found = await running.sql(
        "select tenant, credential, version, wrapped_key, sealed, key_version from credentials.credential_versions"
    )
    return Stored(running, {tuple(row)[:3]: tuple(row)[3:] for row in found})


@EXAMPLES
@given(data=st.data())
async def test_a_row_that_was_changed_cut_or_moved_does_not_open(
    stored: Stored, gateway: Client, data: st.DataObject
) -> None:
    """Feature: integrations, Property 3: any bit flip, truncation or swap of stored rows never decrypts."""
    own = stored.rows[OURS]
    damage = data.draw(st.sampled_from(["moved", "half moved", "flipped", "cut"]))
    which = data.draw(st.integers(0, 1))
    parts = [own[0], own[1]]
    other = stored.rows[data.draw(st.sampled_from(sorted(stored.rows.keys() - {OURS})))]
    if damage == "moved":
        parts = [other[0], other[1]]
    elif damage == "half moved":
        parts[which] = (other[0], other[1])[which]
    elif damage == "flipped":
        at = data.draw(st.integers(0, len(parts[which]) * 8 - 1))
        changed = bytearray(parts[which])
        changed[at // 8] ^= 1 << at % 8
        parts[which] = bytes(changed)
    else:
        parts[which] = parts[which][: data.draw(st.integers(0, len(parts[which]) - 1))]
    await stored.put((parts[0], parts[1], own[2]))
    answer = await lease(gateway)
    assert answer.failure.kind == FAILURE_KIND_INTERNAL
    assert not answer.secret.fields
    await stored.put(own)
    assert (await lease(gateway)).secret.fields["secret"] == SECRET.encode()


async def test_a_tenants_key_does_not_open_as_another_tenants(stored: Stored) -> None:
    """With the key of the other tenant in its place, and with a row of the other tenant under it."""
    await stored.running.sql(
        """update credentials.tenant_keys k set sealed = o.sealed from credentials.tenant_keys o
           where k.tenant = 'acme' and o.tenant = 'other'"""
    )
    await stored.put(stored.rows["other", "hook", 1])
    async with replica(stored.running) as second:  # it remembers no key
        answer = await lease(await second.as_("tl_gateway"))
    assert answer.failure.kind == FAILURE_KIND_INTERNAL
    assert not answer.secret.fields


@given(st.tuples(IDS, IDS, st.integers(0, 99)), st.tuples(IDS, IDS, st.integers(0, 99)))
def test_every_secret_has_a_place_of_its_own(one: tuple[str, str, int], other: tuple[str, str, int]) -> None:
    """Tenant, credential and version: each of them tells two places apart."""
    assert (Holding(*one).where == Holding(*other).where) is (one == other)
    assert (place_of_tenant_key(one[0], one[2]) == place_of_tenant_key(other[0], other[2])) is (
        (one[0], one[2]) == (other[0], other[2])
    )
    assert place_for_platform(one[0]) not in (Holding(*other).where, place_of_tenant_key(other[0], other[2]))


@pytest.mark.parametrize(
    "other",
    [("other", "hook", 1), ("acme", "second", 1), ("acme", "hook", 2)],
    ids=lambda row: "-".join(map(str, row)),
)
def test_no_part_of_a_place_is_left_out(other: tuple[str, str, int]) -> None:
    assert Holding(*other).where != Holding("acme", "hook", 1).where
    assert place_of_tenant_key("acme", 1) not in (
        place_of_tenant_key("other", 1),
        place_of_tenant_key("acme", 2),
    )
