"""Resource names: `tenants/acme/connections/github-main`, read and written in one place."""

from __future__ import annotations

import re

from foundation.errors import Code, Problem

ID = re.compile(r"[a-z][a-z0-9-]{0,61}[a-z0-9]|[a-z]")
"""What a person may choose as the last part of a name."""


def tenant_of(name: str) -> str:
    """`acme` from `tenants/acme` or anything below it; empty from everything else."""
    collection, _, rest = name.partition("/")
    return rest.partition("/")[0] if collection == "tenants" else ""


def parse(pattern: str, name: str, field: str) -> tuple[str, ...]:
    """The variable parts of a name: `parse("tenants/*/connections/*", …) == ("acme", "github-main")`.

    A name of another shape is the problem INVALID_ARGUMENT for that field.
    """
    wanted, given = pattern.split("/"), name.split("/")
    fits = (
        "\0" not in name
        and len(wanted) == len(given)
        and all(want == part or (want == "*" and part) for want, part in zip(wanted, given, strict=True))
    )
    if not fits:
        shape = re.sub(r"\*", "…", pattern)
        raise Problem(Code.INVALID_ARGUMENT, field=field, why=f"{name[:100]!r} is not of the form {shape}")
    return tuple(part for want, part in zip(wanted, given, strict=True) if want == "*")


def new_id(text: str, field: str) -> str:
    """An id that somebody chose, or the problem that says what one looks like."""
    if not ID.fullmatch(text):
        why = f"{text[:100]!r} is not lower-case letters, digits and dashes, beginning with a letter"
        raise Problem(Code.INVALID_ARGUMENT, field=field, why=why)
    return text
