"""The gateway with nothing behind it: the same handler, verification included, storing nothing.

python -m bench.kit.null_edge PORT      until stdin ends
"""

import asyncio
import sys
from collections.abc import Sequence
from typing import Any, cast

import uvloop
from opentelemetry import trace
from prometheus_client import CollectorRegistry
from starlette.routing import Route

from foundation.clock import SystemClock
from foundation.settings import Address
from foundation.telemetry.http import application, serve_http
from gateway.hooks import Hooks
from gateway.routing import RoutingMetrics
from gateway.verification import Secret
from tieline.mapper.v1.inbox_pb2 import AcceptOutcome, DeliveryInput
from tieline.plugin.v1.webhook_pb2 import Body, Extractor, Signature, Webhook
from tieline.registry.v1.endpoints_pb2 import Endpoint

SECRET = b"a secret for measuring with"
WEBHOOK = Webhook(
    name="events",
    signature=Signature(
        hmac=Signature.Hmac(signature=Extractor(header="x-hub-signature-256", prefix="sha256="))
    ),
    delivery_id=Extractor(header="x-github-delivery"),
    event_type=[Extractor(header="x-github-event"), Extractor(json="/action")],
    body=Body(form=Body.FORM_JSON),
)


class One:
    """What the handler asks for: one endpoint, a tenant that is served, one secret, an inbox that says yes at once."""

    def get(self, name: str) -> Endpoint:
        return Endpoint(endpoint=name, connection="tenants/bench/connections/null", webhook=WEBHOOK)

    def refusal(self, _: str) -> str:
        return ""

    async def secrets(self, _: Endpoint) -> Sequence[Secret]:
        return (Secret(1, SECRET),)

    async def accept(self, delivery: DeliveryInput) -> AcceptOutcome:
        return AcceptOutcome(result=AcceptOutcome.RESULT_ACCEPTED, delivery_id=delivery.delivery_id)


async def main(port: int) -> None:
    one = cast("Any", One())
    hooks = Hooks(
        one,
        one,
        one,
        one,
        clock=SystemClock(),
        tracer=trace.NoOpTracer(),
        body_seconds=30,
        metrics=RoutingMetrics(CollectorRegistry()),
    )
    app = application([Route("/hooks/{endpoint}", hooks.receive, methods=["POST"])])
    async with serve_http(app, Address("127.0.0.1", port), 1):
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(int(sys.argv[1])))
