"""All queries about join tokens and the processes that joined. The database's clock decides about ages."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

_CREATE = text("""
    insert into join_tokens (hash, plugin, version_range, expire_time)
    values (:hash, :plugin, :version_range, :expire_time)
""")
_TAKE = text("""
    select plugin, version_range, expire_time, use_time, request, certificates, process from join_tokens
    where hash = :hash for update
""")
_USE = text("""
    update join_tokens set use_time = :now, request = :request, certificates = :certificates, process = :process
    where hash = :hash
""")
_SWEEP_TOKENS = text("delete from join_tokens where expire_time < :before")
_JOIN = text("""
    insert into remote_processes (name, plugin, version, join_time) values (:name, :plugin, :version, :now)
""")
_ANNOUNCE = text("""
    with before as (select name, restart_wanted from remote_processes where name = :name for update)
    update remote_processes r set address = :address, announce_time = now(), restart_wanted = false
    from before b where r.name = b.name returning b.restart_wanted
""")
_KNOWN = text("select exists (select from remote_processes where name = :name)")
_WANT_RESTART = text("update remote_processes set restart_wanted = true where name = :name")
_FORGET = text("delete from remote_processes where name = :name")
_SWEEP = text("""
    delete from remote_processes where coalesce(announce_time, join_time) < now() - cast(:life as interval)
""")
_READ = text("""
    select name, plugin, version, address, extract(epoch from now() - announce_time)::float8 as silent
    from remote_processes where announce_time is not null
""")


@dataclass(frozen=True, slots=True)
class Token:
    plugin: str
    version_range: str
    expire_time: datetime
    use_time: datetime | None
    request: bytes | None
    certificates: str | None
    process: str | None


@dataclass(frozen=True, slots=True)
class Member:
    """A process that joined and announced itself."""

    name: str
    plugin: str
    version: str
    address: str
    silent: float
    """Seconds since it last said so."""


async def create_token(
    work: AsyncConnection, hash_: bytes, plugin: str, version_range: str, expire_time: datetime
) -> None:
    values = {"hash": hash_, "plugin": plugin, "version_range": version_range, "expire_time": expire_time}
    await work.execute(_CREATE, values)


async def take_token(work: AsyncConnection, hash_: bytes) -> Token | None:
    """The token, locked until the transaction ends: of two that come with it one is first."""
    row = (await work.execute(_TAKE, {"hash": hash_})).one_or_none()
    return None if row is None else Token(*row)


async def use_token(
    work: AsyncConnection, hash_: bytes, now: datetime, *, request: bytes, certificates: str, process: str
) -> None:
    values: dict[str, Any] = {"hash": hash_, "now": now, "request": request}
    await work.execute(_USE, values | {"certificates": certificates, "process": process})


async def join(work: AsyncConnection, name: str, plugin: str, version: str, now: datetime) -> None:
    await work.execute(_JOIN, {"name": name, "plugin": plugin, "version": version, "now": now})


async def announce(work: AsyncConnection, name: str, address: str) -> bool | None:
    """Whether somebody wants it to restart; None: nobody knows it."""
    wanted: bool | None = (await work.execute(_ANNOUNCE, {"name": name, "address": address})).scalar()
    return wanted


async def known(work: AsyncConnection, name: str) -> bool:
    return bool((await work.execute(_KNOWN, {"name": name})).scalar())


async def want_restart(work: AsyncConnection, name: str) -> None:
    await work.execute(_WANT_RESTART, {"name": name})


async def forget(work: AsyncConnection, name: str) -> None:
    await work.execute(_FORGET, {"name": name})


async def members(work: AsyncConnection) -> list[Member]:
    return [Member(*row) for row in await work.execute(_READ)]


async def sweep(work: AsyncConnection, now: datetime, life: timedelta) -> None:
    """Tokens that are over, and processes whose certificates must be."""
    await work.execute(_SWEEP_TOKENS, {"before": now - timedelta(hours=1)})
    await work.execute(_SWEEP, {"life": life})
