"""Webhook subscriptions: made once when a connection works, renewed in time, removed at its end, whatever dies meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as sets
from hypothesis import strategies as st

from foundation.engines.testing import Served
from foundation.process.testing import until
from services.registry.connections.connection import Application
from services.registry.connections.connection import Connection as Kept
from services.registry.connections.connection import State as ConnectionState
from services.registry.operations.machine import START_WITHIN
from services.registry.operations.operation import Progress, Repeats, State
from services.registry.subscriptions.subscription import (
    Step,
    Subscription,
    Wish,
    concluded,
    failed,
    gone,
    wanted,
)
from services.registry.subscriptions.wishes import wishes
from tests.services.registry.acting import acting_settings, lines
from tests.services.registry.conftest import ADMIN, Running, prepared, ready
from tests.services.registry.plugins import make_plugin
from tests.services.registry.test_operations_killed import kill, living, waited_out
from tieline.common.v1.failure_pb2 import Failure, FailureKind
from tieline.plugin.v1.manifest_pb2 import Action, CredentialSlot, Manifest
from tieline.plugin.v1.webhook_pb2 import Provisioning, Webhook
from tieline.registry.v1 import connections_pb2_grpc
from tieline.registry.v1.connections_pb2 import (
    Connection,
    CreateConnectionRequest,
    GetConnectionRequest,
    SlotBinding,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WISH = Wish(url="https://hooks.acme.example/hooks/x", create="hook", renew="rehook", remove="unhook")
REST = """
[[actions]]
name = "hook"
idempotency = "none"

[[actions]]
name = "rehook"
idempotency = "checked"

[[actions]]
name = "unhook"
idempotency = "checked"
"""
PLUGIN = """
import asyncio, json, os, signal
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from tieline.sdk import Done, Effect, Failure, FailureKind, NeverArrived, serve

HERE = Path("where")


def hooks():
    file = HERE / "hooks.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


class Plugin:
    async def act(self, instance, action):
        if (HERE / "offline").exists():
            raise Failure(FailureKind.TRANSIENT, "OFFLINE", effect=Effect.NONE)
        with (HERE / "hooks.jsonl").open("a") as log:
            log.write(json.dumps({"action": action.name, "key": action.key, **action.arguments}) + "\\n")
        while (HERE / f"hold {action.name}").exists():
            await asyncio.sleep(0.01)
        return self.answer(action)

    def answer(self, action):
        life = float((HERE / "life").read_text()) if (HERE / "life").exists() else 0
        expires = {"expires_at": (datetime.now(UTC) + timedelta(seconds=life)).isoformat()} if life else {}
        return Done({"subscription_id": action.arguments["subscription_id"] or "hook-1", **expires})

    async def outcome(self, instance, action):
        return self.answer(action) if any(one["key"] == action.key for one in hooks()) else NeverArrived()


if __name__ == "__main__":
    serve(Plugin())
