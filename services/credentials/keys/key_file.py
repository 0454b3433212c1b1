"""A root key in a file that nobody else may read."""

from __future__ import annotations

import base64
import binascii
import os
import stat
from pathlib import Path

from foundation.errors import Code, Problem
from services.credentials.keys.envelope import KEY_BYTES, Key, seal, unseal


class _Unusable(Exception):  # noqa: N818 - says what is the case
    pass


class KeyFile:
    """The root key of a file of 44 base64 characters; made where there is none."""

    keeper = "file"

    def __init__(self, path: Path, setting: str = "root_key_file") -> None:
        try:
            raw = _read(path)
        except _Unusable as why:
            raise Problem(Code.SETTINGS_INVALID, where=f"`{setting}`", why=why) from None
        self._key = Key(raw, Key(raw).fingerprint)

    @property
    def fingerprint(self) -> str:
        return self._key.name.hex()

    async def prepare(self) -> None:
        """It is in memory already."""

    async def seal(self, plain: bytes, where: bytes) -> bytes:
        return seal(self._key, plain, where)

    async def unseal(self, sealed: bytes, where: bytes) -> bytes:
        return unseal(self._key, sealed, where)


def _read(path: Path) -> bytes:
    try:
        if not path.exists():
            _make(path)
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise _Unusable(f"{path} can be read by others; `chmod 600` it, and think of who has read it")
        raw = base64.b64decode(path.read_text().strip(), validate=True)
    except OSError as error:
        raise _Unusable(f"{path}: {error.strerror}") from error
    except (binascii.Error, UnicodeDecodeError):
        raise _Unusable(f"{path} does not hold a key in base64") from None
    if len(raw) != KEY_BYTES:
        raise _Unusable(f"{path} holds {len(raw)} bytes, a key has {KEY_BYTES}")
    return raw


def _make(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(base64.b64encode(os.urandom(KEY_BYTES)).decode() + "\n")
        file.flush()
        os.fsync(file.fileno())
