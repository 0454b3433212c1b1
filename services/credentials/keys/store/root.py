"""Queries about root keys and what they seal. Each takes the transaction it runs in; none begins or ends one."""

# ruff: noqa: S608  only the names of our own columns and tables are put together

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.credentials.keys.store.copies import Copies
from services.credentials.rows import columns, every, one, run

# which root key is what


@dataclass(frozen=True, slots=True)
class CanaryRow:
    fingerprint: str
    sealed: bytes
    keeper: str
    state: str
    """CURRENT, STAGED or PREVIOUS."""


async def hold_root(work: AsyncConnection, *, alone: bool) -> None:
    """Who seals with the root key holds it; who changes which one is current is alone with it."""
    way = "" if alone else "_shared"
    await run(work, f"select pg_advisory_xact_lock{way}(hashtext('tieline'), hashtext('root key'))")


async def canaries(work: AsyncConnection) -> list[CanaryRow]:
    return await every(work, CanaryRow, f"select {columns(CanaryRow)} from root_canary order by created_at")


async def put_canary(work: AsyncConnection, row: CanaryRow) -> None:
    await run(
        work,
        """insert into root_canary (fingerprint, sealed, keeper, state)
           values (:fingerprint, :sealed, :keeper, :state)
           on conflict (fingerprint) do update set state = excluded.state, sealed = excluded.sealed""",
        fingerprint=row.fingerprint,
        sealed=row.sealed,
        keeper=row.keeper,
        state=row.state,
    )


async def drop_canaries(work: AsyncConnection, state: str) -> None:
    await run(work, "delete from root_canary where state = :state", state=state)


async def move_canaries(work: AsyncConnection, old: str, new: str) -> None:
    await run(work, "update root_canary set state = :new where state = :old", old=old, new=new)


# what the root key seals


@dataclass(frozen=True, slots=True)
class PlatformRow:
    """A secret of the platform: `signing_keys` and `platform_secrets` alike."""

    name: str
    sealed: bytes
    sealed_other: bytes | None

    @property
    def copies(self) -> Copies:
        return Copies(self.sealed, self.sealed_other)


@dataclass(frozen=True, slots=True)
class KeyPlace:
    tenant: str
    version: int


_UNDER = "decode(:fingerprint, 'hex') in (substring({} from 3 for 8), substring(sealed_other from 3 for 8))"
_TENANT_KEY_UNDER = _UNDER.format("sealed")
_PLATFORM = {"platform_secrets": ("name", "sealed"), "signing_keys": ("kid", "sealed_private")}
PLATFORM_TABLES = tuple(_PLATFORM)


async def tenant_keys_under(worker: AsyncConnection, fingerprint: str) -> tuple[int, int]:
    """How many tenant keys that root key opens, of how many there are. Across tenants, by the worker's role."""
    row = (
        await worker.execute(
            text(f"""select count(*) filter (where {_TENANT_KEY_UNDER} is true) as done, count(*) as total
                     from tenant_keys where sealed is not null"""),
            {"fingerprint": fingerprint},
        )
    ).one()
    return row.done, row.total


async def tenant_keys_not_under(worker: AsyncConnection, fingerprint: str, limit: int) -> list[KeyPlace]:
    return await every(
        worker,
        KeyPlace,
        f"""select tenant, version from tenant_keys
            where sealed is not null and ({_TENANT_KEY_UNDER}) is not true order by tenant, version limit :limit""",
        fingerprint=fingerprint,
        limit=limit,
    )


async def put_tenant_key_copies(work: AsyncConnection, what: KeyPlace, copies: Copies) -> None:
    await run(
        work,
        """update tenant_keys set sealed = :sealed, sealed_other = :other
           where tenant = :tenant and version = :version and sealed is not null""",
        tenant=what.tenant,
        version=what.version,
        sealed=copies.sealed,
        other=copies.sealed_other,
    )


async def platform_rows_not_under(work: AsyncConnection, table: str, fingerprint: str) -> list[PlatformRow]:
    name, sealed = _PLATFORM[table]
    return await every(
        work,
        PlatformRow,
        f"""select {name} as name, {sealed} as sealed, sealed_other from {table}
            where ({_UNDER.format(sealed)}) is not true order by {name} for update""",
        fingerprint=fingerprint,
    )


async def put_platform_copies(work: AsyncConnection, table: str, name: str, copies: Copies) -> None:
    column, sealed = _PLATFORM[table]
    await run(
        work,
        f"update {table} set {sealed} = :sealed, sealed_other = :other where {column} = :name",
        name=name,
        sealed=copies.sealed,
        other=copies.sealed_other,
    )


async def platform_secret(work: AsyncConnection, name: str) -> Copies | None:
    return await one(
        work, Copies, "select sealed, sealed_other from platform_secrets where name = :name", name=name
    )


async def add_platform_secret(work: AsyncConnection, name: str, sealed: bytes) -> None:
    """Whoever comes second finds the first one's."""
    await run(
        work,
        "insert into platform_secrets (name, sealed) values (:name, :sealed) on conflict do nothing",
        name=name,
        sealed=sealed,
    )
