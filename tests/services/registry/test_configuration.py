"""Feature: integrations, Property 9: configuration management.

For any interleaving of creations, changes, rollbacks, pauses, resumptions and ends, by two tenants that call their
connections alike: a revision serves only if the provider grants what it needs, and until then the one before does;
the history tells every change with its author and its difference; a rollback is exact; and nothing that one tenant
does changes a row of the other.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from sqlalchemy import text

from foundation.engines.testing import Served
from foundation.errors import Code, Problem
from foundation.process.testing import until
from services.registry.connections.connection import Application, Connection, Revision, State
from services.registry.connections.history import differences, patch
from services.registry.connections.wanted import changed_fields
from tests.services.registry.played import World, world
from tieline.registry.v1 import connections_pb2 as pb

IDS = ("main", "second")
CREDENTIALS = ("good", "narrow")
_numbers = itertools.count()

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=2), below, max_size=3),
    max_leaves=8,
)
documents = st.fixed_dictionaries(
    {"word": st.sampled_from(["a", "b", "c", "sick", "forbidden"])},
    optional={
        "list": st.lists(json_values, max_size=3),
        "deep": st.dictionaries(st.text(max_size=2), json_values),
    },
)
masks = st.lists(st.sampled_from(["settings", "credentials", "title", "labels"]), min_size=1, unique=True)


def wish(tenant: str, document: Any, credential: str, title: str) -> pb.Connection:
    wanted = pb.Connection(
        plugin="plugins/played", settings=json.dumps(document).encode(), title=title, labels={"of": title}
    )
    wanted.credentials.add(slot="api", credential=f"tenants/{tenant}/credentials/{credential}")
    return wanted


wishes = st.tuples(documents, st.sampled_from(CREDENTIALS), st.sampled_from(["x", "y"]))


@dataclass
class Kept:
    """What must be true of one connection."""

    revisions: list[tuple[pb.Connection, str, int]] = field(default_factory=list)
    """What was wanted, by whom, and what it repeats."""
    applied: int = 0
    refused: str = ""
    paused: bool = False
    waits: bool = False
    """Its newest revision was written while it was paused."""


class Configuration(RuleBasedStateMachine):
    world: World
    loop: asyncio.AbstractEventLoop
    looking: asyncpg.Connection[asyncpg.Record]
    """As nobody does, past every wall."""

    def __init__(self) -> None:
        super().__init__()
        number = next(_numbers)
        self.tenants = (f"a{number}", f"b{number}")
        self.model: dict[tuple[str, str], Kept] = {}
        self.world.plugin.missing = {
            f"tenants/{tenant}/credentials/narrow": {"write", "admin"} for tenant in self.tenants
        }

    @rule(which=st.integers(0, 1), id_=st.sampled_from(IDS), given_=wishes)
    def create(self, which: int, id_: str, given_: tuple[Any, str, str]) -> None:
        tenant = self.tenants[which]
        wanted = wish(tenant, *given_)
        there = self.model.get((tenant, id_))
        done = self.alone(tenant, self.world.book.create(
            tenant, id_, wanted, request_id="", validate_only=False, author="users/ada"
        ))  # fmt: skip
        if there is not None and isinstance(done, Problem):
            assert done.code in (Code.ALREADY_EXISTS, Code.INVALID_ARGUMENT)
        elif given_[0]["word"] == "forbidden":
            assert isinstance(done, Problem)
            assert done.code is Code.INVALID_ARGUMENT
        elif there is None:
            kept = self.model[tenant, id_] = Kept()
            self.accepted(kept, tenant, done, "users/ada", 0)
        self.compare(tenant, id_)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), given_=wishes, mask=masks, stale=st.booleans())
    def update(self, data: st.DataObject, given_: tuple[Any, str, str], mask: list[str], stale: bool) -> None:  # noqa: FBT001
        tenant, id_ = data.draw(st.sampled_from(sorted(self.model)))
        kept, now = self.model[tenant, id_], self.get(tenant, id_)
        etag = f"{now.instance[:8]}.0" if stale else now.etag
        done = self.alone(tenant, self.world.changing.update(
            tenant, id_, wish(tenant, *given_), mask,
            etag=etag, request_id="", validate_only=False, author="users/bob",
        ))  # fmt: skip
        if isinstance(done, Problem):
            forbidden = "settings" in mask and given_[0]["word"] == "forbidden"
            assert (done.code is Code.CONFLICT and stale) or (
                done.code is Code.INVALID_ARGUMENT and forbidden
            )
        elif done.revision > now.revision:
            assert set(changed_fields(now.wanted, done.wanted)) <= set(mask)
            self.accepted(kept, tenant, done, "users/bob", 0)
        else:
            assert done.wanted == now.wanted
        self.compare(tenant, id_)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def rollback(self, data: st.DataObject) -> None:
        tenant, id_ = data.draw(st.sampled_from(sorted(self.model)))
        kept, now = self.model[tenant, id_], self.get(tenant, id_)
        number = data.draw(st.integers(1, len(kept.revisions)))
        done = self.alone(tenant, self.world.changing.go_back(
            tenant, id_, number, etag=now.etag, request_id="", author="users/eve"
        ))  # fmt: skip
        assert isinstance(done, Connection), done
        old = kept.revisions[number - 1][0]
        assert done.wanted.SerializeToString(deterministic=True) == old.SerializeToString(deterministic=True)
        self.accepted(kept, tenant, done, "users/eve", number)
        self.compare(tenant, id_)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), sleeps=st.booleans())
    def pause_or_resume(self, data: st.DataObject, sleeps: bool) -> None:  # noqa: FBT001
        tenant, id_ = data.draw(st.sampled_from(sorted(self.model)))
        kept = self.model[tenant, id_]
        resting = self.world.resting
        if sleeps:
            done = self.alone(tenant, resting.pause(tenant, id_, "tired", "users/ada"))
            assert isinstance(done, Connection)
            assert done.failure is not None
            kept.paused = True
        else:
            self.alone(tenant, resting.resume(tenant, id_))
            if kept.waits or kept.refused:
                self.tried(kept, tenant)
            kept.paused = kept.waits = False
        self.compare(tenant, id_)

    @rule(which=st.integers(0, 1), granted=st.booleans())
    def provider(self, which: int, granted: bool) -> None:  # noqa: FBT001
        """Its administrator grants what is missing, or takes it back."""
        name = f"tenants/{self.tenants[which]}/credentials/narrow"
        self.world.plugin.missing[name] = set() if granted else {"write", "admin"}

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        tenant, id_ = data.draw(st.sampled_from(sorted(self.model)))
        now = self.get(tenant, id_)
        assert self.alone(tenant, self.world.resting.delete(tenant, id_, now.etag)) is None
        self.run(until(lambda: self.is_gone(tenant, id_), 60))
        del self.model[tenant, id_]
        assert now.name not in self.world.vault.granted

    @precondition(lambda self: self.model)
    @rule(data=st.data(), left=wishes, right=wishes)
    def both_at_once(
        self, data: st.DataObject, left: tuple[Any, str, str], right: tuple[Any, str, str]
    ) -> None:
        """Two people from the same etag, at the same moment: one wins, the other is told."""
        tenant, id_ = data.draw(st.sampled_from(sorted(self.model)))
        kept, now = self.model[tenant, id_], self.get(tenant, id_)
        changes = [
            self.world.changing.update(
                tenant, id_, wish(tenant, *given_), ["settings", "credentials", "title"],
                etag=now.etag, request_id="", validate_only=False, author=author,
            )
            for given_, author in ((left, "users/left"), (right, "users/right"))
        ]  # fmt: skip
        done: list[Any] = self.run(_at_once(changes))
        new = [one for one in done if isinstance(one, Connection) and one.revision > now.revision]
        assert {one.revision for one in new} <= {now.revision + 1}
        if new:
            found = self.get(tenant, id_)
            author = self.revisions(tenant, id_)[0].author
            self.accepted(kept, tenant, found, author, 0)
        for one in done:
            if isinstance(one, BaseException):
                assert isinstance(one, Problem), one
                assert one.code in (Code.CONFLICT, Code.INVALID_ARGUMENT)
        self.compare(tenant, id_)

    # what must be true

    def accepted(self, kept: Kept, tenant: str, done: Any, author: str, repeats: int) -> None:
        assert isinstance(done, Connection), done
        kept.revisions.append((done.wanted, author, repeats))
        kept.waits = kept.paused
        kept.refused = ""
        if not kept.paused:
            self.tried(kept, tenant)

    def tried(self, kept: Kept, tenant: str) -> None:
        wanted = kept.revisions[-1][0]
        missing = self.world.plugin.missing[f"tenants/{tenant}/credentials/narrow"]
        narrow = any(one.credential.endswith("/narrow") for one in wanted.credentials)
        word = json.loads(wanted.settings).get("word")
        if narrow and missing:
            kept.refused = "the scope admin is missing; the scope write is missing"
        elif word == "sick":
            kept.refused = "it has a fever"
        else:
            kept.refused, kept.applied = "", len(kept.revisions)

    def compare(self, tenant: str, id_: str) -> None:
        kept = self.model.get((tenant, id_))
        if kept is None:
            return
        found = self.get(tenant, id_)
        assert (found.revision, found.applied_revision) == (len(kept.revisions), kept.applied)
        assert found.wanted == kept.revisions[-1][0]
        if kept.waits:
            assert found.application is Application.PENDING
        elif kept.refused:
            assert found.application is Application.FAILED
            assert found.application_failure is not None
            assert found.application_failure.message == kept.refused
        else:
            assert found.application is Application.APPLIED
        expected = State.PAUSED if kept.paused else State.ACTIVE if kept.applied else State.PENDING
        assert found.state is expected
        self.run(self.world.picture.look())
        serving = self.world.picture.snapshot.content[found.name]
        assert serving.wanted == kept.revisions[(kept.applied or found.revision) - 1][0]
        self.compare_history(tenant, id_, kept)

    def compare_history(self, tenant: str, id_: str, kept: Kept) -> None:
        revisions = self.revisions(tenant, id_)
        told = [(one.wanted, one.author, one.rollback_of) for one in reversed(revisions)]
        assert told == kept.revisions
        for new, old in itertools.pairwise(revisions):
            fields, operations = differences(new, old)
            assert fields == changed_fields(old.wanted, new.wanted)
            assert ("settings" in fields) == (new.wanted.settings != old.wanted.settings)
            patched = patched_with(json.loads(old.wanted.settings), json.loads(operations))
            assert canonical(patched) == canonical(json.loads(new.wanted.settings))
            assert new.create_time >= old.create_time

    # how it is asked

    def alone(self, tenant: str, change: Coroutine[Any, Any, Any]) -> Any:
        """Make the change; not one row of the other tenant is written meanwhile. What it came to."""
        other = next(one for one in self.tenants if one != tenant)
        before = self.rows(other)
        try:
            done = self.run(change)
        except Problem as problem:
            done = problem
        assert self.rows(other) == before
        assert self.run(self.reached(tenant)) <= {tenant}
        return done

    async def reached(self, tenant: str) -> set[str]:
        """Whose rows a transaction of this tenant sees, or could change, whatever it asks for."""
        seen: set[str] = set()
        async with self.world.own.unit_of_work(tenants=[tenant]) as work:
            for table in ("connections", "connection_revisions", "endpoints", "connection_requests"):
                seen |= set((await work.execute(text(f"select distinct tenant from {table}"))).scalars())  # noqa: S608
            changed = await work.execute(text("update connections set plugin = plugin returning tenant"))
            seen |= set(changed.scalars())
        return seen

    def rows(self, tenant: str) -> list[Any]:
        """With the moment of their last change, by the database's own count."""
        found: list[Any] = self.run(self.read(tenant))
        return found

    async def read(self, tenant: str) -> list[Any]:
        return [
            [tuple(row.values()) for row in await self.looking.fetch(
                f"select t.xmin::text, t.* from registry.{table} t where tenant = $1 order by t.*", tenant  # noqa: S608
            )]
            for table in ("connections", "connection_revisions", "endpoints", "connection_requests")
        ]  # fmt: skip

    def get(self, tenant: str, id_: str) -> Connection:
        found: Connection = self.run(self.world.book.get(tenant, id_))
        return found

    def revisions(self, tenant: str, id_: str) -> list[Revision]:
        found: list[Revision] = self.run(self.world.book.revisions(tenant, id_, before=2**60, limit=1000))
        return found

    async def is_gone(self, tenant: str, id_: str) -> bool:
        return id_ not in {
            one.id for one in await self.world.book.list(tenant, after="", plugin="", limit=100)
        }

    def run(self, question: Any) -> Any:
        return self.loop.run_until_complete(question)


