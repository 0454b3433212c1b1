"""Which root keys this process holds: what the settings say, opened."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

from foundation.errors import Code, Problem
from services.credentials.keys.aws_kms import aws_kms
from services.credentials.keys.key_file import KeyFile
from services.credentials.keys.root import RootKey
from services.credentials.keys.root_keys import RootKeys
from services.credentials.settings import CredentialsSettings


async def open_root_keys(settings: CredentialsSettings, stack: AsyncExitStack) -> RootKeys:
    root = await _open(
        "root_key", settings.root_key_file, settings.root_key_kms, settings.aws_endpoint_url, stack
    )
    if root is None:
        why = "one of them must be set"
        raise Problem(Code.SETTINGS_INVALID, where="`root_key_file`, `root_key_kms`", why=why)
    staged = await _open(
        "root_key_next",
        settings.root_key_next_file,
        settings.root_key_next_kms,
        settings.aws_endpoint_url,
        stack,
    )
    return RootKeys(root, staged)


async def _open(
    what: str, file: str | None, kms: str | None, endpoint_url: str | None, stack: AsyncExitStack
) -> RootKey | None:
    if file and kms:
        why = "both are set, and a key has one keeper"
        raise Problem(Code.SETTINGS_INVALID, where=f"`{what}_file`, `{what}_kms`", why=why)
    if kms:
        return await stack.enter_async_context(aws_kms(kms, endpoint_url, f"{what}_kms"))
    return KeyFile(Path(file), f"{what}_file") if file else None
