"""Making and changing flags. Connections follow by themselves (`following.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from foundation.clock import Clock
from foundation.errors import Code, Problem
from foundation.identity.names import new_id
from foundation.store.unit_of_work import Store
from services.registry.etags import changed_since, demand_same
from services.registry.flags import store
from services.registry.flags.flag import Flag, content
from services.registry.flags.following import Follower
from services.registry.recording import Change, Recorder
from tieline.registry.v1.flags_pb2 import Flag as Message

CHANGEABLE = ("description", "rules")


class FlagBook:
    def __init__(self, own: Store, recorder: Recorder, follower: Follower, clock: Clock) -> None:
        self._own, self._recorder, self._follower, self._clock = own, recorder, follower, clock

    async def create(self, id_: str, given: Message, *, request_id: str, author: str) -> Flag:
        new_id(id_, "flag_id")
        flag = Flag(id_, content(given), author=author)
        async with self._own.unit_of_work(tenants=(), read_only=True) as work:
            there = await store.by_request(work, request_id) if request_id else None
        if there is not None:
            if (there.id, there.content) == (flag.id, flag.content):
                return there
            raise Problem(Code.ALREADY_EXISTS, what=f"request {request_id[:64]} with other content")
        async with (
            self._recorder.making(Change(action="flag.create", resource=flag.name, fields=CHANGEABLE)),
            self._own.unit_of_work(tenants=()) as work,
        ):
            version = await store.insert(work, flag, request_id, self._clock.now())
            if version is None:
                raise Problem(Code.ALREADY_EXISTS, what=flag.name)
        self._follower.notice()
        return replace(flag, version=version)

    async def get(self, id_: str) -> Flag:
        async with self._own.unit_of_work(tenants=(), read_only=True) as work:
            found = await store.get(work, id_)
        if found is None:
            raise Problem(Code.NOT_FOUND, what=f"flag {id_}")
        return found

    async def list(self, after: str, limit: int) -> list[Flag]:
        async with self._own.unit_of_work(tenants=(), read_only=True) as work:
            return await store.listed(work, after, limit)

    async def update(self, id_: str, given: Message, mask: Sequence[str], *, etag: str, author: str) -> Flag:
        if not mask:
            why = f"it is empty: name the fields to change, of {', '.join(CHANGEABLE)}"
            raise Problem(Code.INVALID_ARGUMENT, field="update_mask", why=why)
        for name in mask:
            if name not in CHANGEABLE:
                why = f"{name[:100]!r} may not be changed; what may is {', '.join(CHANGEABLE)}"
                raise Problem(Code.INVALID_ARGUMENT, field="update_mask", why=why)
        present = await self.get(id_)
        demand_same(present, etag)
        wanted = Message()
        wanted.CopyFrom(present.content)
        if "description" in mask:
            wanted.description = given.description
        if "rules" in mask:
            del wanted.rules[:]
            wanted.rules.extend(given.rules)
        changed = replace(present, content=content(wanted), author=author)
        if changed.content == present.content:
            return present
        turns = list(changed.content.rules) != list(present.content.rules)
        await self._write(changed, "flag.update", [name for name in CHANGEABLE if name in mask], turns=turns)
        return replace(changed, version=changed.version + 1)

    async def delete(self, id_: str, *, etag: str, author: str) -> None:
        """Off for everybody, then gone. None: nothing to do."""
        async with self._own.unit_of_work(tenants=(), read_only=True) as work:
            present = await store.get(work, id_)
        if present is None:
            return
        if etag:
            demand_same(present, etag)
        await self._write(replace(present, removed=True, author=author), "flag.delete", (), turns=True)

    async def _write(self, changed: Flag, action: str, fields: Sequence[str], *, turns: bool) -> None:
        async with (
            self._recorder.making(Change(action=action, resource=changed.name, fields=fields)),
            self._own.unit_of_work(tenants=()) as work,
        ):
            if not await store.update(work, changed, self._clock.now(), turns=turns):
                raise changed_since(changed)
        self._follower.notice()
