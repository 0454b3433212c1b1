"""What is changed here is recorded in the vault's audit: that it is about to be done, and then how it ended.

The first record is durable before anything is changed; where it cannot be made, nothing is. The second follows,
later if it must: an intent without an outcome says that it is not known what became of it.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol, Self

import structlog
from grpc.aio import Channel

from foundation.clock.tasks import end, woken
from foundation.errors import Problem
from foundation.identity.names import tenant_of
from foundation.rpc.call import present_call
from tieline.credentials.v1 import audit_pb2_grpc
from tieline.credentials.v1.audit_pb2 import AuditRecord, RecordAuditRequest

log = structlog.get_logger(__name__)

RETRY_SECONDS = 1.0
LAST_SECONDS = 1.0
LATE = 1000
"""Outcomes that are kept while the vault is away; beyond them the oldest stay unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What somebody is about to change: ids and names of fields, never values."""

    action: str
    """Dotted: `connection.update`. Each stands in `docs/security.md`."""
    resource: str
    fields: Sequence[str] = ()
    details: Mapping[str, str] = field(default_factory=dict)


class Recorder(Protocol):
    def making(self, *changes: Change) -> AbstractAsyncContextManager[None]:
        """Around the change itself: raises the vault's problem before anything was done, if it cannot record."""


class VaultRecorder:
    """`async with` it."""

    def __init__(self, vault: Channel) -> None:
        self._stub = audit_pb2_grpc.AuditServiceStub(vault)
        self._late: deque[RecordAuditRequest] = deque(maxlen=LATE)
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._keep(), name="record what became of changes")
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(self._task)
        with suppress(Problem, TimeoutError):
            async with asyncio.timeout(LAST_SECONDS):
                await self._flush()
        if self._late:
            log.warning("what became of some changes is not recorded", changes=len(self._late))

    @asynccontextmanager
    async def making(self, *changes: Change) -> AsyncIterator[None]:
        records = [_record(change) for change in changes]
        if not records:
            yield
            return
        answer = await self._stub.RecordAudit(_request(records, AuditRecord.OUTCOME_INTENT, ()))
        try:
            yield
        except Exception:
            self._ended(records, AuditRecord.OUTCOME_FAILED, answer.sequences)
            raise
        self._ended(records, AuditRecord.OUTCOME_DONE, answer.sequences)

    def _ended(
        self, records: Sequence[AuditRecord], outcome: AuditRecord.Outcome.ValueType, intents: Sequence[int]
    ) -> None:
        self._late.append(_request(records, outcome, intents))
        self._wanted.set()

    async def _keep(self) -> None:
        while True:
            try:
                await self._flush()
            except Problem as away:
                log.debug("what became of changes is recorded later", why=away.sentence)
            except Exception:  # a task's border
                log.exception("what became of changes is recorded later")
            await woken(self._wanted, RETRY_SECONDS)

    async def _flush(self) -> None:
        while self._late:
            request = self._late[0]
            await self._stub.RecordAudit(request)
            if self._late and self._late[0] is request:
                self._late.popleft()


def _record(change: Change) -> AuditRecord:
    call = present_call()
    tenant = tenant_of(change.resource)
    return AuditRecord(
        tenant=f"tenants/{tenant}" if tenant else "",
        on_behalf_of=call.principal.name if call is not None and call.principal is not None else "",
        action=change.action,
        resource=change.resource,
        fields=change.fields,
        details=change.details,
    )


def _request(
    records: Sequence[AuditRecord], outcome: AuditRecord.Outcome.ValueType, intents: Sequence[int]
) -> RecordAuditRequest:
    request = RecordAuditRequest(records=records, request_id=str(uuid.uuid4()))
    for index, record in enumerate(request.records):
        record.outcome = outcome
        if intents:
            record.intent_sequence = intents[index]
    return request
