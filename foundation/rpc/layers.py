"""What is true around every request, one small layer each; `server.py` says in which order."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import structlog
from grpc.aio import AbortError
from grpc_status import rpc_status
from opentelemetry import context as otel_context
from opentelemetry import propagate, trace

from foundation.clock import Ids
from foundation.errors import Code, Problem
from foundation.errors.grpc import to_status
from foundation.identity import Authenticator, Principal, Role, authorise
from foundation.rpc.call import ON_BEHALF_OF, Call, Layer, Unreadable, enter_call
from foundation.rpc.redaction import redacted
from foundation.telemetry import Metrics

log = structlog.get_logger(__name__)


def measured(metrics: Metrics) -> Layer:
    @asynccontextmanager
    async def layer(call: Call) -> AsyncIterator[None]:
        began = time.perf_counter()
        metrics.rpc_under_way.inc()
        try:
            yield
        finally:
            metrics.rpc_under_way.dec()
            status = _status_name(call)
            metrics.rpc_seconds.labels(call.method.path, status).observe(time.perf_counter() - began)

    return layer


def traced(tracer: trace.Tracer) -> Layer:
    @asynccontextmanager
    async def layer(call: Call) -> AsyncIterator[None]:
        carrier = {key: call.metadata(key) or "" for key in ("traceparent", "tracestate")}
        token = otel_context.attach(propagate.extract(carrier))
        try:
            with tracer.start_as_current_span(
                call.method.path.lstrip("/"),
                kind=trace.SpanKind.SERVER,
                attributes={"rpc.system": "grpc"},
                record_exception=False,
            ) as span:
                yield
                span.set_attribute("rpc.grpc.status", _status_name(call))
        finally:
            otel_context.detach(token)

    return layer


def truthful(metrics: Metrics, ids: Ids) -> Layer:
    """Whatever is raised reaches the caller as a problem; what we did not foresee says only a reference."""

    @asynccontextmanager
    async def layer(call: Call) -> AsyncIterator[None]:
        try:
            yield
        except Problem as problem:
            await _abort(call, problem)
        except AbortError:
            raise
        except NotImplementedError:
            # What the generated base class of a servicer raises for a method that it was not given.
            await _abort(call, Problem(Code.UNIMPLEMENTED, method=call.method.path))
        except Exception:  # the border of every request: nothing of ours may leave it unexplained
            reference = ids.new("ref")
            log.exception("request failed", method=call.method.path, reference=reference)
            await _abort(call, Problem(Code.INTERNAL, reference=reference))

    async def _abort(call: Call, problem: Problem) -> None:
        metrics.errors.labels(problem.code.name).inc()
        await call.context.abort_with_status(rpc_status.to_status(to_status(problem)))

    return layer


@asynccontextmanager
async def understood(call: Call) -> AsyncIterator[None]:
    if isinstance(call.request, Unreadable):
        raise Problem(Code.INVALID_ARGUMENT, field="request", why="it is no message of this method")
    yield


def identified(authenticator: Authenticator) -> Layer:
    """Default deny: the rule of the method decides, before any code of the method sees the request."""

    @asynccontextmanager
    async def layer(call: Call) -> AsyncIterator[None]:
        call.principal = _bearer(call, "authorization", authenticator)
        behalf = _bearer(call, ON_BEHALF_OF, authenticator)
        if behalf is not None:
            if call.principal is None or Role.SERVICE not in call.principal.platform_roles:
                raise Problem(Code.TOKEN_INVALID, why="only the platform's own processes act for others")
            call.agent, call.principal = call.principal, behalf
        authorise(call.method, call.principal, call.request)
        enter_call(call)
        yield

    return layer


def _bearer(call: Call, name: str, authenticator: Authenticator) -> Principal | None:
    header = call.metadata(name)
    if header is None:
        return None
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer":
        raise Problem(Code.TOKEN_INVALID, why=f"the {name} header does not start with Bearer")
    return authenticator.authenticate(token.strip())


def recorded() -> Layer:
    """Each request as one debug record, with whatever the contract calls sensitive covered."""

    @asynccontextmanager
    async def layer(call: Call) -> AsyncIterator[None]:
        # Rendering a message costs more than many methods do, so it is done only for a log that wants it.
        if log.is_enabled_for(10):
            log.debug(
                "request", method=call.method.path, principal=call.author, request=redacted(call.request)
            )
        yield

    return layer


def _status_name(call: Call) -> str:
    code = call.context.code()
    if isinstance(code, grpc.StatusCode):
        return code.name
    return "CANCELLED" if call.context.cancelled() else "OK"


@asynccontextmanager
async def around(layers: tuple[Layer, ...], call: Call) -> AsyncIterator[None]:
    """All layers as one, the first outermost."""
    async with AsyncExitStack() as stack:
        for layer in layers:
            await stack.enter_async_context(layer(call))
        yield
