"""Credentials on their way to plugins: lent, handed over, replaced, taken back, and shown to nobody else."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from foundation.clock import SystemClock
from foundation.process.supervised import State
from foundation.process.testing import until
from services.registry.broker.broker import Broker
from services.registry.broker.calling import Calls
from services.registry.broker.failures import CallFailed
from services.registry.broker.purse import VaultPurse
from services.registry.broker.serving import FixedConnections
from services.registry.host.host import Host
from tests.services.registry.plugins import group, hosting
from tests.services.registry.raw import (
    LOOK,
    Advice,
    Vault,
    calls,
    connected,
    found,
    lending,
    look,
    make_raw,
    ref,
)
from tieline.common.v1.failure_pb2 import Failure, FailureKind
from tieline.credentials.v1.leases_pb2 import Lease
from tieline.plugin.v1.instance_pb2 import AuthenticateResponse

ONE = connected(1, "", "a")
TWO = connected(2, "", "a", "b")
BARE = connected(3)
QUOTING = connected(4, "quote", "a")


@dataclass
class Desk:
    folder: Path
    host: Host
    broker: Broker
    vault: Vault
    purse: VaultPurse

    @property
    def calls(self) -> Calls:
        return self.broker.calls

    async def look(self, served: object = ONE, within: float = 20.0) -> list[str]:
        assert hasattr(served, "connection")
        answer = await self.calls.unary(ref(served), LOOK, look, within)  # type: ignore[arg-type]
        return found(answer.message)


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    folder = make_raw(tmp_path)
    async with AsyncExitStack() as stack:
        vault = await stack.enter_async_context(lending())
        host = await stack.enter_async_context(hosting(tmp_path / "plugins"))
        purse = await stack.enter_async_context(VaultPurse(vault.channel, SystemClock()))
        for served, entry in ((ONE, "a"), (TWO, "a"), (TWO, "b")):
            vault.lender.secrets[served.connection, entry] = (1, f"{entry}-first".encode())
        yield Desk(folder, host, Broker(host, FixedConnections(ONE, TWO, BARE, QUOTING), purse), vault, purse)


async def test_all_that_an_instance_needs_is_asked_for_once_and_handed_over_once(desk: Desk) -> None:
    for _ in range(3):
        assert await desk.look(TWO) == ["api/a/1=a-first", "api/b/1=b-first"]
    [asked] = desk.vault.lender.asked
    assert [(one.plugin, one.plugin_version, one.slot, one.entry) for one in asked.requests] == [
        ("raw", "1.0.0", "api", "a"),
        ("raw", "1.0.0", "api", "b"),
    ]
    given = calls(desk.folder, "Authenticate")
    assert [(one["entry"], one["version"]) for one in given] == [("a", 1), ("b", 1)]
    assert all(one["fields"] == ["token"] for one in given), "what the slot does not declare stays here"


async def test_nothing_is_lent_for_transforming(desk: Desk) -> None:
    (result,) = await desk.broker.transform([group(ONE, "a")])
    assert [outcome.skipped.reason for outcome in result.outcomes] == ["SEEN"]
    assert not desk.vault.lender.asked
    assert not calls(desk.folder, "Authenticate")


async def test_a_newer_version_is_handed_over_at_once_though_nobody_calls(desk: Desk) -> None:
    await desk.look()
    desk.vault.lender.secrets[ONE.connection, "a"] = (2, b"second")
    desk.vault.lender.tell(Lease.STATE_OUTDATED, ONE, 1)
    await until(lambda: [one["version"] for one in calls(desk.folder, "Authenticate")] == [1, 2], 30)
    assert await desk.look() == ["api/a/2=second"]


async def test_another_credential_in_the_slot_replaces_one_with_a_higher_version(desk: Desk) -> None:
    desk.vault.lender.secrets[ONE.connection, "a"] = (7, b"seventh")
    await desk.look()
    desk.vault.lender.secrets[ONE.connection, "a"] = (1, b"of another")
    desk.vault.lender.tell(Lease.STATE_OUTDATED, ONE, 7)

    async def replaced() -> bool:
        return await desk.look() == ["api/a/1=of another"]

    await until(replaced, 30)


async def test_what_is_revoked_is_wiped_from_the_plugin_at_once(desk: Desk) -> None:
    await desk.look()
    desk.vault.lender.secrets.clear()
    desk.vault.lender.tell(Lease.STATE_REVOKED, ONE, 1)
    await until(lambda: calls(desk.folder, "withdrawn"), 30)
    [gone] = calls(desk.folder, "withdrawn")
    assert (gone["slot"], gone["entry"], gone["version"]) == ("api", "a", 1)
    with pytest.raises(CallFailed) as refused:
        await desk.look()
    assert refused.value.failure.reason == "GRANT_MISSING"
    assert refused.value.failure.effect, "it never reached the provider, and says so"


async def test_a_credential_that_an_error_quotes_goes_no_further(desk: Desk) -> None:
    desk.vault.lender.secrets[QUOTING.connection, "a"] = (1, b"canary-of-a-token")
    with pytest.raises(CallFailed) as failed:
        await desk.look(QUOTING)
    assert failed.value.failure.message == "GET https://x.example/?token=… failed"


async def test_what_is_revoked_while_another_is_handed_over_is_not_handed_over(desk: Desk) -> None:
    desk.vault.lender.secrets[TWO.connection, "a"] = (1, b"gated")
    looking = asyncio.create_task(desk.look(TWO))
    await until(lambda: calls(desk.folder, "Authenticate"), 30)
    del desk.vault.lender.secrets[TWO.connection, "b"]
    desk.vault.lender.tell(Lease.STATE_REVOKED, TWO, 1, entry="b")
    borrowed = desk.purse._borrowed
    await until(lambda: not any("-b/leases/" in held.lease for held in borrowed.held()), 30)
    (desk.folder / "gate").touch()
    with suppress(CallFailed):
        await looking
    with suppress(CallFailed):
        assert all("b-first" not in one for one in await desk.look(TWO))
    told = [one["call"] for one in calls(desk.folder) if one.get("entry") == "b"]
    assert told[-1:] != ["Authenticate"], "it was given back, or never given"


async def test_a_straggler_of_an_earlier_life_hides_nothing_from_the_present_one(desk: Desk) -> None:
    process = desk.host.processes["raw"]
    async with process.call(30.0) as earlier:
        pass
    process.kill()
    await until(lambda: earlier.crash is not None, 30)
    await desk.look()
    await desk.calls.preparation.authenticate(process, earlier, ONE)
    desk.vault.lender.secrets.clear()
    desk.vault.lender.tell(Lease.STATE_REVOKED, ONE, 1)
    await until(lambda: calls(desk.folder, "withdrawn"), 30)


async def test_what_is_held_serves_while_the_vault_is_away_and_not_longer_than_its_lease(desk: Desk) -> None:
    desk.vault.lender.life = timedelta(seconds=6)
    await desk.look()
    await desk.vault.server.__aexit__()
    assert await desk.look() == ["api/a/1=a-first"]
    await until(lambda: calls(desk.folder, "withdrawn"), 30)
    with pytest.raises(CallFailed) as refused:
        await desk.look()
    assert refused.value.failure.reason == "VAULT_AWAY"


async def test_a_new_life_is_given_everything_again(desk: Desk) -> None:
    await desk.look()
    process = desk.host.processes["raw"]
    assert process.pid is not None
    before = process.pid
    os.kill(before, signal.SIGKILL)
    await until(lambda: process.state is State.READY and process.pid not in (None, before), 30)
    assert await desk.look() == ["api/a/1=a-first"]
    assert len(desk.vault.lender.asked) == 1, "it is held here, so nobody is asked again"


async def test_a_refused_version_is_reported_once_and_the_call_made_again_with_the_next(desk: Desk) -> None:
    desk.vault.lender.secrets[ONE.connection, "a"] = (1, b"refused")
    desk.vault.lender.renewed[ONE.connection, "a"] = (2, b"fresh")
    desk.vault.lender.advice = [Advice(advice=Advice.ADVICE_REACQUIRE)]
    assert await desk.look() == ["api/a/2=fresh"]
    [report] = desk.vault.lender.reported
    assert (report.failure.kind, report.failure.credential_version.version) == (
        FailureKind.FAILURE_KIND_AUTH_FAILED,
        1,
    )


async def test_a_refresh_under_way_is_waited_for(desk: Desk) -> None:
    desk.vault.lender.secrets[ONE.connection, "a"] = (1, b"refused")
    desk.vault.lender.renewed[ONE.connection, "a"] = (2, b"fresh")
    wait = Advice(advice=Advice.ADVICE_WAIT)
    wait.retry_after.FromMilliseconds(20)
    desk.vault.lender.advice = [wait]
    assert await desk.look() == ["api/a/2=fresh"]


async def test_refused_twice_is_reported_twice_and_told_to_the_caller(desk: Desk) -> None:
    desk.vault.lender.secrets[ONE.connection, "a"] = (1, b"refused")
    desk.vault.lender.renewed[ONE.connection, "a"] = (2, b"refused")
    desk.vault.lender.advice = [
        Advice(advice=Advice.ADVICE_REACQUIRE),
        Advice(advice=Advice.ADVICE_GIVE_UP),
    ]
    with pytest.raises(CallFailed) as refused:
        await desk.look()
    assert refused.value.failure.kind == FailureKind.FAILURE_KIND_AUTH_FAILED
    versions = [one.failure.credential_version.version for one in desk.vault.lender.reported]
    assert versions == [1, 2]
    assert len(calls(desk.folder, "HealthCheck")) == 2


async def test_a_provider_says_through_the_plugin_whether_a_credential_works(desk: Desk) -> None:
    good = await desk.broker.probe(ONE, "api", "a")
    assert isinstance(good, AuthenticateResponse.Probe)
    assert (good.valid, good.principal) == (True, "robot")
    desk.vault.lender.secrets[TWO.connection, "b"] = (1, b"refused")
    bad = await desk.broker.probe(TWO, "api", "b")
    assert isinstance(bad, AuthenticateResponse.Probe)
    assert (bad.valid, list(bad.missing_scopes)) == (False, ["write"])
    empty = await desk.broker.probe(BARE, "api", "")
    assert isinstance(empty, Failure)
    assert empty.reason == "SLOT_EMPTY"


async def test_an_empty_slot_and_one_refused_entry_stop_only_what_needs_them(desk: Desk) -> None:
    with pytest.raises(CallFailed) as empty:
        await desk.look(BARE)
    assert empty.value.failure.reason == "SLOT_EMPTY"
    del desk.vault.lender.secrets[TWO.connection, "b"]
    assert await desk.look(TWO) == ["api/a/1=a-first"]


async def test_no_secret_is_in_what_is_shown_of_anything(desk: Desk) -> None:
    await desk.look()
    purse = desk.broker.calls.preparation._purse
    [leased] = (await purse.contents(ONE, desk.host.processes["raw"].manifest)).values()
    assert "a-first" not in repr(leased)
    launch = desk.host.processes["raw"].launch
    assert launch is not None
    assert b"a-first" in launch.secrets, "what is covered in whatever the plugin says"
