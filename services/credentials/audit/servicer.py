"""AuditService: who did what, read, checked and signed."""

from __future__ import annotations

import hashlib
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from foundation.clock import Clock
from foundation.errors import Code, Problem
from foundation.identity.names import parse, tenant_of
from foundation.rpc.call import caller
from foundation.rpc.paging import after, cut, page_size
from foundation.rpc.times import moment
from foundation.store.unit_of_work import Store
from services.credentials.audit import store as queries
from services.credentials.audit.chain import Head
from services.credentials.audit.entry import PLATFORM
from services.credentials.audit.journal import Journal
from services.credentials.audit.requests import entries
from services.credentials.audit.store import RecordRow, Wanted
from services.credentials.audit.verifying import verify
from services.credentials.identities.signing import SigningKeys
from services.credentials.identities.store import tenants as identities
from tieline.credentials.v1 import audit_pb2_grpc
from tieline.credentials.v1.audit_pb2 import (
    AuditCheckpoint,
    AuditRecord,
    ListAuditRecordsRequest,
    ListAuditRecordsResponse,
    ListPlatformAuditRecordsRequest,
    ListPlatformAuditRecordsResponse,
    RecordAuditRequest,
    RecordAuditResponse,
    SignAuditCheckpointRequest,
    VerifyAuditRequest,
    VerifyAuditResponse,
)


