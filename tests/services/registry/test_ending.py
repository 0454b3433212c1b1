"""Pausing, going on and ending, and a registry that is killed in the middle of it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from foundation.engines.testing import Served
from foundation.errors import Code, Problem
from foundation.process.testing import until
from services.registry.connections.claims import LEASE
from services.registry.main import serve
from tests.services.registry.choosy import People, bound, make_choosy, people, settings
from tests.services.registry.conftest import Running, prepared, ready
from tests.services.registry.test_killed import start
from tieline.credentials.v1.credentials_pb2 import Credential
from tieline.registry.v1 import connections_pb2 as pb
from tieline.registry.v1.connections_pb2 import Connection

API, HOOK = bound("api", "token"), bound("webhook", "hook")


@pytest.fixture(autouse=True)
def plugin(tmp_path: Path) -> Path:
    return make_choosy(tmp_path / "plugins")


def allow(running: Running) -> None:
    running.vault.credentials.add("tenants/acme/credentials/token")
    running.vault.tokens["tenants/acme/credentials/token"] = b"token"


async def pause(ada: People, reason: str = "", id_: str = "main") -> Connection:
    request = pb.PauseConnectionRequest(name=ada.name(id_), reason=reason)
    answer: Connection = await ada.stub.PauseConnection(request)
    return answer


async def resume(ada: People, id_: str = "main") -> Connection:
    answer: Connection = await ada.stub.ResumeConnection(pb.ResumeConnectionRequest(name=ada.name(id_)))
    return answer


async def test_a_paused_connection_says_why_and_goes_on_where_it_was(plugin: Path, registry: Running) -> None:
    assert plugin.exists()
    async with people(registry) as ada:
        await ada.make("main", "x")
        await ada.make("other", "y")
        paused = await pause(ada, "the provider moves house")
        assert (paused.state, paused.failure.message) == (
            Connection.STATE_PAUSED,
            "the provider moves house",
        )
        assert await pause(ada) == paused
        again = await pause(ada, "it moves for longer")
        assert (again.failure.message, again.state_time) == ("it moves for longer", paused.state_time)
        await until(lambda: _answers(ada, ["PAUSED"]), 30)
        assert await ada.titles("other") == ["hello:y"]
        later = await ada.say(again, "z")
        assert (later.application, later.state) == (
            Connection.APPLICATION_PENDING,
            Connection.STATE_PAUSED,
        )
        resumed = await resume(ada)
        assert resumed.state == Connection.STATE_ACTIVE
        await ada.applied()
        assert await ada.titles() == ["hello:z"]
        now = await ada.get()
        assert await resume(ada) == now, "not paused: OK"
        with pytest.raises(Problem, match="256 bytes"):
            await pause(ada, "x" * 257)
    said = [action for action, _, outcome in registry.audit.said if outcome == "INTENT"]
    assert said[-3:] == ["connection.pause", "connection.update", "connection.resume"]


async def _answers(ada: People, wanted: list[str], id_: str = "main") -> bool:
    return await ada.titles(id_) == wanted


async def test_what_the_platform_paused_is_tried_before_it_resumes(plugin: Path, registry: Running) -> None:
    assert plugin.exists()
    allow(registry)
    async with people(registry) as ada:
        await ada.make("main", "x", API)
        registry.vault.tell(token=Credential.STATE_REFUSED)
        mood = plugin / "mood"
        mood.touch()

        async def suspended() -> bool:
            return (await ada.get()).state == Connection.STATE_SUSPENDED

        await until(suspended, 30)
        with pytest.raises(Problem) as still:
            await resume(ada)
        assert still.value.code is Code.STATE_REFUSES
        assert "cannot be resumed: not today" in still.value.sentence.replace("api: ", "")
        mood.unlink()
        assert (await ada.get()).state == Connection.STATE_SUSPENDED
        registry.vault.tell(token=Credential.STATE_VALID)

        async def active() -> bool:
            return (await ada.get()).state == Connection.STATE_ACTIVE

        await until(active, 30)


async def test_a_refused_revision_is_tried_again_when_somebody_says_so(
    plugin: Path, registry: Running
) -> None:
    assert plugin.exists()
    allow(registry)
    registry.vault.tokens["tenants/acme/credentials/token"] = b"narrow"
    async with people(registry) as ada:
        refused = await ada.make("main", "x", API)
        assert refused.application == Connection.APPLICATION_FAILED
        checked = await ada.stub.CheckConnection(pb.CheckConnectionRequest(name=refused.name))
        bad = {one.subject: one for one in checked.findings if not one.ok}
        assert (checked.ok, set(bad)) == (False, {"scope write", "scope read"})
        assert "tieline connection resume" in bad["scope write"].advice
        again = await resume(ada)
        assert again.etag != refused.etag
        assert (await ada.decided()).application == Connection.APPLICATION_FAILED


async def test_an_ended_connection_is_gone_everywhere_and_its_id_is_free(
    plugin: Path, registry: Running
) -> None:
    assert plugin.exists()
    allow(registry)
    async with people(registry) as ada:
        made = await ada.make("main", "x", API, HOOK)
        await ada.make("other", "y", HOOK)
        await ada.titles()
        await registry.sql(
            """insert into registry.checkpoints (tenant, connection, stream, partition, epoch, owner, claim_time)
               values ('acme', 'main', 's', '', 1, 'me', now()), ('acme', 'other', 's', '', 1, 'me', now())"""
        )
        await ada.delete("main", made.etag)
        await ada.delete("main", made.etag)
        await ada.gone()
        await ada.delete("main")
        assert await ada.titles() == ["CONNECTION_UNKNOWN"]
        assert {grant.connection for _, grant in registry.vault.granted.values()} == {ada.name("other")}
        for table, column in _TABLES.items():
            rows = await registry.sql(f"select {column} as connection from registry.{table}")  # noqa: S608
            assert {row["connection"] for row in rows} <= {"other"}, table
        assert await ada.titles("other") == ["hello:y"]
        again = await ada.make("main", "new", HOOK)
        assert (again.revision, again.settings) == (1, settings("new"))
        assert again.webhook_urls["events"] != made.webhook_urls["events"]
        assert again.etag != made.etag, "an etag is of one connection, not of an id"
        assert await ada.titles() == ["hello:new"]


_TABLES = {
    "connections": "id",
    "connection_revisions": "connection",
    "endpoints": "connection",
    "checkpoints": "connection",
    "connection_requests": "connection",
}


async def test_the_end_waits_for_the_vault_and_comes(plugin: Path, registry: Running) -> None:
    assert plugin.exists()
    async with people(registry) as ada:
        made = await ada.make("main", "x", HOOK)
        registry.vault.away = True
        await ada.delete()

        async def told_why() -> bool:
            found = await ada.get()
            return found.state == Connection.STATE_DELETING and "cannot be reached" in found.failure.message

        await until(told_why, 30)
        for change in (ada.say(made, "y"), pause(ada), resume(ada)):
            with pytest.raises(Problem) as refused:
                await change
            assert refused.value.code is Code.STATE_REFUSES
        with pytest.raises(Problem, match="still being deleted"):
            await ada.make("main", "x")
        await until(lambda: _answers(ada, ["DELETING"]), 30)
        registry.vault.away = False
        await ada.gone()


@asynccontextmanager
async def running_process(running: Running, where: Path) -> AsyncIterator[subprocess.Popen[bytes]]:
    process = start(running.settings, where)
    try:
        await ready(running)
        yield process
    finally:
        process.kill()
        process.wait()


def kill(process: subprocess.Popen[bytes]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


async def test_a_registry_killed_while_it_applies_is_followed_by_one_that_does(
    engines: Served, tmp_path: Path, found: Callable[[str], None]
) -> None:
    async with prepared(engines, tmp_path) as running:
        async with running_process(running, tmp_path) as process, people(running) as ada:
            made = await ada.make("main", "old")
            await ada.say(made, "slow")

            async def applying() -> bool:
                return (await ada.get()).application == Connection.APPLICATION_APPLYING

            await until(applying, 30)
            assert await ada.titles() == ["hello:old"]
            kill(process)
        async with running_process(running, tmp_path), people(running) as ada:
            assert await ada.titles() == ["hello:old"]
            await ada.say(await ada.get(), "new")
            await ada.applied()
            assert await ada.titles() == ["hello:new"]
            assert [one.revision for one in await ada.history()] == [3, 2, 1]
    found("killed while a revision was tried: the one before served at once, the next was applied")


async def test_what_a_dead_registry_was_applying_is_taken_over(
    engines: Served, tmp_path: Path, found: Callable[[str], None]
) -> None:
    async with prepared(engines, tmp_path) as running:
        async with running_process(running, tmp_path) as process, people(running) as ada:
            made = await ada.make("main", "old")
            await running.sql("update registry.connections set next_try = now() + interval '1 hour'")
            await ada.say(made, "sick")
            await ada.decided()
            kill(process)
        # As if it had died in the middle: claimed, and nobody there.
        await running.sql(
            """update registry.connections set application = 'applying', claim_owner = 'dead', next_try = now(),
               claim_until = now() + interval '2 seconds'"""
        )
        async with running_process(running, tmp_path), people(running) as ada:
            await ada.decided()
            (row,) = await running.sql("select claim_owner from registry.connections")
            assert row["claim_owner"] != "dead"
    found(f"a claim is over {LEASE.total_seconds():.0f} s after its owner's death")


@pytest.mark.parametrize("vault_away", [False, True])
async def test_a_registry_killed_while_it_ends_a_connection_is_followed_by_one_that_does(
    engines: Served, tmp_path: Path, *, vault_away: bool
) -> None:
    async with prepared(engines, tmp_path) as running:
        async with running_process(running, tmp_path) as process, people(running) as ada:
            await ada.make("main", "x", HOOK)
            await ada.make("other", "y", HOOK)
            running.vault.away = vault_away
            await ada.delete()
            kill(process)
        running.vault.away = False
        async with running_process(running, tmp_path), people(running) as ada:
            await ada.gone()
            assert {grant.connection for _, grant in running.vault.granted.values()} == {ada.name("other")}
            assert await ada.titles("other") == ["hello:y"]
            assert (await ada.make("main", "new", HOOK)).revision == 1


async def test_two_registries_apply_each_revision_once(
    engines: Served, tmp_path: Path, found: Callable[[str], None]
) -> None:
    """Both on one database: every revision is tried by one of them, and both serve it."""
    async with prepared(engines, tmp_path) as first:
        second = first.beside()
        tasks = [asyncio.create_task(serve(one.settings, one.stopping)) for one in (first, second)]
        try:
            for one, task in zip((first, second), tasks, strict=True):
                await ready(one, task)
            async with people(first) as ada, people(second) as eve:
                for number in range(6):
                    await ada.make(f"c{number}", "a")
                for number in range(6):
                    maker = ada if number % 2 else eve
                    await maker.say(await maker.get(f"c{number}"), "b")
                    await maker.applied(f"c{number}")
                for number in range(6):
                    for who in (ada, eve):
                        await until(partial(_answers, who, ["hello:b"], f"c{number}"), 30)
                await ada.delete("c0")
                await eve.gone("c0")
                await until(lambda: _answers(eve, ["CONNECTION_UNKNOWN"], "c0"), 30)
        finally:
            for one in (first, second):
                one.stopping.set()
            await asyncio.gather(*tasks)
    found("two registries, twelve revisions, one end: each done once, both served it")