async def _at_once(changes: list[Coroutine[Any, Any, Any]]) -> list[Any]:
    return await asyncio.gather(*changes, return_exceptions=True)


def canonical(document: Any) -> str:
    return json.dumps(document, sort_keys=True)


def patched_with(document: Any, operations: list[dict[str, Any]]) -> Any:
    """What RFC 6902 says that a patch does."""
    whole = {"": document}
    for step in operations:
        parts = [part.replace("~1", "/").replace("~0", "~") for part in ("/" + step["path"]).split("/")[1:]]
        # The document stands in a room of its own, so that it can be replaced as a whole.
        place: Any = whole
        keys = ["", *parts[1:]] if step["path"] else [""]
        for part in keys[:-1]:
            place = place[int(part)] if isinstance(place, list) else place[part]
        last: Any = int(keys[-1]) if isinstance(place, list) else keys[-1]
        match step["op"]:
            case "remove":
                del place[last]
            case "add" if isinstance(place, list):
                place.insert(last, step["value"])
            case "replace":
                assert place[last] is not None or place[last] is None  # it must be there
                place[last] = step["value"]
            case _:
                place[last] = step["value"]
    return whole[""]


@settings(max_examples=300)
@given(before=json_values, after=json_values)
def test_a_patch_makes_the_one_document_of_the_other(before: Any, after: Any) -> None:
    copied = json.loads(json.dumps(before))
    assert canonical(patched_with(copied, patch(before, after))) == canonical(after)
    assert (patch(before, after) == []) == (canonical(before) == canonical(after))


@pytest.fixture
def machine(engines: Served) -> Iterator[type[Configuration]]:
    loop = asyncio.new_event_loop()
    opened = world(engines.postgres)
    try:
        Configuration.loop = loop
        Configuration.world = loop.run_until_complete(opened.__aenter__())
        url = Configuration.world.admin.reveal()
        Configuration.looking = loop.run_until_complete(asyncpg.connect(url))
        yield Configuration
        loop.run_until_complete(Configuration.looking.close())
        loop.run_until_complete(opened.__aexit__(None, None, None))
    finally:
        loop.close()


@pytest.mark.timeout(900)
def test_configuration_is_kept_told_and_walled(machine: type[Configuration]) -> None:
    """Feature: integrations, Property 9: configuration management; and Property 2, for configuration."""
    run_state_machine_as_test(
        machine, settings=settings(max_examples=100, stateful_step_count=12, deadline=None)
    )
