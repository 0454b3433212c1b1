"""What every update asks: which fields, and made from what."""

from __future__ import annotations

from collections.abc import Collection

from google.protobuf.field_mask_pb2 import FieldMask

from foundation.errors import Code, Problem


def masked(mask: FieldMask, allowed: Collection[str]) -> frozenset[str]:
    """The fields to change; none, or one that may not be changed, is refused."""
    paths = frozenset(mask.paths)
    refused = sorted(paths.difference(allowed))
    if refused or not paths:
        what = f"{', '.join(refused)} may not be changed" if refused else "it names no field"
        why = f"{what}; it takes {', '.join(sorted(allowed))}"
        raise Problem(Code.INVALID_ARGUMENT, field="update_mask", why=why)
    return paths


def made_from(etag: str, present: str, field: str) -> None:
    """Return if the change was made from what is there now."""
    if not etag:
        raise Problem(Code.INVALID_ARGUMENT, field=field, why="it must be the one last read")
    if etag != present:
        raise Problem(Code.CONFLICT, why=f"`{field}` is no longer the present one")
