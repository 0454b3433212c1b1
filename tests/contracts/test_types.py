"""What a plugin author or client writes against the stubs is checked by types, not by luck."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

PROGRAM = """
import grpc.aio
from tieline.event.v1 import content_pb2
from tieline.mapper.v1 import inbox_pb2, inbox_pb2_grpc
from tieline.plugin.v1 import fetch_pb2, plugin_pb2_grpc, transform_pb2

Context = grpc.aio.ServicerContext[transform_pb2.TransformDataRequest, transform_pb2.TransformDataResponse]


class Plugin(plugin_pb2_grpc.PluginServiceServicer):
    async def TransformData(
        self, request: transform_pb2.TransformDataRequest, context: Context
    ) -> transform_pb2.TransformDataResponse:
        draft = transform_pb2.EventDraft(type="x.y", severity=content_pb2.SEVERITY_ERROR)
        print(draft.type.upper(), [group.context.instance_id for group in request.groups])
        return transform_pb2.TransformDataResponse()


async def use(channel: grpc.aio.Channel) -> int:
    stub = inbox_pb2_grpc.InboxServiceStub(channel)
    answer = await stub.AcceptDeliveries(inbox_pb2.AcceptDeliveriesRequest())
    async for frame in plugin_pb2_grpc.PluginServiceStub(channel).FetchData(fetch_pb2.FetchDataRequest()):
        print(frame.records.records[0].key)
    return len(answer.outcomes)
"""
WRONG = """
async def unknown_field(stub: "inbox_pb2_grpc.InboxServiceAsyncStub") -> None:
    print((await stub.AcceptDeliveries(inbox_pb2.AcceptDeliveriesRequest())).outcome)  # attr-defined
async def foreign_request(stub: "inbox_pb2_grpc.InboxServiceAsyncStub") -> None:
    await stub.AcceptDeliveries(inbox_pb2.AcceptRecordsRequest())  # arg-type
transform_pb2.EventDraft(tenant="tenants/acme")  # call-arg
transform_pb2.EventDraft(type=b"x")  # arg-type
transform_pb2.EventDraft(severity="error")  # arg-type
class Odd(plugin_pb2_grpc.PluginServiceServicer):
    async def Shutdown(self, request: int, context: Context) -> int:  # override
        return request
"""


def mypy(path: Path, cache: Path) -> str:
    done = subprocess.run(
        (sys.executable, "-m", "mypy", "--strict", "--no-error-summary", f"--cache-dir={cache}", str(path)),
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    return done.stdout + done.stderr


def test_good_code_passes_and_each_mistake_is_found(tmp_path: Path) -> None:
    good, bad, cache = tmp_path / "good.py", tmp_path / "bad.py", tmp_path / "cache"
    good.write_text(PROGRAM)
    assert mypy(good, cache) == ""
    bad.write_text(PROGRAM + WRONG)
    found = set(re.findall(r"bad\.py:(\d+): error: .*\[([a-z-]+)\]", mypy(bad, cache)))
    lines = enumerate(bad.read_text().splitlines(), start=1)
    wanted = {(str(number), line.rpartition("# ")[2]) for number, line in lines if "  # " in line}
    assert len(wanted) == 6
    assert found == wanted
