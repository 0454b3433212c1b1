"""The audit through its API and the command line, with an attacker who has the whole database."""

# ruff: noqa: S608  only the name of our own table is put together

from __future__ import annotations

import ast
import asyncio
import base64
import json
import os
import re
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from joserfc.jwk import OKPKey

import services.credentials
from foundation.errors import Code, Problem
from services.credentials.audit.requests import OURS
from tests.scenarios.suite import tieline
from tests.services.credentials.conftest import Client, Running
from tests.services.credentials.test_service import (
    CONNECTION,
    lease,
    make_credential,
    make_grant,
    make_tenant,
    refusal,
)
from tieline.credentials.v1.audit_pb2 import (
    AuditCheckpoint,
    AuditRecord,
    ListAuditRecordsRequest,
    ListPlatformAuditRecordsRequest,
    RecordAuditRequest,
    SignAuditCheckpointRequest,
    VerifyAuditRequest,
    VerifyAuditResponse,
)
from tieline.credentials.v1.tokens_pb2 import GetSigningKeysRequest

ACME = "tenants/acme"
Response = VerifyAuditResponse


@pytest.fixture
async def history(admin: Client, gateway: Client) -> list[AuditRecord]:
    """Six records of a tenant, in their order."""
    await make_tenant(admin)
    await make_credential(admin)
    await make_grant(admin)
    for _ in range(3):
        await lease(gateway)
    return (await listed(admin))[::-1]


async def listed(client: Client, **wanted: Any) -> list[AuditRecord]:
    answer = await client.audit.ListAuditRecords(ListAuditRecordsRequest(parent=ACME, **wanted))
    return list(answer.audit_records)


async def verify(client: Client, *checkpoints: AuditCheckpoint) -> VerifyAuditResponse:
    return await client.audit.VerifyAudit(VerifyAuditRequest(parent=ACME, checkpoints=checkpoints))


async def checkpoint(client: Client) -> AuditCheckpoint:
    return await client.audit.SignAuditCheckpoint(SignAuditCheckpointRequest(parent=ACME))


def record(**changed: Any) -> AuditRecord:
    wanted: dict[str, Any] = {
        "tenant": ACME,
        "action": "connection.update",
        "resource": CONNECTION,
        "outcome": AuditRecord.OUTCOME_DONE,
    }
    return AuditRecord(**(wanted | changed))


def recording(*records: AuditRecord, request_id: str = "") -> RecordAuditRequest:
    return RecordAuditRequest(records=records, request_id=request_id or str(uuid.uuid4()))


# reading


async def test_records_are_read_newest_first_and_by_what_is_asked(
    admin: Client, history: list[AuditRecord]
) -> None:
    assert [one.action for one in history] == [
        "tenant.create",
        "credential.create",
        "grant.create",
        "lease.acquire",
        "lease.acquire",
        "lease.acquire",
    ]
    assert [one.sequence for one in history] == [1, 2, 3, 4, 5, 6]
    hook = f"{ACME}/credentials/hook"
    third = history[2].time
    asked: list[tuple[dict[str, Any], list[int]]] = [
        ({"action": "lease.*"}, [6, 5, 4]),
        ({"action": "lease"}, []),
        ({"action": "grant.create"}, [3]),
        ({"principal": "services/gateway"}, [6, 5, 4]),
        ({"principal": "services/gate"}, []),
        ({"resource": hook}, [6, 5, 4, 3, 2]),
        ({"resource": ACME}, [6, 5, 4, 3, 2, 1]),
        ({"resource": "tenants/ac"}, []),
        ({"start_time": third}, [6, 5, 4, 3]),
        ({"end_time": third}, [2, 1]),
        ({"action": "lease.*", "start_time": third, "end_time": history[4].time}, [4]),
    ]
    for wanted, sequences in asked:
        assert [one.sequence for one in await listed(admin, **wanted)] == sequences, wanted


async def test_pages_lead_to_the_beginning(admin: Client, history: list[AuditRecord]) -> None:
    found: list[int] = []
    request = ListAuditRecordsRequest(parent=ACME, page_size=4)
    while True:
        page = await admin.audit.ListAuditRecords(request)
        found += [one.sequence for one in page.audit_records]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert found == [one.sequence for one in history[::-1]]
    request.page_token = base64.urlsafe_b64encode(b"x").decode()
    assert await refusal(admin.audit.ListAuditRecords(request)) is Code.INVALID_ARGUMENT


