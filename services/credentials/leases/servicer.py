"""LeaseService: the only way by which a secret leaves, and only to whom a grant names."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

from foundation.errors import Code, Problem
from foundation.identity.names import parse
from foundation.rpc.call import caller
from foundation.rpc.paging import after, cut, page_size
from services.credentials.audit.entry import Entry
from services.credentials.audit.journal import Journal
from services.credentials.credential import states
from services.credentials.credential import store as credentials
from services.credentials.credential.store import CredentialRow
from services.credentials.leases import store as queries
from services.credentials.leases.asking import client_of
from services.credentials.leases.changes import Changes
from services.credentials.leases.lending import Lending
from services.credentials.leases.store import LeaseRow
from services.credentials.leases.wire import lease_message
from services.credentials.renewal.port import Advice, Answer
from tieline.common.v1.failure_pb2 import FAILURE_KIND_AUTH_FAILED, Failure
from tieline.credentials.v1 import leases_pb2_grpc
from tieline.credentials.v1.leases_pb2 import (
    AcquireLeasesRequest,
    AcquireLeasesResponse,
    ListLeasesRequest,
    ListLeasesResponse,
    ReleaseLeasesRequest,
    ReleaseLeasesResponse,
    ReportRefusalRequest,
    ReportRefusalResponse,
    WatchLeasesRequest,
    WatchLeasesResponse,
)

AT_ONCE = 500
_NAME = "tenants/*/credentials/*/leases/*"


class LeaseServicer(leases_pb2_grpc.LeaseServiceServicer):
    def __init__(self, lending: Lending, journal: Journal, changes: Changes) -> None:
        self._lending = lending
        self._store = lending.store
        self._renewals = lending.renewals
        self._clock = lending.clock
        self._journal = journal
        self._changes = changes

    async def AcquireLeases(self, request: AcquireLeasesRequest, context: Any) -> AcquireLeasesResponse:  # noqa: ARG002, N802
        _demand_few(len(request.requests), "requests")
        outcomes = await self._lending.lend(client_of(caller()), request.requests)
        return AcquireLeasesResponse(outcomes=outcomes)

    async def WatchLeases(  # noqa: N802
        self,
        request: WatchLeasesRequest,  # noqa: ARG002
        context: Any,  # noqa: ARG002
    ) -> AsyncIterator[WatchLeasesResponse]:
        async for generation, rows in self._changes.tell(client_of(caller())):
            yield WatchLeasesResponse(leases=map(lease_message, rows), generation=generation)

    async def ReleaseLeases(self, request: ReleaseLeasesRequest, context: Any) -> ReleaseLeasesResponse:  # noqa: ARG002, N802
        """Those of others are unknown to the caller."""
        _demand_few(len(request.names), "names")
        client = client_of(caller())
        names = sorted({parse(_NAME, name, "names") for name in request.names})
        async with self._store.unit_of_work(tenants={tenant for tenant, _, _ in names}) as work:
            found = [await queries.give_back(work, tenant, lease, client) for tenant, _, lease in names]
            given_back = [row for row in found if row is not None]
            if given_back:
                await queries.note_change(work)
                entries = [
                    Entry(tenant=row.tenant, action="lease.release", resource=row.name) for row in given_back
                ]
                await self._journal.append(work, *entries)
        self._changes.notice()
        return ReleaseLeasesResponse()

    async def ReportRefusal(self, request: ReportRefusalRequest, context: Any) -> ReportRefusalResponse:  # noqa: ARG002, N802
        tenant, _, lease = parse(_NAME, request.lease, "lease")
        if request.failure.kind != FAILURE_KIND_AUTH_FAILED:
            raise Problem(Code.INVALID_ARGUMENT, field="failure.kind", why="it is not AUTH_FAILED")
        async with self._store.unit_of_work(tenants=[tenant], read_only=True) as work:
            row = await queries.lease(work, tenant, lease, client_of(caller()))
            found = await credentials.credential(work, tenant, row.credential) if row else None
        if row is None or found is None:
            raise Problem(Code.NOT_FOUND, what=f"lease {request.lease[:100]} of the caller")
        said = request.failure.credential_version.version
        if said and said != row.version:
            why = f"the lease is of version {row.version}"
            raise Problem(Code.INVALID_ARGUMENT, field="failure.credential_version", why=why)
        answer = await self._advice(row, found, request.failure)
        response = ReportRefusalResponse(
            advice=ReportRefusalResponse.Advice.Value(f"ADVICE_{answer.advice.name}")
        )
        if answer.retry_after > timedelta(0):
            response.retry_after.FromTimedelta(answer.retry_after)
        return response

    async def _advice(self, row: LeaseRow, credential: CredentialRow, failure: Failure) -> Answer:
        if row.state == "OUTDATED":
            return Answer(Advice.REACQUIRE)
        answer = await self._renewals.refused(credential, row.version, failure)
        if answer.advice is Advice.GIVE_UP:
            await self._give_up(credential, row.version, failure)
        return answer

    async def _give_up(self, credential: CredentialRow, version: int, failure: Failure) -> None:
        """Whoever uses it is paused: unless a newer version has come, or the reason is known better already."""
        async with self._store.unit_of_work(tenants=[credential.tenant]) as work:
            row = await credentials.credential(work, credential.tenant, credential.id, locked=True)
            if row is None or row.current_version > version or row.state not in states.USABLE:
                return
            await states.enter(work, row, "REFUSED", failure, now=self._clock.now())
            details = {"version": str(version)}
            entry = Entry(tenant=row.tenant, action="credential.refuse", resource=row.name, details=details)
            await self._journal.append(work, entry)

    async def ListLeases(self, request: ListLeasesRequest, context: Any) -> ListLeasesResponse:  # noqa: ARG002, N802
        tenant, credential = parse("tenants/*/credentials/*", request.parent, "parent")
        size = page_size(request.page_size)
        last_credential, _, last = after(request.page_token).partition("/")
        async with self._store.unit_of_work(tenants=[tenant], read_only=True) as work:
            rows = await queries.leases(
                work, tenant, "" if credential == "-" else credential, (last_credential, last), size + 1
            )
        page, token = cut(rows, size, lambda row: f"{row.credential}/{row.id}")
        return ListLeasesResponse(leases=map(lease_message, page), next_page_token=token)


def _demand_few(count: int, field: str) -> None:
    if count > AT_ONCE:
        raise Problem(Code.INVALID_ARGUMENT, field=field, why=f"there are more than {AT_ONCE}")
