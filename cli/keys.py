"""The secrets of an installation that are made once: keys, tokens, passwords, each in a file of its own."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from foundation.errors import Code, Problem
from foundation.process.private import write_private

SERVICE_ROLES = {
    "gateway": ["service", "ingest"],
    "registry": ["service"],
    "mapper": ["service"],
}
"""The processes that ask the others for something, and what they may ask for."""


class Keys:
    """A directory that only its owner may enter; what is in it is made once and kept."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.admin_token = directory / "admin-token"
        self.root_key = directory / "root-key"
        self.start_tokens = directory / "start-tokens.json"

    def prepare(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def once(self, path: Path, make: Callable[[], str]) -> str:
        """The text kept in a file, made at the first asking and for the owner's eyes only."""
        try:
            text = path.read_text("utf-8").strip()
        except FileNotFoundError:
            text = make()
            write_private(path, text + "\n")
        except UnicodeDecodeError:
            raise _broken(path) from None
        if not text:
            raise _broken(path)
        return text

    def passwords(self, make: Callable[[], Mapping[str, str]]) -> dict[str, str]:
        """A password for each database role, the ones a newer version adds included."""
        path = self.directory / "database-roles.json"
        try:
            kept = msgspec.json.decode(self.once(path, lambda: "{}"), type=dict[str, str])
        except msgspec.DecodeError:
            raise _broken(path) from None
        wanted = dict(make()) | kept
        if wanted != kept:
            write_private(path, json.dumps(wanted, indent=1) + "\n")
        return wanted

    def installation_id(self) -> str:
        """Whose the database roles are, where several installations share one PostgreSQL."""
        return self.once(self.directory / "installation-id", lambda: secrets.token_hex(8))

    def token_file(self, service: str) -> Path:
        """What a service proves itself with to the others."""
        return self.directory / f"{service}-token"

    def ensure_tokens(self) -> Path:
        """The administrator's token and one for each process; answers the file that names them by hash."""
        holders = {"users/admin": (self.admin_token, "user", ["platform-admin"])}
        for service, roles in SERVICE_ROLES.items():
            holders[f"services/{service}"] = (self.token_file(service), "service", roles)
        entries = []
        for name, (path, kind, roles) in holders.items():
            token = self.once(path, lambda: f"tl_{secrets.token_urlsafe(32)}")
            digest = hashlib.sha256(token.encode()).hexdigest()
            entries.append({"sha256": digest, "name": name, "kind": kind, "roles": roles})
        write_private(self.start_tokens, json.dumps(entries, indent=1) + "\n")
        return self.start_tokens


def _broken(path: Path) -> Problem:
    return unusable(f"{path} is broken: restore it, or remove it to have a new one made.")


def unusable(sentence: str) -> Problem:
    return Problem(Code.INSTALLATION_UNUSABLE, sentence=sentence)