async def test_the_platform_has_records_of_its_own(admin: Client, gateway: Client, running: Running) -> None:
    registry = await running.as_("tl_registry")
    own = record(tenant="", action="plugin.release", resource="plugins/github")
    await registry.audit.RecordAudit(recording(own))
    page = await admin.audit.ListPlatformAuditRecords(ListPlatformAuditRecordsRequest(page_size=1))
    assert [one.action for one in page.audit_records] == ["plugin.release"]
    asked = gateway.audit.ListPlatformAuditRecords(ListPlatformAuditRecordsRequest())
    assert await refusal(asked) is Code.ROLE_MISSING


# records of other services


async def test_services_record_what_they_did_once(admin: Client, registry: Client) -> None:
    await make_tenant(admin)
    await make_tenant(admin, "other")
    request = recording(
        record(on_behalf_of="users/ada", principal="users/mallory", sequence=99),
        record(tenant="tenants/other", resource="tenants/other/connections/main"),
        record(action="connection.pause", outcome=AuditRecord.OUTCOME_INTENT, fields=["state"]),
        request_id=str(uuid.uuid4()),
    )
    answers = await asyncio.gather(*(registry.audit.RecordAudit(request) for _ in range(5)))
    assert {tuple(answer.sequences) for answer in answers} == {(2, 2, 3)}
    newest, first, _ = await listed(admin)
    assert (first.principal, first.on_behalf_of) == ("services/registry", "users/ada")
    assert (newest.action, list(newest.fields)) == ("connection.pause", ["state"])
    assert [one.sequence for one in await listed(admin, principal="users/ada")] == [2]
    request.records[0].action = "connection.delete"
    assert await refusal(registry.audit.RecordAudit(request)) is Code.INVALID_ARGUMENT
    assert (await verify(admin)).intact


@pytest.mark.parametrize(
    "changed",
    [
        {"action": "lease.acquire"},
        {"action": "credential.revoke"},
        {"action": "update"},
        {"action": ""},
        {"resource": ""},
        {"resource": "tenants/other/connections/main"},
        {"tenant": "acme"},
        {"tenant": "", "resource": CONNECTION},
        {"outcome": 0},
        {"outcome": 9},
        {"on_behalf_of": "ada"},
        {"intent_sequence": -1},
        {"details": {"why": "x" * 513}},
        {"details": {"why": "a\0b"}},
        {"fields": [str(number) for number in range(65)]},
    ],
)
async def test_a_record_that_cannot_be_spoils_its_request(
    admin: Client, registry: Client, changed: dict[str, Any]
) -> None:
    await make_tenant(admin)
    asked = registry.audit.RecordAudit(recording(record(), record(**changed)))
    assert await refusal(asked) is Code.INVALID_ARGUMENT
    assert len(await listed(admin)) == 1


async def test_requests_to_record_that_cannot_be(admin: Client, registry: Client) -> None:
    await make_tenant(admin)
    for request in (
        RecordAuditRequest(records=[record()]),
        recording(),
        recording(*[record()] * 501),
    ):
        assert await refusal(registry.audit.RecordAudit(request)) is Code.INVALID_ARGUMENT
    stranger = recording(record(), record(tenant="tenants/nobody", resource="tenants/nobody/connections/x"))
    assert await refusal(registry.audit.RecordAudit(stranger)) is Code.NOT_FOUND
    assert await refusal(admin.audit.RecordAudit(recording(record()))) is Code.CALLER_KIND_REFUSED
    many = await registry.audit.RecordAudit(recording(*[record()] * 500))
    assert list(many.sequences) == list(range(2, 502))


