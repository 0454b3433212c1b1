"""A replica: one life of one registry process."""

from __future__ import annotations

import secrets


def new_replica() -> str:
    """An id of its own for each start: what a dead one left is never mistaken for ours."""
    return f"r{secrets.token_hex(4)}"
