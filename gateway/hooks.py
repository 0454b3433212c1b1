"""`POST /hooks/{endpoint}`: who is it, is it them, is it durable; only then yes.

Order matters. The endpoint is looked up first and the body's size bounded while it is read; the signature is
checked before anything in the body is believed; the answer is given when the inbox has committed. At an app's
endpoint the account is read after that, and says whose it is. (Where each account signs with its own secret, the
account is read first, and only chooses the secret that must fit.)
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Any

import structlog
from opentelemetry import propagate, trace
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from foundation.clock import Clock, time_ordered_uuid
from foundation.errors import Code, Problem
from foundation.identity.names import tenant_of
from gateway.batching import Inbox
from gateway.endpoints import Endpoints
from gateway.keyring import Keyring
from gateway.request import Request
from gateway.routing import Address, RoutingMetrics, address_of, is_signed_by_account, policy_of
from gateway.tenants import Tenants
from gateway.verification import Refusal, verify
from tieline.common.v1.delivery_pb2 import Header, Priority
from tieline.mapper.v1.inbox_pb2 import AcceptOutcome, DeliveryInput
from tieline.plugin.v1.webhook_pb2 import Routing, Webhook
from tieline.registry.v1.endpoints_pb2 import Endpoint

log = structlog.get_logger(__name__)

BODY_LIMIT = 25 * 1024 * 1024
AUTHENTICATING = frozenset({"authorization", "proxy-authorization", "cookie", "set-cookie"})
"""Headers that never reach the store, whatever the provider uses them for."""


class Hooks:
    def __init__(
        self,
        endpoints: Endpoints,
        tenants: Tenants,
        keyring: Keyring,
        inbox: Inbox,
        *,
        clock: Clock,
        tracer: trace.Tracer,
        body_seconds: float,
        metrics: RoutingMetrics,
    ) -> None:
        self._endpoints = endpoints
        self._tenants = tenants
        self._keyring = keyring
        self._inbox = inbox
        self._clock = clock
        self._tracer = tracer
        self._body_seconds = body_seconds
        self._metrics = metrics

    async def receive(self, http: HttpRequest) -> Response:
        with self._tracer.start_as_current_span(
            "receive delivery", context=propagate.extract(dict(http.headers)), kind=trace.SpanKind.SERVER
        ):
            endpoint = self._endpoint(http.path_params["endpoint"])
            request = await _read(http, endpoint.webhook, self._body_seconds)
            version = await self._verified(endpoint, request)
            address = address_of(endpoint, request)
            if address.connection:
                self._demand_served(tenant_of(address.connection))
            else:
                policy = policy_of(endpoint)
                self._metrics.unmatched(endpoint.app, policy)
                if policy == Routing.UNMATCHED_DISCARD:
                    return Response(status_code=endpoint.webhook.answer.status or 202)
                if policy != Routing.UNMATCHED_DEAD_LETTER:
                    raise Problem(Code.NOT_FOUND, what="connection with this account")
            delivery = self._delivery(endpoint, address, request, version)
            outcome = await self._inbox.accept(delivery)
            return _answer(endpoint.webhook, delivery, outcome)

    def _endpoint(self, name: str) -> Endpoint:
        endpoint = self._endpoints.get(name)
        if endpoint is None or endpoint.WhichOneof("owner") is None:
            raise Problem(Code.NOT_FOUND, what="such endpoint")
        self._demand_served(
            tenant_of(endpoint.connection or endpoint.app_owner), suspended=endpoint.suspended
        )
        return endpoint

    def _demand_served(self, tenant: str, *, suspended: bool = False) -> None:
        why = self._tenants.refusal(tenant) or ("it is suspended" if suspended else "")
        if why:
            raise Problem(Code.TENANT_SUSPENDED, tenant=f"tenants/{tenant}", why=why)

    async def _verified(self, endpoint: Endpoint, request: Request) -> int:
        subject = endpoint.connection or endpoint.app
        if is_signed_by_account(endpoint):
            subject = address_of(endpoint, request).connection
        secrets = await self._keyring.secrets(endpoint, subject) if subject else ()
        try:
            return verify(endpoint.webhook.signature, secrets, request, self._clock.now())
        except Refusal as refusal:
            log.info("delivery refused", endpoint=endpoint.connection or endpoint.app, why=str(refusal))
            raise Problem(Code.SIGNATURE_INVALID) from None

    def _delivery(
        self, endpoint: Endpoint, address: Address, request: Request, version: int
    ) -> DeliveryInput:
        webhook, now = endpoint.webhook, self._clock.now()
        found = (request.find(webhook.delivery_id)) if webhook.HasField("delivery_id") else None
        parts = [part for one in webhook.event_type if (part := request.find(one)) is not None]
        delivery = DeliveryInput(
            connection=address.connection or endpoint.app,
            account_key=address.account_key,
            app_owner="" if address.connection else endpoint.app_owner,
            webhook=webhook.name,
            delivery_id=time_ordered_uuid(now),
            provider_delivery_id=found or hashlib.sha256(request.body).hexdigest(),
            event_type=".".join(parts),
            body=request.body,
            content_type=request.header("content-type") or "",
            headers=_kept(request.headers, webhook),
            query=request.query,
            verified=True,
            secret_version=version,
            priority=_priority(webhook, ".".join(parts)),
            traceparent=_traceparent(),
        )
        delivery.received_at.FromDatetime(now)
        return delivery


async def _read(http: HttpRequest, webhook: Webhook, seconds: float) -> Request:
    limit = webhook.max_body_bytes or BODY_LIMIT
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in http.stream():
                body += chunk
                if len(body) > limit:
                    raise Problem(Code.BODY_TOO_LARGE, limit=limit)
    except TimeoutError:
        why = f"it did not come within {seconds:g} seconds"
        raise Problem(Code.INVALID_ARGUMENT, field="body", why=why) from None
    except ClientDisconnect:
        raise Problem(Code.INVALID_ARGUMENT, field="body", why="it ended too early") from None
    return Request(
        method=http.method,
        url=str(http.url),
        query=http.url.query,
        headers=[(name.decode("latin-1").lower(), value) for name, value in http.headers.raw],
        body=bytes(body),
        form=webhook.body,
    )


def _kept(headers: Sequence[tuple[str, bytes]], webhook: Webhook) -> list[Header]:
    """What came along, without that by which the sender proved itself."""
    scheme = webhook.signature
    proofs = {scheme.hmac.signature.header.lower(), scheme.token.token.header.lower()} | AUTHENTICATING
    return [Header(name=name, value=value) for name, value in headers if name not in proofs]


def _priority(webhook: Webhook, event_type: str) -> Priority.ValueType:
    for override in webhook.priority_overrides:
        whole, dot, rest = override.event_type.rpartition(".")
        if event_type == override.event_type or (rest == "*" and event_type.startswith(whole + dot)):
            return override.priority
    return webhook.priority


def _traceparent() -> str:
    carrier: dict[str, Any] = {}
    propagate.inject(carrier)
    return str(carrier.get("traceparent", ""))


def _answer(webhook: Webhook, delivery: DeliveryInput, outcome: AcceptOutcome) -> Response:
    if outcome.result == AcceptOutcome.RESULT_REFUSED:
        raise Problem(Code.DELIVERY_REFUSED, why=outcome.failure.message or outcome.failure.reason)
    if outcome.result not in (AcceptOutcome.RESULT_ACCEPTED, AcceptOutcome.RESULT_DUPLICATE):
        raise Problem(Code.DEPENDENCY_UNAVAILABLE, dependency="inbox", why="its answer is not understood")
    body = {"delivery_id": outcome.delivery_id or delivery.delivery_id}
    accepted = outcome.result == AcceptOutcome.RESULT_ACCEPTED
    status = 202 if accepted else 200
    if accepted and webhook.answer.status:
        status = webhook.answer.status
    return JSONResponse(body, status_code=status)
