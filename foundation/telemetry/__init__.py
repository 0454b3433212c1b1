"""Logs, metrics and traces: quiet, and cheap where nobody collects them."""

from foundation.telemetry.logs import configure_logs
from foundation.telemetry.metrics import Metrics
from foundation.telemetry.readiness import Check, Readiness
from foundation.telemetry.traces import open_traces

__all__ = ["Check", "Metrics", "Readiness", "configure_logs", "open_traces"]
