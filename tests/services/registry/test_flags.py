"""Feature flags: on for whom their rules say, told in the history, and gone with a rollback."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.errors import Code, Problem
from foundation.identity import Kind, Principal, Role
from foundation.process.testing import until
from services.registry.flags.flag import Flag, share
from tests.services.registry.conftest import ADMIN, FOREIGN, Running
from tests.services.registry.plugins import CODE, make_plugin
from tests.services.registry.test_health import connect_to, transform_titles
from tieline.registry.v1 import connections_pb2 as pb
from tieline.registry.v1 import connections_pb2_grpc, flags_pb2_grpc
from tieline.registry.v1 import flags_pb2 as flags

PLATFORM = Principal(Kind.USER, "users/root", platform_roles=frozenset({Role.PLATFORM_ADMIN}))
FLAGGED = CODE.replace("title=word +", 'title=",".join(sorted(instance.flags)) + "|" + word +')
NAME = "tenants/acme/connections/main"

ids = st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True)
names = st.builds(lambda tenant, id_: f"tenants/{tenant}/connections/{id_}", ids, ids)


@given(ids, names, st.integers(0, 100), st.integers(0, 100))
@settings(max_examples=200)
def test_more_percent_never_turn_anybody_off(flag: str, name: str, one: int, other: int) -> None:
    """Feature: integrations, Property 9 (configuration): a flag grows over the same connections, in any process."""
    few, many = sorted((one, other))
    on = [made(flag, flags.Flag.Rule(percentage=p)).is_on("github", name) for p in (few, many)]
    assert on in ([False, False], [False, True], [True, True])
    assert made(flag, flags.Flag.Rule(percentage=100)).is_on("github", name)
    assert not made(flag, flags.Flag.Rule(percentage=0)).is_on("github", name)


def test_a_percentage_is_about_that_many() -> None:
    on = sum(share("one", f"tenants/a/connections/c{number}") < 30 for number in range(5000))
    assert 1350 < on < 1650
    assert share("one", NAME) != share("two", NAME) or share("one", NAME[:-1]) != share("two", NAME[:-1])


rules = st.lists(
    st.builds(
        flags.Flag.Rule,
        tenant=st.sampled_from(["", "tenants/acme", "tenants/other"]),
        plugin=st.sampled_from(["", "plugins/github", "plugins/jira"]),
        connection=st.sampled_from(["", NAME]),
        percentage=st.sampled_from([0, 100]),
    ),
    max_size=5,
)


@given(rules, st.sampled_from(["github", "jira"]), st.sampled_from([NAME, "tenants/other/connections/x"]))
@settings(max_examples=300)
def test_the_first_rule_that_fits_decides(given_: list[flags.Flag.Rule], plugin: str, name: str) -> None:
    """Feature: integrations, Property 9 (configuration): what is empty fits everything, the first that fits decides."""
    fitting = [
        rule.percentage == 100
        for rule in given_
        if (not rule.tenant or name.startswith(f"{rule.tenant}/"))
        and rule.plugin in ("", f"plugins/{plugin}")
        and rule.connection in ("", name)
    ]
    assert made("x", *given_).is_on(plugin, name) is (fitting[0] if fitting else False)


def made(id_: str, *of: flags.Flag.Rule) -> Flag:
    return Flag(id_, flags.Flag(rules=of))


@asynccontextmanager
async def stubs(registry: Running) -> AsyncIterator[tuple[Any, Any]]:
    async with registry.as_(PLATFORM) as root, registry.as_(ADMIN) as ada:
        yield flags_pb2_grpc.FlagServiceStub(root), connections_pb2_grpc.ConnectionServiceStub(ada)


async def history(stub: Any) -> Sequence[pb.ConnectionRevision]:
    answer = await stub.ListConnectionRevisions(pb.ListConnectionRevisionsRequest(parent=NAME))
    found: Sequence[pb.ConnectionRevision] = answer.connection_revisions
    return found


async def becomes(registry: Running, title: str) -> None:
    async def is_so() -> bool:
        return await transform_titles(registry) == [title]

    await until(is_so, 60)


async def test_a_flip_is_a_revision_of_whom_it_touches_and_is_rolled_back_with_it(
    registry: Running, tmp_path: Path
) -> None:
    make_plugin(tmp_path / "plugins", "one", code=FLAGGED)
    await connect_to(registry, "one")
    await becomes(registry, "|hello")
    async with stubs(registry) as (flag, connection):
        acme = flags.Flag.Rule(tenant="tenants/acme", percentage=100)
        one = await flag.CreateFlag(
            flags.CreateFlagRequest(
                flag_id="new-parser", flag=flags.Flag(description="Faster.", rules=[acme])
            )
        )
        other = flags.Flag(rules=[flags.Flag.Rule(tenant="tenants/other", percentage=100)])
        await flag.CreateFlag(flags.CreateFlagRequest(flag_id="for-others", flag=other))
        await becomes(registry, "new-parser|hello")
        newest, _ = await history(connection)
        assert newest.author == "flags/new-parser by users/root"
        assert list(newest.changed_fields) == ["flags"]
        assert ("connection.flag", NAME, "INTENT") in registry.audit.said

        present = await connection.GetConnection(pb.GetConnectionRequest(name=NAME))
        assert list(present.flags) == ["new-parser"]
        await connection.RollbackConnection(
            pb.RollbackConnectionRequest(name=NAME, revision=1, etag=present.etag)
        )
        await becomes(registry, "|hello")
        words = flags.Flag(name=one.name, etag=one.etag, description="Much faster.")
        one = await flag.UpdateFlag(
            flags.UpdateFlagRequest(flag=words, update_mask=FieldMask(paths=["description"]))
        )
        assert (await flag.GetFlag(flags.GetFlagRequest(name=one.name))).description == "Much faster."
        rows = await registry.sql("select followed = version as follows from registry.flags")
        assert all(row["follows"] for row in rows), "what changes no rule moves nobody"
        await becomes(registry, "|hello")

        await flag.DeleteFlag(flags.DeleteFlagRequest(name=one.name, etag=one.etag))
        await flag.DeleteFlag(flags.DeleteFlagRequest(name=one.name))

        async def is_gone() -> bool:
            return not await registry.sql("select 1 from registry.flags where id = 'new-parser'")

        await until(is_gone, 60)


async def test_a_new_connection_begins_with_the_flags_that_are_on_and_keeps_them_over_updates(
    registry: Running, tmp_path: Path
) -> None:
    make_plugin(tmp_path / "plugins", "one", code=FLAGGED)
    async with stubs(registry) as (flag, connection):
        everybody = flags.Flag(rules=[flags.Flag.Rule(plugin="plugins/one", percentage=100)])
        await flag.CreateFlag(flags.CreateFlagRequest(flag_id="a", flag=everybody))
        await connect_to(registry, "one")
        await becomes(registry, "a|hello")
        present = await connection.GetConnection(pb.GetConnectionRequest(name=NAME))
        assert present.revision == 1
        present.title = "Another"
        await connection.UpdateConnection(
            pb.UpdateConnectionRequest(connection=present, update_mask=FieldMask(paths=["title"]))
        )
        after = await connection.GetConnection(pb.GetConnectionRequest(name=NAME))
        assert (after.title, list(after.flags), after.revision) == ("Another", ["a"], 2)


async def test_what_cannot_be_a_flag_is_refused(registry: Running) -> None:
    async with stubs(registry) as (flag, _):
        for rule, field in (
            (flags.Flag.Rule(percentage=101), "percentage"),
            (flags.Flag.Rule(tenant="acme", percentage=1), "tenant"),
            (flags.Flag.Rule(tenant="tenants/a", connection="tenants/b/connections/c"), "connection"),
        ):
            with pytest.raises(Problem, match=field) as refused:
                await flag.CreateFlag(flags.CreateFlagRequest(flag_id="x", flag=flags.Flag(rules=[rule])))
            assert refused.value.code is Code.INVALID_ARGUMENT
        await flag.CreateFlag(flags.CreateFlagRequest(flag_id="x", request_id="r"))
        await flag.CreateFlag(flags.CreateFlagRequest(flag_id="x", request_id="r"))
        with pytest.raises(Problem) as there:
            await flag.CreateFlag(flags.CreateFlagRequest(flag_id="x"))
        assert there.value.code is Code.ALREADY_EXISTS
        stale = flags.Flag(name="flags/x", etag="77", description="d")
        with pytest.raises(Problem) as conflict:
            await flag.UpdateFlag(
                flags.UpdateFlagRequest(flag=stale, update_mask=FieldMask(paths=["description"]))
            )
        assert conflict.value.code is Code.CONFLICT
        with pytest.raises(Problem, match="etag"):
            await flag.UpdateFlag(
                flags.UpdateFlagRequest(
                    flag=flags.Flag(name="flags/x"), update_mask=FieldMask(paths=["rules"])
                )
            )
    async with registry.as_(FOREIGN) as channel:
        with pytest.raises(Problem) as refused:
            await flags_pb2_grpc.FlagServiceStub(channel).ListFlags(flags.ListFlagsRequest())
        assert refused.value.code is Code.ROLE_MISSING
