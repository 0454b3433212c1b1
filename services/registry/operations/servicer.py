from __future__ import annotations

from collections.abc import AsyncIterator

from foundation.errors import Code, Problem
from foundation.identity.names import parse
from foundation.rpc import paging
from foundation.rpc.call import ServicerContext, author
from foundation.rpc.times import moment, stamp
from services.registry.operations.book import OperationBook, Wanted
from services.registry.operations.operation import Operation, State
from tieline.registry.v1 import operations_pb2 as pb
from tieline.registry.v1 import operations_pb2_grpc

# ruff: noqa: N802  the contract's names


class OperationServicer(operations_pb2_grpc.OperationServiceServicer):
    def __init__(self, book: OperationBook) -> None:
        self._book = book

    async def SubmitOperation(self, request: pb.SubmitOperationRequest, _: ServicerContext) -> pb.Operation:
        (tenant,) = parse("tenants/*", request.parent, "parent")
        submitted = await self._book.submit(
            tenant, _wanted(request.operation), author=author(), validate_only=request.validate_only
        )
        return shown(submitted)

    async def GetOperation(self, request: pb.GetOperationRequest, _: ServicerContext) -> pb.Operation:
        return shown(await self._book.get(*_place(request.name)))

    async def ListOperations(
        self, request: pb.ListOperationsRequest, _: ServicerContext
    ) -> pb.ListOperationsResponse:
        (tenant,) = parse("tenants/*", request.parent, "parent")
        page, more = await self._book.list(
            tenant,
            before=_before(request.page_token),
            connection=request.connection,
            states=[_state(number) for number in request.states],
            size=paging.page_size(request.page_size),
        )
        token = paging.token(str(page[-1].position)) if more else ""
        return pb.ListOperationsResponse(operations=map(shown, page), next_page_token=token)

    async def WatchOperation(
        self, request: pb.WatchOperationRequest, _: ServicerContext
    ) -> AsyncIterator[pb.WatchOperationResponse]:
        async for found in self._book.watch(*_place(request.name)):
            yield pb.WatchOperationResponse(operation=shown(found))

    async def CancelOperation(self, request: pb.CancelOperationRequest, _: ServicerContext) -> pb.Operation:
        return shown(await self._book.cancel(*_place(request.name)))

    async def RetryOperation(self, request: pb.RetryOperationRequest, _: ServicerContext) -> pb.Operation:
        return shown(await self._book.retry(*_place(request.name)))

    async def ResolveOperation(self, request: pb.ResolveOperationRequest, _: ServicerContext) -> pb.Operation:
        tenant, id_ = _place(request.name)
        resolved = await self._book.resolve(tenant, id_, applied=request.applied, reason=request.reason)
        return shown(resolved)


def shown(operation: Operation) -> pb.Operation:
    progress = operation.progress
    return pb.Operation(
        name=operation.name,
        connection=operation.connection,
        action=operation.action,
        arguments=operation.arguments,
        idempotency_key=operation.key,
        state=pb.Operation.State.Value(f"STATE_{progress.state.name}"),
        state_time=stamp(operation.state_time),
        output=progress.output or b"",
        failure=progress.failure,
        attempts=progress.attempts,
        next_attempt_time=None if progress.due is None else stamp(progress.due),
        author=operation.author,
        cause=operation.cause,
        written=progress.written,
        ordering_key=operation.ordering_key,
        start_deadline=stamp(progress.start_deadline),
        create_time=stamp(operation.create_time),
    )


def _wanted(given: pb.Operation) -> Wanted:
    """The part of it that a caller may write; what only the platform says is left out, as the contract has it."""
    deadline = None
    if given.HasField("start_deadline"):
        deadline = moment(given.start_deadline, "operation.start_deadline")
    return Wanted(
        connection=given.connection,
        action=given.action,
        arguments=given.arguments,
        key=given.idempotency_key,
        cause=given.cause,
        ordering_key=given.ordering_key,
        start_deadline=deadline,
    )


def _place(name: str) -> tuple[str, str]:
    tenant, id_ = parse("tenants/*/operations/*", name, "name")
    return tenant, id_


def _state(number: pb.Operation.State.ValueType) -> State:
    try:
        return State(pb.Operation.State.Name(number).removeprefix("STATE_").lower())
    except ValueError:
        raise Problem(
            Code.INVALID_ARGUMENT, field="states", why=f"{number} is no state of an operation"
        ) from None


def _before(page_token: str) -> int:
    after = paging.after(page_token)
    if after and not (after.isascii() and after.isdigit() and len(after) < 19):
        raise Problem(Code.INVALID_ARGUMENT, field="page_token", why="it is not one that a page gave")
    return int(after or 0)