class AuditServicer(audit_pb2_grpc.AuditServiceServicer):
    def __init__(self, store: Store, journal: Journal, keys: SigningKeys, clock: Clock) -> None:
        self._store = store
        self._journal = journal
        self._keys = keys
        self._clock = clock

    async def RecordAudit(self, request: RecordAuditRequest, context: Any) -> RecordAuditResponse:  # noqa: ARG002, N802
        """A service vouches for whom it acted; that it was this service that says so, nobody can change."""
        who = caller().name
        wanted = entries(request, who)
        tenants = {entry.tenant for entry in wanted}
        content = hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
        async with self._store.unit_of_work(tenants=tenants) as work:
            for tenant in sorted(tenants - {PLATFORM}):
                if await identities.tenant(work, tenant) is None:
                    raise Problem(Code.NOT_FOUND, what=f"tenant {tenant}")
            known = await queries.begin_request(work, who, request.request_id, content)
            if known is None:
                written = await self._journal.append(work, *wanted)
                sequences = [record.sequence for record in written]
                await queries.answer_request(work, who, request.request_id, sequences)
            elif known.content == content:
                sequences = known.sequences
            else:
                why = "another request was made with it"
                raise Problem(Code.INVALID_ARGUMENT, field="request_id", why=why)
        return RecordAuditResponse(sequences=sequences)

    async def ListAuditRecords(  # noqa: N802
        self,
        request: ListAuditRecordsRequest,
        context: Any,  # noqa: ARG002
    ) -> ListAuditRecordsResponse:
        (tenant,) = parse("tenants/*", request.parent, "parent")
        wanted = Wanted(
            tenant=tenant,
            since=_time(request, "start_time"),
            until=_time(request, "end_time"),
            principal=request.principal,
            action=request.action,
            resource=request.resource,
        )
        records, token = await self._page(wanted, request.page_size, request.page_token)
        return ListAuditRecordsResponse(audit_records=records, next_page_token=token)

    async def ListPlatformAuditRecords(  # noqa: N802
        self,
        request: ListPlatformAuditRecordsRequest,
        context: Any,  # noqa: ARG002
    ) -> ListPlatformAuditRecordsResponse:
        wanted = Wanted(tenant=PLATFORM, since=_time(request, "start_time"), until=_time(request, "end_time"))
        records, token = await self._page(wanted, request.page_size, request.page_token)
        return ListPlatformAuditRecordsResponse(audit_records=records, next_page_token=token)

    async def VerifyAudit(self, request: VerifyAuditRequest, context: Any) -> VerifyAuditResponse:  # noqa: ARG002, N802
        (tenant,) = parse("tenants/*", request.parent, "parent")
        checkpoints: dict[int, set[bytes]] = {}
        for checkpoint in request.checkpoints:
            self._demand_ours(tenant, checkpoint)
            checkpoints.setdefault(checkpoint.sequence, set()).add(checkpoint.hash)
        async with self._store.unit_of_work(tenants=[tenant], read_only=True) as work:
            exists = await identities.tenant(work, tenant) is not None
        # The first record of a tenant is that it was made, in the same transaction.
        first = "tenant.create" if exists else ""
        checked, finding = await verify(self._store, tenant, self._journal.key, checkpoints, first)
        if finding is None and not checked and not exists:
            raise Problem(Code.NOT_FOUND, what=f"tenant {tenant}")
        if finding is None:
            return VerifyAuditResponse(intact=True, checked=checked)
        return VerifyAuditResponse(
            checked=checked,
            first_bad_sequence=finding.sequence,
            defect=finding.defect,
            explanation=f"Record {finding.sequence}: {finding.explanation}.",
        )

    async def SignAuditCheckpoint(self, request: SignAuditCheckpointRequest, context: Any) -> AuditCheckpoint:  # noqa: ARG002, N802
        (tenant,) = parse("tenants/*", request.parent, "parent")
        async with self._store.unit_of_work(tenants=[tenant], read_only=True) as work:
            _, stored = await queries.extent(work, tenant)
        head = Head() if stored is None else self._journal.trusted(tenant, stored)
        checkpoint = AuditCheckpoint(tenant=request.parent, sequence=head.sequence, hash=head.hash)
        checkpoint.time.FromDatetime(self._clock.now())
        checkpoint.kid = self._keys.newest_kid
        checkpoint.signature = self._keys.sign_bytes(_signed(checkpoint))
        return checkpoint

    def _demand_ours(self, tenant: str, checkpoint: AuditCheckpoint) -> None:
        if tenant_of(checkpoint.tenant) != tenant:
            raise Problem(Code.INVALID_ARGUMENT, field="checkpoints", why="one is of another tenant")
        if not self._keys.verifies(checkpoint.kid, _signed(checkpoint), checkpoint.signature):
            why = f"the one of record {checkpoint.sequence} was not signed by this platform"
            raise Problem(Code.INVALID_ARGUMENT, field="checkpoints", why=why)

    async def _page(self, wanted: Wanted, asked: int, page_token: str) -> tuple[list[AuditRecord], str]:
        size, before = page_size(asked), after(page_token)
        if before and not before.isdecimal():
            raise Problem(Code.INVALID_ARGUMENT, field="page_token", why="it is not one that a page gave")
        async with self._store.unit_of_work(tenants=[wanted.tenant], read_only=True) as work:
            rows = await queries.newest_first(work, wanted, int(before) if before else None, size + 1)
        page, token = cut(rows, size, lambda row: str(row.sequence))
        return [_message(row) for row in page], token


def _signed(checkpoint: AuditCheckpoint) -> bytes:
    """All of it but the signature. Its first byte is no letter, so it is never read as a token that we signed."""
    bare = AuditCheckpoint()
    bare.CopyFrom(checkpoint)
    bare.ClearField("signature")
    return bare.SerializeToString(deterministic=True)


def _message(row: RecordRow) -> AuditRecord:
    try:
        message = row.record().content
    except (ValueError, TypeError, OverflowError):
        # Somebody has changed it into what we never write. It is shown by its place; verifying says the rest.
        message = AuditRecord(sequence=row.sequence)
    message.hash, message.mac = row.hash, row.mac
    return message


def _time(request: ListAuditRecordsRequest | ListPlatformAuditRecordsRequest, field: str) -> Any:
    given: Timestamp = getattr(request, field)
    return moment(given, field) if request.HasField(field) else None  # type: ignore[arg-type]
