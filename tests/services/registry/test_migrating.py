"""Settings of an older version: translated by the plugin at an update, a rollback and an upgrade; never silently."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from foundation.errors import Code, Problem
from foundation.identity import Kind, Principal, Role
from foundation.process.testing import until
from tests.services.registry.choosy import People, make_choosy, people, settings
from tests.services.registry.conftest import Running
from tieline.registry.v1 import catalogue_pb2, catalogue_pb2_grpc, processes_pb2, processes_pb2_grpc
from tieline.registry.v1.connections_pb2 import Connection

ROOT = Principal(Kind.USER, "users/root", platform_roles=frozenset({Role.PLATFORM_ADMIN}))
RENAMED = "return {'phrase': settings['word']} if 'word' in settings else settings"
WRONG = "return {'neither': 1}"
REFUSED = "raise Failure(FailureKind.INVALID_CONFIG, 'LOST', 'the word cannot be translated')"


@pytest.fixture(autouse=True)
def plugin(tmp_path: Path) -> Path:
    return make_choosy(tmp_path / "plugins")


@asynccontextmanager
async def processes(registry: Running) -> AsyncIterator[Any]:
    async with registry.as_(ROOT) as channel:
        yield processes_pb2_grpc.ProcessServiceStub(channel)


async def publish(registry: Running, plugin: Path, version: str = "2.0.0", migrate: str = RENAMED) -> None:
    make_choosy(plugin.parent, version=version, key="phrase", migrate=migrate, folder=f"choosy-{version}")

    async def known() -> bool:
        async with registry.as_(ROOT) as channel:
            stub: Any = catalogue_pb2_grpc.CatalogueServiceStub(channel)
            name = f"plugins/choosy/versions/{version}"
            try:
                await stub.GetPluginVersion(catalogue_pb2.GetPluginVersionRequest(name=name))
            except Problem:
                return False
            return True

    await until(known, 30)


async def upgrade(registry: Running, seconds: int, version: str = "2.0.0") -> processes_pb2.Rollout:
    async with processes(registry) as stub:
        request = processes_pb2.UpgradePluginRequest(name="plugins/choosy", to_version=version)
        request.observation.FromSeconds(seconds)
        rollout: processes_pb2.Rollout = await stub.UpgradePlugin(request)
        return rollout


async def rollout_is(registry: Running, name: str, *states: int) -> processes_pb2.Rollout:
    async with processes(registry) as stub:

        async def is_so() -> bool:
            found = await stub.GetRollout(processes_pb2.GetRolloutRequest(name=name))
            return found.state in states

        await until(is_so, 60)
        rollout: processes_pb2.Rollout = await stub.GetRollout(processes_pb2.GetRolloutRequest(name=name))
        return rollout


async def revision_is(ada: People, number: int) -> Connection:
    async def is_so() -> bool:
        return (await ada.get()).applied_revision == number

    await until(is_so, 60)
    return await ada.get()


async def test_an_upgrade_stores_what_it_made_of_settings_as_a_revision_that_says_so(
    plugin: Path, registry: Running
) -> None:
    async with people(registry) as ada:
        await ada.make("main", "hi")
        assert await ada.titles() == ["hello:hi"]
        await publish(registry, plugin)
        rollout = await upgrade(registry, 1)
        said = [await ada.titles() for _ in range(20)]
        assert {title for (title,) in said} == {"hello:hi"}, "no call in between sees untranslated settings"
        now = await revision_is(ada, 2)
        assert (now.settings, now.resolved_version) == (settings("hi", "phrase"), "2.0.0")
        assert await ada.titles() == ["hello:hi"]
        new, old = await ada.history()
        assert new.author == "services/registry: settings migrated from 1.0.0 to 2.0.0"
        assert old.connection.settings == settings("hi")
        await rollout_is(registry, rollout.name, processes_pb2.Rollout.STATE_DONE)
    assert ("connection.migrate", now.name, "INTENT") in registry.audit.said


async def test_an_upgrade_that_is_taken_back_takes_its_settings_along(
    plugin: Path, registry: Running
) -> None:
    async with people(registry) as ada:
        await ada.make("main", "hi")
        await publish(registry, plugin)
        rollout = await upgrade(registry, 3600)
        await revision_is(ada, 2)
        async with processes(registry) as stub:
            await stub.CancelRollout(processes_pb2.CancelRolloutRequest(name=rollout.name))
        said = [await ada.titles() for _ in range(20)]
        assert {title for (title,) in said} == {"hello:hi"}
        now = await revision_is(ada, 3)
        assert (now.settings, now.resolved_version) == (settings("hi"), "1.0.0")
        newest, *_ = await ada.history()
        assert newest.rollback_of == 1
        assert "1.0.0 serves again" in newest.author


@pytest.mark.parametrize(("migrate", "words"), [(WRONG, "neither"), (REFUSED, "cannot be translated")])
async def test_where_neither_document_fits_the_version_stays(
    plugin: Path, registry: Running, migrate: str, words: str
) -> None:
    async with people(registry) as ada:
        made = await ada.make("main", "hi")
        await publish(registry, plugin, migrate=migrate)
        rollout = await upgrade(registry, 3600)
        over = await rollout_is(registry, rollout.name, processes_pb2.Rollout.STATE_ROLLED_BACK)
        assert words in over.failure.message
        assert made.name in over.failure.message
        assert await ada.titles() == ["hello:hi"]
        pinned = await ada.update(made, ["version_range"], version_range="<2")
        with pytest.raises(Problem) as refused:
            await ada.update(await ada.applied(), ["version_range"], version_range=">=2")
        assert refused.value.code is Code.INVALID_ARGUMENT
        assert words in refused.value.text
        assert (await ada.get()).revision == pinned.revision


async def test_a_person_who_moves_a_pin_sees_both_revisions_and_a_rollback_is_translated_too(
    plugin: Path, registry: Running
) -> None:
    async with people(registry) as ada:
        made = await ada.make("main", "hi", version_range="<2")
        await publish(registry, plugin)
        told = await ada.update(made, ["version_range"], version_range=">=1")
        assert told.revision == 2, "the version that serves fits: nothing is to be translated"
        moved = await ada.update(await ada.applied(), ["version_range"], version_range=">=2")
        assert (moved.revision, moved.settings) == (4, settings("hi", "phrase"))
        await revision_is(ada, 4)
        assert await ada.titles() == ["hello:hi"]
        translated, pin, *_ = await ada.history()
        assert (list(pin.changed_fields), pin.author) == (["version_range"], "users/ada")
        assert list(translated.changed_fields) == ["settings"]
        assert "migrated from 1.0.0 to 2.0.0" in translated.author
        back = await ada.rollback(await ada.get(), 1)
        assert (back.revision, back.settings) == (5, settings("hi")), "the old version again, exactly"
        await revision_is(ada, 5)
        assert await ada.titles() == ["hello:hi"]
        with pytest.raises(Problem, match="phrase"):
            await ada.update(await ada.get(), ["settings"], settings=settings("hi", "phrase"))
