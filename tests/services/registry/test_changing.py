"""Changing connections through the API, with a plugin that may refuse at each step: what serves goes on serving."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foundation.errors import Code, Problem
from foundation.process.testing import until
from services.registry.broker.failures import later, transient
from services.registry.connections.applying import LONGEST_PAUSE, pause
from services.registry.connections.servicer import watched
from tests.services.registry.choosy import bound, make_choosy, people, settings
from tests.services.registry.conftest import FOREIGN, GATEWAY, OPERATOR, VIEWER, Running
from tieline.common.v1.failure_pb2 import (
    FAILURE_KIND_AUTH_FAILED,
    FAILURE_KIND_INTERNAL,
    FAILURE_KIND_INVALID_CONFIG,
    FAILURE_KIND_PERMISSION_DENIED,
    FAILURE_KIND_TRANSIENT,
)
from tieline.registry.v1 import connections_pb2 as pb
from tieline.registry.v1 import connections_pb2_grpc
from tieline.registry.v1.connections_pb2 import Connection

APPLIED, FAILED, PENDING = (
    Connection.APPLICATION_APPLIED,
    Connection.APPLICATION_FAILED,
    Connection.APPLICATION_PENDING,
)
API, HOOK = bound("api", "token"), bound("webhook", "hook")


@pytest.fixture(autouse=True)
def plugin(tmp_path: Path) -> Path:
    return make_choosy(tmp_path / "plugins")


@pytest.fixture(autouse=True)
def credentials(plugin: Path, registry: Running) -> None:  # noqa: ARG001 - it is there before the registry
    for name in ("token", "refused", "narrow", "lax"):
        full = f"tenants/acme/credentials/{name}"
        registry.vault.credentials.add(full)
        registry.vault.tokens[full] = name.encode()


async def test_an_update_is_a_revision_that_serves_once_it_was_tried(registry: Running) -> None:
    async with people(registry) as ada:
        made = await ada.make("main", "old", API)
        assert (made.application, made.applied_revision) == (APPLIED, 1)
        changed = await ada.say(made, "new")
        assert (changed.revision, changed.etag != made.etag) == (2, True)
        now = await ada.applied()
        assert (now.revision, now.applied_revision, now.state) == (2, 2, Connection.STATE_ACTIVE)
        assert await ada.titles() == ["hello:new"]
        again = await ada.say(now, "new")
        assert (again.revision, again.etag) == (2, now.etag), "what changes nothing makes no revision"
    assert ("connection.update", made.name, "INTENT") in registry.audit.said


async def test_whose_etag_is_old_changes_nothing(registry: Running) -> None:
    async with people(registry) as ada:
        made = await ada.make("main", "old")
        await ada.say(made, "new")
        for change in (ada.say(made, "lost"), ada.rollback(made, 1), ada.delete("main", made.etag)):
            with pytest.raises(Problem) as refused:
                await change
            assert refused.value.code is Code.CONFLICT
        bare = Connection(name=made.name)
        with pytest.raises(Problem, match="etag"):
            await ada.say(bare, "lost")
        assert (await ada.get()).revision == 2


async def test_of_two_updates_at_the_same_moment_one_wins(registry: Running) -> None:
    async with people(registry) as ada:
        made = await ada.make("main", "old")
        answers = await asyncio.gather(
            *(ada.say(made, f"w{number}") for number in range(8)), return_exceptions=True
        )
        won = [one for one in answers if isinstance(one, Connection)]
        lost = [one for one in answers if isinstance(one, Problem)]
        assert len(won) == 1
        assert {one.code for one in lost} == {Code.CONFLICT}
        assert (await ada.get()).revision == 2
        assert len(await ada.history()) == 2


async def test_what_lists_show_is_one_line_that_steers_no_terminal(registry: Running) -> None:
    texts: list[tuple[dict[str, Any], str]] = [
        ({"title": "two\nlines"}, "connection.title"),
        ({"title": "\x1b[2Jgone"}, "connection.title"),
        ({"title": "ü" * 129}, "longer than 256 bytes"),
        ({"labels": {"team": "a\x9bb"}}, "connection.labels"),
    ]
    async with people(registry) as ada:
        made = await ada.make()
        for fields, complaint in texts:
            with pytest.raises(Problem) as refused:
                await ada.update(made, list(fields), **fields)
            assert refused.value.code is Code.INVALID_ARGUMENT
            assert complaint in refused.value.text
        assert (await ada.get()).revision == 1


async def test_what_is_answered_as_serving_serves_at_once(registry: Running) -> None:
    async with people(registry) as ada:
        now = await ada.make("main", "0")
        for number in range(1, 13):
            now = await ada.say(now, str(number))
            assert (now.applied_revision, await ada.titles()) == (number + 1, [f"hello:{number}"])


async def test_a_mask_names_what_may_change(registry: Running) -> None:
    masks: list[tuple[list[str], str]] = [
        ([], "it is empty: name the fields"),
        (["plugin"], "never changes"),
        (["colour"], "there is no such field"),
        (["settings", "state"], "only the platform says it"),
        (["update_time"], "only the platform says it"),
        (["labels.team"], "there is no such field"),
        (["*"], "there is no such field"),
    ]
    async with people(registry) as ada:
        made = await ada.make()
        for mask, complaint in masks:
            with pytest.raises(Problem) as refused:
                await ada.update(made, mask, title="x")
            assert refused.value.code is Code.INVALID_ARGUMENT, mask
            assert complaint in refused.value.text


async def test_only_what_the_mask_names_changes(registry: Running) -> None:
    async with people(registry) as ada:
        made = await ada.make("main", "old", title="First", labels={"team": "a"})
        await ada.update(made, ["title", "labels"], settings=settings("ignored"))
        now = await ada.get()
        assert (now.title, dict(now.labels), now.settings) == ("", {}, settings("old"))


async def test_validate_only_tells_and_changes_nothing(registry: Running) -> None:
    async with people(registry) as ada:
        made = await ada.make("main", "old")
        told = await ada.say(made, "new", validate_only=True)
        assert (told.settings, told.revision) == (settings("new"), 2)
        with pytest.raises(Problem, match="that word is forbidden"):
            await ada.say(made, "forbidden", validate_only=True)
        assert await ada.get() == made


async def test_the_same_request_again_changes_nothing_again(registry: Running) -> None:
    once, other = str(uuid.uuid4()), str(uuid.uuid4())
    async with people(registry) as ada:
        made = await ada.make("main", "old")
        answers = await asyncio.gather(*(ada.say(made, "new", request_id=once) for _ in range(8)))
        assert {one.revision for one in answers} == {2}
        now = await ada.applied()
        for _ in range(2):
            back = await asyncio.gather(*(ada.rollback(now, 1, request_id=other) for _ in range(8)))
            assert {one.revision for one in back} == {3}
        with pytest.raises(Problem) as refused:
            await ada.say(await ada.get(), "something else", request_id=once)
        assert refused.value.code is Code.ALREADY_EXISTS
        assert len(await ada.history()) == 3


@pytest.mark.parametrize(
    ("word", "credential", "outcome", "words"),
    [
        ("broken", "token", (FAILURE_KIND_INTERNAL, PENDING), "RuntimeError"),
        ("new", "refused", (FAILURE_KIND_AUTH_FAILED, FAILED), "401"),
        (
            "new",
            "narrow",
            (FAILURE_KIND_PERMISSION_DENIED, FAILED),
            "write is missing, needed for: to answer",
        ),
        ("sick", "token", (FAILURE_KIND_TRANSIENT, PENDING), "it has a fever"),
        ("sick for good", "token", (FAILURE_KIND_INVALID_CONFIG, FAILED), "it has a fever"),
    ],
)
async def test_a_revision_that_fails_at_a_step_leaves_the_one_before_serving(
    registry: Running, word: str, credential: str, outcome: tuple[int, int], words: str
) -> None:
    async with people(registry) as ada:
        made = await ada.make("main", "old", API)
        await ada.titles()
        fields: dict[str, Any] = {"settings": settings(word), "credentials": [bound("api", credential)]}
        await ada.update(made, list(fields), **fields)
        tried = await ada.decided()
        assert (tried.application, tried.application_failure.kind) == (outcome[1], outcome[0])
        assert words in tried.application_failure.message
        assert "refused" not in tried.application_failure.message, "a secret stays covered"
        assert (tried.state, tried.revision, tried.applied_revision) == (Connection.STATE_ACTIVE, 2, 1)
        assert await ada.titles() == ["hello:old"]
        mended = await ada.update(tried, list(fields), settings=settings("mended"), credentials=[API])
        assert mended.revision == 3
        assert (await ada.applied()).applied_revision == 3
        assert await ada.titles() == ["hello:mended"]
        assert [one.application for one in await ada.history()] == [APPLIED, FAILED, APPLIED]


async def test_every_missing_scope_is_named_and_nothing_is_activated(registry: Running) -> None:
    async with people(registry) as ada:
        made = await ada.make("main", "x", bound("api", "narrow"))
        assert (made.state, made.application, made.applied_revision) == (
            Connection.STATE_PENDING,
            FAILED,
            0,
        )
        for words in ("write is missing, needed for: to answer", "read is missing, needed for: to look"):
            assert words in made.application_failure.message
        assert await ada.titles() == ["NOT_APPLIED"]
        # The provider's administrator grants them: somebody says so, and it is tried again.
        registry.vault.tokens["tenants/acme/credentials/narrow"] = b"wide"
        await registry.sql("update registry.connections set next_try = now() + interval '1 hour'")
    async with people(registry) as ada:
        told = await ada.make("comfort", "x", bound("api", "lax"))
        assert told.application == APPLIED, "what is optional only switches something off"
        rows = await registry.sql("select proven_accounts from registry.connections where id = 'comfort'")
        assert rows[0]["proven_accounts"] == ["account of lax"]
        checked = await ada.stub.CheckConnection(pb.CheckConnectionRequest(name=told.name))
        findings = {one.subject: one for one in checked.findings}
        assert list(findings) == [
            "settings", "credential api", "scope write", "scope read", "scope extra", "health",
        ]  # fmt: skip
        assert [one.subject for one in checked.findings if not one.ok] == ["scope extra"]
        assert "works without" in findings["scope extra"].advice


async def test_traffic_sees_only_the_old_or_the_new_and_no_failure(
    registry: Running, found: Callable[[str], None]
) -> None:
    """Twelve changes under load, every third of which is refused."""
    seen: list[str] = []
    async with people(registry) as ada:
        now = await ada.make("main", "w0", API)
        async with people(registry, FOREIGN, "other") as stranger:
            await stranger.make("main", "calm")

        async def call(id_: str) -> None:
            who = ada if id_ == "main" else stranger
            while True:
                (title,) = await who.titles("main", "x")
                seen.append(f"{id_} {title}")

        async with asyncio.TaskGroup() as tasks:
            calling = [tasks.create_task(call(id_)) for id_ in ("main", "main", "main", "other")]
            serving, allowed = "w0", {"main x:w0"}
            for number in range(1, 13):
                word = ("sick for good", f"w{number}", f"w{number}")[number % 3]
                if word.startswith("w"):
                    serving = word
                    allowed.add(f"main x:{word}")
                await ada.say(await ada.get(), word)
                now = await ada.decided()
                assert now.application == (APPLIED if word.startswith("w") else FAILED)
                count = len(seen)
                await until(lambda count=count: len(seen) > count + 12, 60)  # type: ignore[misc]
                assert set(seen[-3:]) <= {f"main x:{serving}", "other x:calm"}
            for task in calling:
                task.cancel()
        assert set(seen) == allowed | {"other x:calm"}
    found(f"12 changes under load, 4 of them refused: {len(seen)} calls, none failed")


async def test_webhooks_that_stay_keep_their_url(registry: Running) -> None:
    async with people(registry) as ada:
        made = await ada.make("main", "x", API)
        assert not made.webhook_urls, "it has no secret to verify with"
        with_hook = await ada.update(made, ["credentials"], credentials=[API, HOOK])
        url = (await ada.applied()).webhook_urls["events"]
        await ada.update(with_hook, ["title"], title="Renamed")
        now = await ada.applied()
        assert now.webhook_urls["events"] == url
        await ada.update(now, ["credentials"], credentials=[API])
        assert not (await ada.applied()).webhook_urls


async def test_who_may_not_grant_may_still_change_what_needs_no_grant(registry: Running) -> None:
    registry.vault.credentials.add("tenants/acme/credentials/more")
    async with people(registry) as ada:
        made = await ada.make("main", "old", API)
    async with people(registry, OPERATOR) as bob:
        titled = await bob.update(made, ["title"], title="By bob")
        with pytest.raises(Problem) as refused:
            await bob.update(titled, ["credentials"], credentials=[bound("api", "more")])
        assert refused.value.code is Code.ROLE_MISSING
        assert (await bob.get()).credentials == made.credentials
    for principal, code in ((VIEWER, Code.ROLE_MISSING), (FOREIGN, Code.TENANT_FOREIGN)):
        async with people(registry, principal) as eve:
            for attempt in (
                eve.say(made, "x"), eve.rollback(made, 1), eve.delete(),
                eve.stub.PauseConnection(pb.PauseConnectionRequest(name=made.name)),
                eve.stub.ResumeConnection(pb.ResumeConnectionRequest(name=made.name)),
                eve.stub.CheckConnection(pb.CheckConnectionRequest(name=made.name)),
                eve.stub.ApplyConnections(pb.ApplyConnectionsRequest(parent="tenants/acme")),
            ):  # fmt: skip
                with pytest.raises(Problem) as denied:
                    await attempt
                assert denied.value.code is code


async def test_the_history_tells_who_when_and_what_and_a_rollback_is_exact(registry: Running) -> None:
    async with people(registry) as ada:
        made = await ada.make("main", "one", API, title="First", labels={"team": "a"})
        await ada.say(made, "two")
        await ada.update(await ada.applied(), ["title"], title="Second")
        third = await ada.applied()
        await ada.rollback(third, 1)
        now = await ada.applied()
        fourth, three, two, one = await ada.history()
        assert [item.revision for item in (fourth, three, two, one)] == [4, 3, 2, 1]
        assert fourth.rollback_of == 1
        assert fourth.connection == one.connection
        assert (now.settings, now.title, dict(now.labels)) == (made.settings, "First", {"team": "a"})
        assert list(two.changed_fields) == ["settings"]
        assert json.loads(two.settings_patch) == [{"op": "replace", "path": "/word", "value": "two"}]
        assert (list(three.changed_fields), three.settings_patch) == (["title"], b"[]")
        assert list(fourth.changed_fields) == ["title", "settings"]
        assert two.author == "users/ada"
        assert two.create_time.ToNanoseconds() < three.create_time.ToNanoseconds()
        assert await ada.titles() == ["hello:one"]
        seen, token = [], ""
        while True:
            page = await ada.stub.ListConnectionRevisions(
                pb.ListConnectionRevisionsRequest(parent=made.name, page_size=2, page_token=token)
            )
            seen += list(page.connection_revisions)
            token = page.next_page_token
            if not token:
                break
        assert seen == [fourth, three, two, one], "a page's edge changes no difference"
        with pytest.raises(Problem, match="no revision 9"):
            await ada.rollback(now, 9)


async def test_many_from_one_request_each_by_itself(registry: Running) -> None:
    async with people(registry) as ada:
        there = await ada.make("there", "old")

        def wish(id_: str, word: str, **more: Any) -> Connection:
            return Connection(name=ada.name(id_), plugin="plugins/choosy", settings=settings(word), **more)

        given = [
            wish("new", "a"),
            wish("there", "changed"),
            wish("bad", "forbidden"),
            wish("new", "b"),
            Connection(name="tenants/other/connections/x", plugin="plugins/choosy"),
            wish("late", "c", etag="gone.1"),
            wish("stale", "d"),
        ]
        request = pb.ApplyConnectionsRequest(
            parent="tenants/acme", connections=given, request_id=str(uuid.uuid4())
        )
        looked = pb.ApplyConnectionsRequest()
        looked.CopyFrom(request)
        looked.validate_only = True
        before = await ada.stub.ApplyConnections(looked)
        assert [one.WhichOneof("result") for one in before.outcomes][:3] == [
            "connection",
            "connection",
            "failure",
        ]
        assert (await ada.get("there")).revision == 1
        answers = [await ada.stub.ApplyConnections(request) for _ in range(2)]
        for answer in answers:
            told = [one.failure.reason or one.connection.name.rpartition("/")[2] for one in answer.outcomes]
            assert told == [
                "new", "there", "INVALID_ARGUMENT", "TWICE", "INVALID_ARGUMENT", "NOT_FOUND", "stale",
            ]  # fmt: skip
        assert "that word is forbidden" in answers[0].outcomes[2].failure.message
        assert (await ada.applied("there")).revision == there.revision + 1, "again, and only once"
        assert (await ada.applied("new")).settings == settings("a")
        too_many = pb.ApplyConnectionsRequest(parent="tenants/acme", connections=[wish("x", "y")] * 501)
        with pytest.raises(Problem, match="500 fit"):
            await ada.stub.ApplyConnections(too_many)


async def test_the_data_plane_is_told_what_serves(registry: Running) -> None:
    told: list[dict[str, Connection]] = []

    async def watch() -> None:
        async with registry.as_(GATEWAY) as channel:
            stub: Any = connections_pb2_grpc.ConnectionServiceStub(channel)
            whole: dict[str, Connection] = {}
            async for part in stub.WatchConnections(pb.WatchConnectionsRequest()):
                whole |= {one.name: one for one in part.connections}
                if not part.more:
                    told.append(whole)
                    whole = {}

    watching = asyncio.create_task(watch())
    try:
        await until(lambda: told == [{}], 30)
        async with people(registry) as ada:
            made = await ada.make("main", "old")
            await ada.say(made, "sick for good")
            refused = await ada.decided()
        await until(lambda: told[-1].get(made.name, Connection()).revision == 2, 30)
        seen = told[-1][made.name]
        assert (seen.settings, seen.applied_revision) == (settings("old"), 1)
        assert refused.settings == settings("sick for good")
    finally:
        watching.cancel()


def test_a_picture_is_cut_by_number_and_by_size() -> None:
    small = [Connection(name=f"c{number}") for number in range(1001)]
    parts = list(watched(small, 7))
    assert [len(part.connections) for part in parts] == [500, 500, 1]
    assert [part.more for part in parts] == [True, True, False]
    large = [Connection(name=f"c{number}", settings=b"x" * 300_000) for number in range(8)]
    assert [len(part.connections) for part in watched(large, 7)] == [3, 3, 2]
    assert [(len(part.connections), part.generation) for part in watched([], 7)] == [(0, 7)]


def test_what_fails_for_a_while_is_tried_ever_more_patiently() -> None:
    why = transient("AWAY", "away")
    for attempts, longest in ((0, 0.5), (1, 1.0), (5, 16.0), (6, LONGEST_PAUSE), (1000, LONGEST_PAUSE)):
        pauses = {pause(attempts, why).total_seconds() for _ in range(50)}
        assert longest / 2 <= min(pauses) <= max(pauses) <= longest
        assert len(pauses) > 1, "never all at the same moment"
    assert pause(0, later(why, 90.0)).total_seconds() >= 90.0
