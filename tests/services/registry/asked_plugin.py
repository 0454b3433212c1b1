"""A plugin by hand that is asked for everything: its arguments say how it is to behave. See `asked.py`."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import grpc
import raw_plugin  # type: ignore[import-not-found]  # lies beside it, where it runs
from raw_plugin import K, refuse

from tieline.common.v1.failure_pb2 import EFFECT_NONE, Failure
from tieline.plugin.v1 import execute_pb2, fetch_pb2, lookup_pb2, verify_pb2

# ruff: noqa: N802  the contract's names

RECORDS = 1000
FRAME = 20


class Plugin(raw_plugin.Plugin):  # type: ignore[misc]  # not found above
    async def Execute(self, request: Any, context: Any) -> execute_pb2.ExecuteResponse:
        await self.demand(request.context, context)
        given = json.loads(request.arguments)
        count = self.note(
            "Execute",
            action=request.action,
            key=request.idempotency_key,
            instance=request.context.instance_id,
            attempt=request.attempt,
        )
        match given.get("how"):
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                try:
                    await asyncio.sleep(3600)
                finally:
                    self.note("cancelled")
            case "forget" if count == 1:
                self.settings.clear()
                await refuse(
                    context, Failure(kind=K.FAILURE_KIND_NOT_PREPARED, reason="INSTANCE_NOT_INITIALIZED")
                )
            case "defect":
                await refuse(
                    context,
                    Failure(kind=K.FAILURE_KIND_INTERNAL, reason="DEFECT", effect=EFFECT_NONE),
                )
            case "conflict":
                await refuse(
                    context, Failure(kind=K.FAILURE_KIND_CONFLICT, reason="MOVED", effect=EFFECT_NONE)
                )
            case "wrong":
                return execute_pb2.ExecuteResponse(output=b'{"id": "no number"}')
            case "nothing":
                return execute_pb2.ExecuteResponse()
            case "pending":
                pending = execute_pb2.PendingOperation(provider_operation_id="job-1")
                return execute_pb2.ExecuteResponse(pending=pending)
        return execute_pb2.ExecuteResponse(output=b'{"id": 7}')

    async def GetOperation(self, request: Any, context: Any) -> execute_pb2.GetOperationResponse:
        await self.demand(request.context, context)
        self.note("GetOperation", key=request.idempotency_key)
        if request.idempotency_key == "vague":
            return execute_pb2.GetOperationResponse()
        done = execute_pb2.GetOperationResponse.STATE_DONE
        output = b'{"id": "no number"}' if request.idempotency_key == "wrong" else b'{"id": 7}'
        return execute_pb2.GetOperationResponse(state=done, output=output)

    async def Lookup(self, request: Any, context: Any) -> lookup_pb2.LookupResponse:
        answer = lookup_pb2.LookupResponse()
        for group in request.groups:
            await self.demand(group.context, context)
            ids = [query.entity.id for query in group.queries]
            self.note("Lookup", ids=ids, instance=group.context.instance_id)
            if "die" in ids:
                os.kill(os.getpid(), signal.SIGKILL)
            if "slow" in ids:
                await asyncio.sleep(0.5)
            if "hang" in ids:
                try:
                    await asyncio.sleep(3600)
                finally:
                    self.note("cancelled")
            result = answer.results.add(instance_id=group.context.instance_id)
            for query in group.queries:
                _answer(query, result)
        return answer

    async def VerifyWebhook(self, request: Any, context: Any) -> verify_pb2.VerifyWebhookResponse:
        await self.demand(request.context, context)
        self.note("VerifyWebhook")
        answer = verify_pb2.VerifyWebhookResponse()
        match request.body:
            case b"yes":
                answer.accepted.delivery_id = "d-1"
            case b"no":
                answer.rejected.reason = "SIGNATURE_MISMATCH"
            case b"hello":
                answer.challenge.status = 200
            case b"redirect":
                answer.challenge.status = 302
            case b"hang":
                await asyncio.sleep(3600)
            case b"die":
                os.kill(os.getpid(), signal.SIGKILL)
            case b"fail":
                await context.abort(grpc.StatusCode.INTERNAL, "who knows")
        return answer

    async def ListPartitions(self, request: Any, context: Any) -> fetch_pb2.ListPartitionsResponse:
        await self.demand(request.context, context)
        self.note("ListPartitions", token=request.page_token)
        word = self.settings[request.context.instance_id].get("word", "")
        at = int(request.page_token or 0)
        answer = fetch_pb2.ListPartitionsResponse()
        for number in range(at, min(at + request.page_size, 1200)):
            answer.partitions.add(id="" if word == "nameless" else f"p{number}")
        if at + request.page_size < 1200:
            answer.next_page_token = "0" if word == "endless" else str(at + request.page_size)
        return answer

    async def FetchData(self, request: Any, context: Any) -> AsyncIterator[fetch_pb2.FetchDataResponse]:
        """Records 0 to 999, from the checkpoint on; the settings say what is wrong with them."""
        await self.demand(request.context, context)
        word = self.settings[request.context.instance_id].get("word", "")
        at = int(request.checkpoint.cursor or 0)
        count = self.note("FetchData", at=at, partition=request.partition.id)
        if word == "lost" and at:
            await refuse(context, Failure(kind=K.FAILURE_KIND_CURSOR_INVALID, reason="TOO_OLD"))
        try:
            async for frame in _frames(word, at, count):
                yield frame
        except (asyncio.CancelledError, GeneratorExit):
            self.note("cancelled")
            raise


def _answer(query: Any, result: Any) -> None:
    one = result.answers.add(query_id=query.query_id)
    match query.entity.id:
        case "absent":
            one.failure.kind = K.FAILURE_KIND_NOT_FOUND
        case "broken":
            one.failure.kind = K.FAILURE_KIND_INTERNAL
        case "silent":
            result.answers.pop()
        case "garbled":
            one.found.attributes = b"[1]"
        case "fresh":
            one.found.attributes = b"{}"
            one.cache_for.FromSeconds(0)
        case name:
            one.found.attributes = json.dumps({"about": name}).encode()


async def _frames(word: str, at: int, count: int) -> AsyncIterator[fetch_pb2.FetchDataResponse]:
    sent = 0
    while at < RECORDS:
        batch = _batch(word, at)
        at, sent = at + FRAME, sent + len(batch.records)
        yield fetch_pb2.FetchDataResponse(records=batch)
        match word:
            case "empty":
                yield fetch_pb2.FetchDataResponse()
            case "silent":
                await asyncio.sleep(3600)
            case "unended":
                return
            case "deadly" if at == 500 and count == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            case "slow":
                await asyncio.sleep(0.01)
            case "limited" if sent >= 100:
                yield _end(fetch_pb2.FetchEnd.REASON_LIMIT, sent)
                return
    yield _end(fetch_pb2.FetchEnd.REASON_CAUGHT_UP, sent + (word == "miscounted"))
    if word == "twice":
        yield _end(fetch_pb2.FetchEnd.REASON_CAUGHT_UP, sent)


def _batch(word: str, at: int) -> fetch_pb2.RecordBatch:
    batch = fetch_pb2.RecordBatch()
    for number in range(at, at + FRAME):
        if word == "partly broken" and number % 10 == 0:
            broken = batch.broken.add(key=str(number), excerpt=b"\x00\xff")
            broken.failure.kind = K.FAILURE_KIND_INVALID_INPUT
        else:
            batch.records.add(key=str(number), version="1", payload=json.dumps({"n": number}).encode())
    batch.checkpoint.cursor = str(at + FRAME).encode()
    match word:
        case "keyless":
            batch.records[0].key = ""
        case "large":
            batch.records[0].payload = batch.records[1].payload = b"x" * 800_000
        case "huge cursor":
            batch.checkpoint.cursor = b"x" * 70_000
    return batch


def _end(reason: fetch_pb2.FetchEnd.Reason.ValueType, total: int) -> fetch_pb2.FetchDataResponse:
    return fetch_pb2.FetchDataResponse(end=fetch_pb2.FetchEnd(reason=reason, records_total=total))


if __name__ == "__main__":
    raw_plugin.NONCE = base64.urlsafe_b64decode(os.environ["TIELINE_PLUGIN_NONCE"] + "==")
    raw_plugin.Plugin = Plugin
    asyncio.run(raw_plugin.main())
