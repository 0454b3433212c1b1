"""An update names what it was made from, so that nobody's change is lost: said the same way of everything."""

from __future__ import annotations

from typing import Protocol

from foundation.errors import Code, Problem


class Tagged(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def etag(self) -> str: ...


def demand_named(etag: str) -> None:
    if not etag:
        why = "it is empty: name the one that you last read, so that nobody's change is lost"
        raise Problem(Code.INVALID_ARGUMENT, field="etag", why=why)


def demand_same(present: Tagged, etag: str) -> None:
    """It, if nobody changed it since that etag, which must be named."""
    demand_named(etag)
    if present.etag != etag:
        raise changed_since(present)


def changed_since(present: Tagged) -> Problem:
    return Problem(Code.CONFLICT, why=f"{present.name} is not as your etag has it any more")
