"""The settings every process has."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from foundation.settings.types import Address, Settings


class ServiceSettings(Settings, frozen=True, kw_only=True):
    http: Annotated[Address, Meta(description="Where /healthz, /readyz and /metrics are served.")]
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Meta(description="The least severe log record that is written."),
    ] = "info"
    log_format: Annotated[
        Literal["json", "text"],
        Meta(description="One JSON object a line for machines, or aligned text for people."),
    ] = "json"
    otlp_endpoint: Annotated[
        str | None,
        Meta(description="OTLP/gRPC collector for traces, as in `http://127.0.0.1:4317`. Unset: no tracing."),
    ] = None
    drain_seconds: Annotated[
        float,
        Meta(ge=0, le=60, description="How long requests under way may take to finish at shutdown."),
    ] = 5.0


class RpcSettings(ServiceSettings, frozen=True, kw_only=True):
    listen: Annotated[Address, Meta(description="Where the gRPC API is served.")]
