"""Shares of the work: rows that a process holds for a few seconds at a time, by the database's clock."""

from __future__ import annotations

from collections.abc import Collection
from uuid import UUID

from sqlalchemy import text

from foundation.store.unit_of_work import Store

_LAY_OUT = text("""
    insert into leases (kind, number, owner, expires_at)
    select :kind, n, :owner, '-infinity' from generate_series(0, :shares - 1) n
    on conflict do nothing
""")
_ATTEND = text("""
    insert into members (owner, expires_at) values (:owner, now() + make_interval(secs => :seconds))
    on conflict (owner) do update set expires_at = excluded.expires_at
""")
_FORGET_THE_DEAD = text("delete from members where expires_at < now() - interval '1 minute'")
_MEMBERS = text("select count(*) from members where expires_at > now()")
_RENEW = text("""
    update leases set expires_at = now() + make_interval(secs => :seconds)
    where kind = :kind and owner = :owner and expires_at > now() returning number
""")
_TAKE = text("""
    update leases set owner = :owner, fence = fence + 1, expires_at = now() + make_interval(secs => :seconds)
    where kind = :kind and number in (
        select number from leases where kind = :kind and expires_at <= now()
        order by random() limit :wanted for update skip locked
    )
    returning number
""")
_GIVE_BACK = text("""
    update leases set expires_at = '-infinity'
    where kind = :kind and owner = :owner and number = any (cast(:numbers as smallint[]))
""")
_LEAVE = text("delete from members where owner = :owner")


class LeaseStore:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def lay_out(self, kind: str, shares: int, owner: UUID) -> None:
        async with self._store.across_tenants() as work:
            await work.execute(_LAY_OUT, {"kind": kind, "shares": shares, "owner": owner})

    async def attend(self, owner: UUID, seconds: float) -> int:
        """Say that we are there; answers how many are."""
        async with self._store.across_tenants() as work:
            await work.execute(_FORGET_THE_DEAD)
            await work.execute(_ATTEND, {"owner": owner, "seconds": seconds})
            return int((await work.execute(_MEMBERS)).scalar_one())

    async def renew(self, kind: str, owner: UUID, seconds: float) -> set[int]:
        """What we still hold, now for longer. What has expired is not renewed: others may have seen it so."""
        async with self._store.across_tenants() as work:
            held = await work.execute(_RENEW, {"kind": kind, "owner": owner, "seconds": seconds})
            return set(held.scalars())

    async def take(self, kind: str, owner: UUID, seconds: float, wanted: int) -> set[int]:
        async with self._store.across_tenants() as work:
            given = {"kind": kind, "owner": owner, "seconds": seconds, "wanted": wanted}
            return set((await work.execute(_TAKE, given)).scalars())

    async def give_back(self, kind: str, owner: UUID, numbers: Collection[int]) -> None:
        async with self._store.across_tenants() as work:
            await work.execute(_GIVE_BACK, {"kind": kind, "owner": owner, "numbers": list(numbers)})

    async def leave(self, owner: UUID) -> None:
        async with self._store.across_tenants() as work:
            await work.execute(_LEAVE, {"owner": owner})
