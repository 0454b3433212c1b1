"""The process's metrics, in a registry of its own so that several services can live in one process."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector

# From a health check to the slowest poll.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    def __init__(self, service: str) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.ready = Gauge(
            "tieline_ready", "1 while every dependency answers, else 0.", ["service"], registry=self.registry
        ).labels(service=service)
        self.rpc_seconds = Histogram(
            "tieline_rpc_server_seconds",
            "How long a served gRPC method took, by method and status code.",
            ["method", "code"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.rpc_under_way = Gauge(
            "tieline_rpc_server_under_way",
            "gRPC requests being served at this moment.",
            registry=self.registry,
        )
        self.errors = Counter(
            "tieline_errors_total",
            "Requests that ended in an error of the catalogue, by its code.",
            ["code"],
            registry=self.registry,
        )

    def render(self) -> bytes:
        return generate_latest(self.registry)