def actions() -> set[str]:
    """Every action that this service's code names."""
    found: set[str] = set()
    for path in Path(services.credentials.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            given = [one.value for one in node.keywords if one.arg == "action"]
            given += node.args if name in ("_record", "_save", "_entry") else []
            found |= {str(one.value) for one in given if isinstance(one, ast.Constant)}
    return {name for name in found if re.fullmatch(r"[a-z_]+\.[a-z_]+", name)}


def test_nobody_else_can_record_what_only_this_service_does() -> None:
    assert {"credential.revoke", "tenant.suspend", "root_key.rotate"} <= actions()
    assert {action.partition(".")[0] for action in actions()} <= OURS


# tampering

Attack = Callable[[Running], Awaitable[Any]]
RECORDS = "credentials.audit_records"


def sql(*statements: str) -> Attack:
    async def attack(running: Running) -> None:
        for statement in statements:
            await running.sql(statement)

    return attack


ATTACKS: dict[str, tuple[Attack, int, VerifyAuditResponse.Defect.ValueType]] = {
    "edit who": (
        sql(f"update {RECORDS} set principal = 'users/mallory' where sequence = 4"),
        4,
        Response.DEFECT_EDITED,
    ),
    "edit when": (
        sql(f"update {RECORDS} set time = time - interval '1 day' where sequence = 5"),
        5,
        Response.DEFECT_EDITED,
    ),
    "edit the details": (
        sql(f"""update {RECORDS} set details = '{{"version": "7"}}' where sequence = 6"""),
        6,
        Response.DEFECT_EDITED,
    ),
    "make no sense": (
        sql(f"update {RECORDS} set details = '[null]', outcome = 99 where sequence = 2"),
        2,
        Response.DEFECT_EDITED,
    ),
    "copy another MAC": (
        sql(f"update {RECORDS} set mac = (select mac from {RECORDS} where sequence = 3) where sequence = 2"),
        2,
        Response.DEFECT_FORGED,
    ),
    "delete one": (sql(f"delete from {RECORDS} where sequence = 4"), 4, Response.DEFECT_MISSING),
    "delete the first": (sql(f"delete from {RECORDS} where sequence = 1"), 1, Response.DEFECT_MISSING),
    "close the gap": (
        sql(
            f"delete from {RECORDS} where sequence = 3",
            f"update {RECORDS} set sequence = -sequence where sequence > 3",
            f"update {RECORDS} set sequence = -sequence - 1 where sequence < 0",
        ),
        3,
        Response.DEFECT_EDITED,
    ),
    "insert one": (
        sql(
            f"update {RECORDS} set sequence = -sequence where sequence > 3",
            f"update {RECORDS} set sequence = 1 - sequence where sequence < 0",
            f"""insert into {RECORDS} select tenant, 4, time, 'users/mallory', on_behalf_of, action, resource,
                fields, details, outcome, intent, hash, hash, mac from {RECORDS} where sequence = 3""",
        ),
        4,
        Response.DEFECT_EDITED,
    ),
    "swap two": (
        sql(
            f"update {RECORDS} set sequence = -sequence where sequence in (4, 5)",
            f"update {RECORDS} set sequence = 9 + sequence where sequence < 0",
        ),
        4,
        Response.DEFECT_EDITED,
    ),
    "cut off": (sql(f"delete from {RECORDS} where sequence > 4"), 5, Response.DEFECT_TRUNCATED),
    "cut off all": (sql(f"delete from {RECORDS}"), 1, Response.DEFECT_TRUNCATED),
    "cut off with the end": (
        sql(
            f"delete from {RECORDS} where sequence > 4",
            f"update credentials.audit_heads set sequence = 4, hash = (select hash from {RECORDS} where sequence = 4)",
        ),
        4,
        Response.DEFECT_FORGED,
    ),
    "cut off all with the end": (
        sql(f"delete from {RECORDS}", "delete from credentials.audit_heads"),
        1,
        Response.DEFECT_TRUNCATED,
    ),
    "delete the end": (sql("delete from credentials.audit_heads"), 7, Response.DEFECT_MISSING),
}


@pytest.mark.parametrize("how", ATTACKS)
async def test_a_superuser_cannot_tamper_unseen(
    running: Running, admin: Client, history: list[AuditRecord], how: str
) -> None:
    assert (await verify(admin)).intact
    attack, sequence, defect = ATTACKS[how]
    await attack(running)
    found = await verify(admin)
    assert not found.intact
    assert (found.first_bad_sequence, found.defect) == (sequence, defect), found
    assert found.explanation.startswith(f"Record {sequence}: ")
    assert found.checked < len(history) or how == "delete the end"
    await listed(admin)


async def test_a_chain_whose_end_was_touched_is_not_continued(
    running: Running, admin: Client, gateway: Client, history: list[AuditRecord]
) -> None:
    """Else the next record would make a forged end look like ours."""
    await ATTACKS["cut off with the end"][0](running)
    assert await refusal(lease(gateway)) is Code.DEPENDENCY_UNAVAILABLE
    assert await refusal(checkpoint(admin)) is Code.DEPENDENCY_UNAVAILABLE
    assert len(await listed(admin)) == len(history) - 2
    await make_tenant(admin, "other")


@pytest.mark.usefixtures("history")
async def test_a_chain_that_begins_anew_shows(running: Running, admin: Client, gateway: Client) -> None:
    await ATTACKS["cut off all with the end"][0](running)
    await lease(gateway)
    found = await verify(admin)
    assert (found.first_bad_sequence, found.defect) == (1, Response.DEFECT_ROLLED_BACK)


async def test_a_tenant_that_never_was_is_not_called_intact(admin: Client) -> None:
    """Who mistypes a name, or whose tenant and chain were both deleted, must not read that all is well."""
    with pytest.raises(Problem, match="There is no tenant nobody"):
        await admin.audit.VerifyAudit(VerifyAuditRequest(parent="tenants/nobody"))


async def test_an_old_copy_of_everything_shows_against_a_checkpoint(
    running: Running, admin: Client, gateway: Client, history: list[AuditRecord]
) -> None:
    await running.sql("create table copied as select * from credentials.audit_heads")
    await lease(gateway)
    kept = await checkpoint(admin)
    assert kept.sequence == len(history) + 1
    assert (await verify(admin, kept)).intact
    await running.sql(f"delete from {RECORDS} where sequence > {len(history)}")
    await running.sql(
        "update credentials.audit_heads h set sequence = c.sequence, hash = c.hash, mac = c.mac"
        " from copied c where c.tenant = h.tenant"
    )
    assert (await verify(admin)).intact, "it is a true copy, only an old one"
    found = await verify(admin, kept)
    assert (found.first_bad_sequence, found.defect) == (kept.sequence, Response.DEFECT_TRUNCATED)
    await lease(gateway)
    found = await verify(admin, kept)
    assert (found.first_bad_sequence, found.defect) == (kept.sequence, Response.DEFECT_ROLLED_BACK)


async def test_a_checkpoint_is_signed_and_only_ours_counts(
    admin: Client, gateway: Client, history: list[AuditRecord]
) -> None:
    kept = await checkpoint(admin)
    assert (kept.tenant, kept.sequence, kept.hash) == (ACME, len(history), history[-1].hash)
    keys = json.loads((await gateway.tokens.GetSigningKeys(GetSigningKeysRequest())).jwks)["keys"]
    [key] = [one for one in keys if one["kid"] == kept.kid]
    bare = AuditCheckpoint()
    bare.CopyFrom(kept)
    bare.ClearField("signature")
    public: Any = OKPKey.import_key(key).get_op_key("verify")
    public.verify(kept.signature, bare.SerializeToString(deterministic=True))

    changes: list[dict[str, Any]] = [{"sequence": 2}, {"hash": b"x" * 32}, {"kid": "x"}, {"signature": b""}]
    for changed in changes:
        forged = AuditCheckpoint()
        forged.CopyFrom(kept)
        for name, value in changed.items():
            setattr(forged, name, value)
        assert await refusal(verify(admin, forged)) is Code.INVALID_ARGUMENT
    await make_tenant(admin, "other")
    foreign = VerifyAuditRequest(parent="tenants/other", checkpoints=[kept])
    assert await refusal(admin.audit.VerifyAudit(foreign)) is Code.INVALID_ARGUMENT


async def test_verifying_goes_on_while_records_are_written(
    admin: Client, gateway: Client, history: list[AuditRecord]
) -> None:
    done = asyncio.Event()

    async def write() -> None:
        while not done.is_set():
            await lease(gateway)

    writing = asyncio.create_task(write())
    found = [await verify(admin) for _ in range(10)]
    done.set()
    await writing
    assert all(one.intact for one in found)
    assert found[-1].checked >= found[0].checked >= len(history)


# the command line


async def test_the_command_line_names_the_first_bad_record(
    running: Running, history: list[AuditRecord], tmp_path: Path
) -> None:
    endpoints = tmp_path / "endpoints.json"
    names = ("gateway", "credentials", "registry", "mapper", "admin_token_file")
    endpoints.write_text(json.dumps(dict.fromkeys(names, running.address)))
    env = {"TIELINE_ENDPOINTS": str(endpoints), "TIELINE_TOKEN": "tl_admin"}

    async def audit(*arguments: str) -> tuple[int, str]:
        code, out, err = await tieline("--tenant", "acme", "audit", *arguments, env=os.environ | env)
        return code, out + err

    code, out = await audit("checkpoint")
    assert code == 0
    kept = tmp_path / "checkpoint.json"
    kept.write_text(out)
    code, out = await audit("verify", "--checkpoint", str(kept), "--json")
    assert (code, json.loads(out)) == (0, {"intact": True, "checked": str(len(history))})
    code, out = await audit("list", "--do", "lease.*", "--limit", "2")
    assert code == 0
    assert out.count("lease.acquire") == 2
    assert "more: --page-token " in out
    await running.sql(f"delete from {RECORDS} where sequence > 4")
    code, out = await audit("verify")
    assert code == 1
    assert "TRUNCATED at record 5" in out
    code, out = await audit("verify", "--checkpoint", str(endpoints))
    assert code == 1
    assert "is no checkpoint" in out
    code, out = await audit("list", "--platform", "--json", "--since", "2020-01-01T00:00Z")
    assert (code, json.loads(out)) == (0, {"items": [], "next_page_token": ""})


async def test_times_that_are_none_are_refused(admin: Client) -> None:
    request = ListAuditRecordsRequest(parent=ACME)
    request.start_time.seconds = 2**62
    with pytest.raises(Problem, match="start_time"):
        await admin.audit.ListAuditRecords(request)
    request.start_time.FromDatetime(datetime.now(UTC))
    assert len((await admin.audit.ListAuditRecords(request)).audit_records) == 0