"""


def make_hooking(below: Path) -> Path:
    """It has no slot to call with, so its actions need no credential."""
    folder = make_plugin(below / "plugins", "hooking", rest=REST)
    (folder / "plugin.py").write_text(PLUGIN.replace('Path("where")', f"Path({str(below)!r})"))
    manifest = (folder / "plugin.toml").read_text()
    manifest = manifest.replace('["release"]', '["release", "get_operation"]').replace(
        'signature = { hmac = { signature = { header = "x-signature" } } }',
        'signature = { hmac = { signature = { header = "x-signature" } } }\n'
        'provisioning = { create = "hook", renew = "rehook", remove = "unhook" }',
    )
    (folder / "plugin.toml").write_text(manifest)
    return below


async def connect(running: Running, id_: str = "main") -> Connection:
    hook = SlotBinding(slot="webhook", credential="tenants/acme/credentials/hook")
    request = CreateConnectionRequest(
        parent="tenants/acme",
        connection_id=id_,
        connection=Connection(plugin="plugins/hooking", credentials=[hook]),
    )
    async with running.as_(ADMIN) as channel:
        return await connections_pb2_grpc.ConnectionServiceStub(channel).CreateConnection(request)


async def shown(running: Running, id_: str = "main") -> list[Any]:
    request = GetConnectionRequest(name=f"tenants/acme/connections/{id_}")
    async with running.as_(ADMIN) as channel:
        found = await connections_pb2_grpc.ConnectionServiceStub(channel).GetConnection(request)
    return list(found.subscriptions)


async def subscribed(running: Running) -> bool:
    return [one.subscription_id for one in await shown(running)] == ["hook-1"]


@asynccontextmanager
async def world(engines: Served, below: Path) -> AsyncIterator[Running]:
    make_hooking(below)
    async with prepared(engines, below) as running:
        running.settings = acting_settings(running.settings)
        yield running


async def test_it_is_made_when_the_connection_works_and_shown(engines: Served, tmp_path: Path) -> None:
    async with world(engines, tmp_path) as running:
        with living(running.settings, tmp_path / "first"):
            await ready(running)
            made = await connect(running)
            await until(lambda: subscribed(running), 60)
            (called,) = lines(tmp_path, "hooks")
            assert called["url"] == made.webhook_urls["events"]
            assert (called["webhook"], called["event_types"]) == ("events", ["hooking.said"])
            (told,) = await shown(running)
            assert (told.webhook, told.HasField("expire_time"), told.HasField("failure")) == (
                "events",
                False,
                False,
            )


async def test_one_that_ends_is_renewed_before(engines: Served, tmp_path: Path) -> None:
    (tmp_path / "life").write_text("3600")
    async with world(engines, tmp_path) as running:
        with living(running.settings, tmp_path / "first"):
            await ready(running)
            await connect(running)
            for count in (1, 2, 3):
                await until(partial(lasts, running, count), 90)
                assert len(lines(tmp_path, "hooks")) == count
                # Time passes: two thirds of its life are over.
                await running.sql("update registry.subscriptions set renew_time = now()")
    called = lines(tmp_path, "hooks")
    assert [one["action"] for one in called[:3]] == ["hook", "rehook", "rehook"]
    assert {one["subscription_id"] for one in called[1:]} == {"hook-1"}
    assert len({one["key"] for one in called}) == len(called)


async def lasts(running: Running, number: int) -> bool:
    """Whether so many steps were taken, and the last one gave it a life to renew."""
    if not any(one.HasField("expire_time") for one in await shown(running)):
        return False
    rows = await running.sql("select from registry.subscriptions where number = $1 and step = 'idle'", number)
    return len(rows) == 1


async def test_what_cannot_be_made_says_why_and_is_made_later(engines: Served, tmp_path: Path) -> None:
    async with world(engines, tmp_path) as running:
        (tmp_path / "offline").touch()
        with living(running.settings, tmp_path / "first"):
            await ready(running)
            await connect(running)

            async def waits() -> bool:
                rows = await running.sql("select state from registry.operations where away")
                return [row["state"] for row in rows] == ["queued"]

            await until(waits, 60)
            assert await shown(running) == []
            (tmp_path / "offline").unlink()
            await until(lambda: subscribed(running), 90)


@pytest.mark.parametrize("action", ["hook", "unhook"])
async def test_a_registry_killed_at_a_step_takes_it_once(
    engines: Served, tmp_path: Path, action: str
) -> None:
    async with world(engines, tmp_path) as running:
        (tmp_path / f"hold {action}").touch()
        with living(running.settings, tmp_path / "first") as first:
            await ready(running)
            await connect(running)
            if action == "unhook":
                await until(lambda: subscribed(running), 60)
                await running.sql("update registry.connections set state = 'deleting'")
                await running.sql("update registry.picture set generation = generation + 1")
            await until(lambda: [one for one in lines(tmp_path, "hooks") if one["action"] == action], 60)
            await kill(first)
        await waited_out(running)
        (tmp_path / f"hold {action}").unlink()
        with living(running.settings, tmp_path / "second"):
            await ready(running)
            if action == "hook":
                await until(lambda: subscribed(running), 90)
            else:

                async def removed() -> bool:
                    rows = await running.sql("select step from registry.subscriptions")
                    return [row["step"] for row in rows] == ["gone"]

                await until(removed, 90)
    calls = [one for one in lines(tmp_path, "hooks") if one["action"] == action]
    assert len({one["key"] for one in calls}) == 1, "it is one operation, whoever does it"
    assert action == "unhook" or len(calls) == 1


def fresh(**more: Any) -> Subscription:
    row = Subscription(
        tenant="acme", connection="main", webhook="events", instance="i", url=WISH.url, due=NOW
    )
    return replace(row, **more)


def progress(state: State, *, output: bytes | None = None, failure: Failure | None = None) -> Progress:
    due = None if state is State.AMBIGUOUS else NOW
    return Progress(
        state=state,
        due=due,
        start_deadline=NOW + START_WITHIN,
        repeats=Repeats.NONE,
        output=output,
        failure=failure,
    )


def test_a_life_is_renewed_at_two_thirds() -> None:
    ends = (NOW + timedelta(days=30)).isoformat().encode()
    done = progress(State.SUCCEEDED, output=b'{"subscription_id": 7, "expires_at": "' + ends + b'"}')
    made = concluded(fresh(operation="o"), done, WISH, NOW)
    assert (made.step, made.subscription_id, made.renew_time) == (Step.IDLE, "7", NOW + timedelta(days=20))
    assert wanted(made, WISH, NOW + timedelta(days=19)) == made
    renewing = wanted(made, WISH, NOW + timedelta(days=20))
    assert (renewing.step, renewing.number, renewing.operation) == (Step.RENEW, 2, None)
    too_late = wanted(made, WISH, NOW + timedelta(days=31))
    assert too_late.step is Step.CREATE
    assert wanted(made, replace(WISH, url="https://elsewhere"), NOW).step is Step.REMOVE
    assert wanted(made, None, NOW).step is Step.REMOVE


@pytest.mark.parametrize(
    "output",
    [
        None,
        b"{}",
        b'{"subscription_id": ""}',
        b'{"subscription_id": []}',
        b'{"subscription_id": "x", "expires_at": 7}',
        b'{"subscription_id": "x", "expires_at": "tomorrow"}',
    ],
)
def test_an_answer_that_is_none_is_looked_for_again(output: bytes | None) -> None:
    after = concluded(fresh(operation="o"), progress(State.SUCCEEDED, output=output), WISH, NOW)
    assert (after.step, after.number, after.operation) == (Step.CREATE, 2, None)
    assert after.failure is not None
    assert after.failure.reason == "OUTPUT_UNUSABLE"
    assert after.due > NOW


def test_what_is_not_there_any_more_is_removed_or_made_anew() -> None:
    missing = progress(State.FAILED, failure=Failure(kind=FailureKind.FAILURE_KIND_NOT_FOUND))
    assert concluded(fresh(step=Step.REMOVE, operation="o"), missing, None, NOW).step is Step.GONE
    anew = concluded(fresh(step=Step.RENEW, subscription_id="x", operation="o"), missing, WISH, NOW)
    assert (anew.step, anew.number) == (Step.CREATE, 2)
    assert concluded(fresh(operation="o"), missing, None, NOW).step is Step.GONE


def test_what_needs_a_person_says_so_and_is_not_repeated() -> None:
    why = Failure(kind=FailureKind.FAILURE_KIND_TRANSIENT, reason="ATTEMPT_LOST")
    doubtful = concluded(fresh(operation="o"), progress(State.AMBIGUOUS, failure=why), WISH, NOW)
    assert (doubtful.number, doubtful.operation, doubtful.failure) == (1, "o", why)


@sets(max_examples=300)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([State.SUCCEEDED, State.FAILED, State.DEAD_LETTERED, State.CANCELLED]),
            st.booleans(),
            st.booleans(),
        ),
        max_size=30,
    )
)
def test_no_number_comes_twice(story: list[tuple[State, bool, bool]]) -> None:
    """Each step has a key of its own.

    Feature: integrations, Property 41: however operations end and wishes change, two operations of one webhook
    of one connection never have the same key, so no step is taken for another one.
    """
    row, now, keys = fresh(), NOW, []
    for state, wishing, lasting in story:
        now += timedelta(days=1)
        wish = WISH if wishing else None
        row = wanted(row, wish, now)
        if not row.under_way:
            continue
        keys.append(row.key)
        output = b'{"subscription_id": "x"}' if lasting else b"{}"
        row = concluded(replace(row, operation="o"), progress(state, output=output), wish, now)
        assert row.operation is None
    assert len(set(keys)) == len(keys)


def test_pauses_grow_to_a_bound() -> None:
    row = fresh()
    for _ in range(50):
        row = failed(row, Failure(), NOW)
    assert row.due == NOW + timedelta(hours=6)
    assert gone(row).failures == 0


def test_only_what_a_connection_has_the_credential_for_is_seen_to() -> None:
    manifest = Manifest(
        name="p",
        credential_slots=[CredentialSlot(name="api")],
        webhooks=[
            Webhook(name="events", provisioning=Provisioning(create="hook", remove="unhook")),
            Webhook(name="by_hand"),
        ],
        actions=[Action(name="hook")],
    )

    def wished(state: ConnectionState = ConnectionState.ACTIVE, slot: str = "api", applied: int = 1) -> Any:
        wanted = Connection(credentials=[SlotBinding(slot=slot)])
        connection = Kept(
            tenant="acme",
            id="main",
            instance="i",
            wanted=wanted,
            settings_version="1.0.0",
            revision=1,
            applied_revision=applied,
            state=state,
            state_time=NOW,
            application=Application.APPLIED,
            application_failure=None,
            resolved_version="1.0.0",
            endpoints={"events": "e", "by_hand": "h"},
            create_time=NOW,
            update_time=NOW,
        )
        return dict(wishes(connection, manifest, "https://x"))

    there = {"events": Wish(url="https://x/hooks/e", create="hook")}
    assert wished() == there, "what the manifest names and does not have is nobody's to call"
    assert wished(ConnectionState.PAUSED) == there
    assert wished(slot="webhook") == {}
    assert wished(ConnectionState.DELETING) == {}
    assert wished(applied=0) == {}
