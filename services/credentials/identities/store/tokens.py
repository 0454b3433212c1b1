"""Queries about API tokens. Each takes the transaction it runs in; none begins or ends one."""

# ruff: noqa: S608  only the names of our own columns are put together

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.credentials.rows import columns, every, one, run

PLATFORM = "platform"
"""The owner of tokens that are no tenant's."""

BORN = "start-"
"""What the ids of tokens begin with that an installation was born with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRow:
    sha256: bytes
    id: str
    owner: str
    title: str
    principal: str
    kind: str
    roles: Sequence[str]
    hint: str
    user_id: str | None = None
    """The user it stands for, who may be disabled or removed; None: nobody we keep."""
    created_at: datetime | None = None
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None

    @property
    def name(self) -> str:
        return f"apiTokens/{self.id}" if self.owner == PLATFORM else f"{self.owner}/apiTokens/{self.id}"


async def put_token(work: AsyncConnection, token: TokenRow) -> None:
    """Add one; the same token again (one that a process was started with) has its roles made as given."""
    await run(
        work,
        """
            insert into api_tokens (sha256, id, owner, title, principal, kind, roles, hint, user_id, expires_at)
            values (:sha256, :id, :owner, :title, :principal, :kind, :roles, :hint, :user_id, :expires_at)
            on conflict (sha256) do update
            set principal = excluded.principal, kind = excluded.kind, roles = excluded.roles
        """,
        **(asdict(token) | {"roles": list(token.roles)}),
    )


async def token_by_hash(work: AsyncConnection, sha256: bytes) -> TokenRow | None:
    return await one(
        work, TokenRow, f"select {columns(TokenRow)} from api_tokens where sha256 = :sha256", sha256=sha256
    )


async def token(work: AsyncConnection, owner: str, token_id: str) -> TokenRow | None:
    return await one(
        work,
        TokenRow,
        f"select {columns(TokenRow)} from api_tokens where owner = :owner and id = :id",
        owner=owner,
        id=token_id,
    )


async def tokens(work: AsyncConnection, owner: str, after: str, limit: int) -> list[TokenRow]:
    return await every(
        work,
        TokenRow,
        f"""select {columns(TokenRow)} from api_tokens
            where owner = :owner and id > :after order by id limit :limit""",
        owner=owner,
        after=after,
        limit=limit,
    )


async def revoke_token(work: AsyncConnection, owner: str, token_id: str) -> bool:
    """Whether it ends now; False where it had ended already, or is none."""
    done = await run(
        work,
        """update api_tokens set revoked_at = now()
           where owner = :owner and id = :id and revoked_at is null""",
        owner=owner,
        id=token_id,
    )
    return done == 1


async def is_born(work: AsyncConnection, principal: str) -> bool:
    """Whether an installation was born with a token for it."""
    found = await work.execute(
        text(
            "select exists (select from api_tokens where principal = :principal and starts_with(id, :born))"
        ),
        {"principal": principal, "born": BORN},
    )
    answer: bool = found.scalar_one()
    return answer


async def remove_tokens_of_user(work: AsyncConnection, user: str) -> int:
    return await run(work, "delete from api_tokens where user_id = :user", user=user)


async def remove_tokens_of_tenant(work: AsyncConnection, tenant: str, limit: int) -> int:
    return await run(
        work,
        """delete from api_tokens where sha256 in (
               select sha256 from api_tokens where owner = :owner limit :limit)""",
        owner=f"tenants/{tenant}",
        limit=limit,
    )


async def note_use(work: AsyncConnection, sha256: bytes, hour: datetime) -> None:
    """To the hour: who exchanges each minute must not write each minute."""
    await run(
        work,
        """update api_tokens set last_used_at = :hour
           where sha256 = :sha256 and last_used_at is distinct from :hour""",
        sha256=sha256,
        hour=hour,
    )
