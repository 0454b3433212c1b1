"""The tokens an installation is born with: the administrator's, and one for each process."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec

from foundation.errors import Code, Problem
from foundation.identity import Kind, Role
from foundation.store.unit_of_work import Store
from services.credentials.identities.store import tokens as queries
from services.credentials.identities.store.tokens import BORN, PLATFORM, TokenRow


class StartToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sha256: str
    name: str
    kind: str
    roles: list[str]


async def admit_start_tokens(store: Store, path: str) -> None:
    """Make the tokens valid that the file names by their hashes."""
    try:
        rows = _read(Path(path))
    except (OSError, ValueError, msgspec.ValidationError) as error:
        why = f"{path}: {error}"
        raise Problem(Code.SETTINGS_INVALID, where="`start_tokens`", why=why) from error
    async with store.unit_of_work(tenants=()) as work:
        for row in rows:
            await queries.put_token(work, row)


def _read(path: Path) -> list[TokenRow]:
    raw: Any = json.loads(path.read_text())
    return [_row(token) for token in msgspec.convert(raw, list[StartToken])]


def _row(token: StartToken) -> TokenRow:
    sha256 = bytes.fromhex(token.sha256)
    if len(sha256) != hashlib.sha256().digest_size:
        raise ValueError(f"the hash for {token.name} is not a SHA-256")
    name = token.name.replace("/", "-")
    return TokenRow(
        sha256=sha256,
        id=f"{BORN}{name}-{token.sha256[:12]}",
        owner=PLATFORM,
        title=token.name,
        principal=token.name,
        kind=Kind(token.kind).value,
        roles=[Role(role).value for role in token.roles],
        hint="",
    )
