"""Traces: the W3C context always travels on; spans are made only where a collector is configured.

The OpenTelemetry SDK and its exporter are imported only then: they cost a service a third of its start.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from opentelemetry import trace


@asynccontextmanager
async def open_traces(service: str, endpoint: str | None) -> AsyncIterator[trace.Tracer]:
    if endpoint is None:
        yield trace.NoOpTracer()
        return
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    provider = TracerProvider(resource=Resource({"service.name": f"tieline-{service}"}))
    provider.add_span_processor(
        BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, insecure=endpoint.startswith("http://")))
    )
    try:
        yield provider.get_tracer("tieline")
    finally:
        provider.shutdown()
