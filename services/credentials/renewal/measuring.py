"""What is measured of renewal."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Histogram

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class RefreshMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "tieline_credential_refresh_seconds",
            "How long asking a provider for something newer took, by kind and outcome:"
            " kept, superseded, refused, unavailable, lost.",
            ["kind", "outcome"],
            buckets=_SECONDS,
            registry=registry,
        )

    def ended(self, kind: str, outcome: str, seconds: float) -> None:
        self._seconds.labels(kind=kind.lower(), outcome=outcome).observe(seconds)
