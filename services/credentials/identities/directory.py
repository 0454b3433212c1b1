"""An organisation's own directory as the source of tenants.

Whoever is in it is a tenant here, with its title and labels; whoever leaves it is suspended, and is never
deleted by that: a directory that is read wrongly must not cost anybody anything. Who returns is resumed, unless
a person had suspended it. The port is one method; the one keeper that comes with us is a file that another
system maintains.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, Self

import msgspec
import structlog

from foundation.clock.tasks import end
from foundation.errors import Code, Problem
from foundation.store.errors import StoreError
from foundation.store.unit_of_work import Store
from services.credentials.identities.store import tenants as queries
from services.credentials.identities.store.tenants import TenantRow
from services.credentials.identities.tenant_picture import TenantPicture
from services.credentials.identities.tenant_servicer import new_tenant_id
from services.credentials.identities.tenants import TenantBook

log = structlog.get_logger(__name__)

LOOK_SECONDS = 2.0
LEFT = "it left the directory"
"""The reason of a suspension that the directory takes back."""


class Listed(msgspec.Struct, frozen=True):
    """A tenant as the directory has it; what else it says is not our business."""

    id: str
    title: str = ""
    directory_id: str = ""
    labels: dict[str, str] = {}


class Directory(Protocol):
    @property
    def name(self) -> str:
        """What its tenants show as where they come from."""

    async def tenants(self) -> Sequence[Listed]:
        """All of them. Raises a Problem where they cannot be read now; nothing is concluded from that."""


@dataclass(frozen=True, slots=True)
class DirectoryFile:
    """A JSON list: `[{"id": "acme", "title": "Acme", "directory_id": "4711", "labels": {"tier": "gold"}}]`."""

    path: Path
    name: str = field(default="file", init=False)

    async def tenants(self) -> Sequence[Listed]:
        try:
            raw = await asyncio.to_thread(self.path.read_bytes)
            found = msgspec.json.decode(raw, type=list[Listed])
            for one in found:
                new_tenant_id(one.id, "id")
        except (OSError, msgspec.DecodeError, Problem) as error:
            why = f"{self.path}: {error.strerror if isinstance(error, OSError) else error}"
            raise Problem(Code.DEPENDENCY_UNAVAILABLE, dependency="tenant directory", why=why) from error
        return found


class Following:
    """`async with` it: what the directory says becomes true here, within seconds."""

    def __init__(self, directory: Directory, store: Store, book: TenantBook, picture: TenantPicture) -> None:
        self._directory = directory
        self._store = store
        self._book = book
        self._picture = picture
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._keep(), name="follow the tenant directory")
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(self._task)

    async def _keep(self) -> None:
        said = ""
        while True:
            why = ""
            try:
                await self.look()
            except (Problem, StoreError) as error:
                why = str(error)
            except Exception:  # a task's border: it is tried again
                log.exception("the tenant directory could not be followed")
            if why and why != said:
                log.warning("the tenant directory is not followed at the moment", why=why)
            said = why
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        listed = {one.id: one for one in await self._directory.tenants()}
        async with self._store.unit_of_work(tenants=(), read_only=True) as work:
            known = {row.id: row for row in await queries.of_directory(work, self._directory.name)}
        changed = [await self._admit(one) for one in listed.values() if not _is_as(known.get(one.id), one)]
        gone = [row for row in known.values() if row.id not in listed and row.state == "ACTIVE"]
        changed += [await self._suspend(row.id) for row in gone]
        if any(changed):
            self._picture.notice()

    async def _admit(self, one: Listed) -> bool:
        """Whether it changed anything."""
        wanted = TenantRow(
            id=one.id,
            title=one.title or one.id,
            labels=one.labels,
            directory=self._directory.name,
            directory_id=one.directory_id,
        )
        async with self._store.unit_of_work(tenants=[one.id]) as work:
            if await self._book.create(work, wanted):
                return True
            row = await self._book.locked(work, one.id)
            if row.directory != wanted.directory or row.state == "DELETED" or _is_as(row, one):
                # Made by hand under that id, deleted for good, or put right by another replica.
                return False
            if row.reason == LEFT:
                row = await self._book.resume(work, row)
            same = replace(row, title=wanted.title, labels=wanted.labels, directory_id=wanted.directory_id)
            if same != row:
                await self._book.update(work, same, ("title", "labels", "directory_id"))
            return True

    async def _suspend(self, tenant: str) -> bool:
        async with self._store.unit_of_work(tenants=[tenant]) as work:
            row = await self._book.locked(work, tenant)
            if row.state == "ACTIVE":
                await self._book.suspend(work, row, LEFT)
        return True


def _is_as(row: TenantRow | None, one: Listed) -> bool:
    if row is None:
        return False
    told = (one.title or one.id, one.labels, one.directory_id)
    return row.state == "DELETED" or (
        (row.title, row.labels, row.directory_id) == told and row.reason != LEFT
    )
