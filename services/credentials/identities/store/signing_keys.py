"""Queries about the platform's signing keys. Each takes the transaction it runs in; none begins or ends one."""

# ruff: noqa: S608  only the names of our own columns are put together

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from services.credentials.rows import columns, every, parameters, run


@dataclass(frozen=True, slots=True)
class SigningKeyRow:
    kid: str
    public: bytes
    sealed_private: bytes
    signs_at: datetime
    """It is listed before it signs."""
    sealed_other: bytes | None = None
    """The same under another root key: the staged or the previous one."""


async def signing_keys(work: AsyncConnection) -> list[SigningKeyRow]:
    """The one that signs last first."""
    return await every(
        work,
        SigningKeyRow,
        f"select {columns(SigningKeyRow)} from signing_keys order by signs_at desc, kid",
    )


async def add_signing_key(work: AsyncConnection, key: SigningKeyRow) -> None:
    await run(
        work,
        """insert into signing_keys (kid, public, sealed_private, sealed_other, signs_at)
           values (:kid, :public, :sealed_private, :sealed_other, :signs_at)""",
        **parameters(key),
    )


async def retire_signing_key(work: AsyncConnection, kid: str) -> None:
    """Its secret part is gone for good; what it has signed besides tokens can still be verified."""
    await run(
        work,
        """with gone as (delete from signing_keys where kid = :kid returning kid, public)
           insert into retired_signing_keys (kid, public) select kid, public from gone""",
        kid=kid,
    )


@dataclass(frozen=True, slots=True)
class RetiredKeyRow:
    kid: str
    public: bytes


async def retired_signing_keys(work: AsyncConnection) -> list[RetiredKeyRow]:
    return await every(work, RetiredKeyRow, "select kid, public from retired_signing_keys")


async def lock_signing_keys(work: AsyncConnection) -> None:
    """Of several that would make or remove one, each sees what the others did."""
    await run(work, "select pg_advisory_xact_lock(hashtext('tieline'), hashtext('signing keys'))")
