"""Whose delivery it is, at an endpoint that many accounts share: read where the manifest says, never guessed."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter

from gateway.request import Request
from tieline.plugin.v1.webhook_pb2 import Routing
from tieline.registry.v1.endpoints_pb2 import Endpoint


@dataclass(frozen=True, slots=True)
class Address:
    """Where a delivery goes."""

    connection: str
    """Empty: no connection has the account."""
    account_key: str = ""
    """Empty at a connection's own endpoint, or where the delivery names none."""


def address_of(endpoint: Endpoint, request: Request) -> Address:
    """The first place that names an account decides, whether anybody has that account or not."""
    if endpoint.WhichOneof("owner") == "connection":
        return Address(endpoint.connection)
    for extractor in endpoint.webhook.routing.account_key:
        key = request.find(extractor)
        if key:
            return Address(endpoint.routes.get(key, ""), key)
    return Address("")


def is_signed_by_account(endpoint: Endpoint) -> bool:
    return endpoint.WhichOneof("owner") == "app" and endpoint.webhook.routing.signer == Routing.SIGNER_ACCOUNT


def policy_of(endpoint: Endpoint) -> Routing.Unmatched.ValueType:
    """What is done with an account that nobody has: as the app says, else as the manifest says, else it is refused."""
    chosen = endpoint.unmatched or endpoint.webhook.routing.unmatched
    return chosen or Routing.UNMATCHED_REFUSE


class RoutingMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._unmatched = Counter(
            "tieline_deliveries_unmatched_total",
            "Verified deliveries at an app's endpoint whose account no connection has, by app and what was done:"
            " refuse, dead_letter, discard.",
            ["app", "policy"],
            registry=registry,
        )

    def unmatched(self, app: str, policy: Routing.Unmatched.ValueType) -> None:
        word = Routing.Unmatched.Name(policy).removeprefix("UNMATCHED_").lower()
        self._unmatched.labels(app=app, policy=word).inc()
