"""Structured logs on stderr: JSON for machines, text for people, never a secret.

Values are rendered by `repr`, so a `Secret` covers itself; keys that name a secret are covered as well,
for the day somebody logs plain text under such a name.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any

import structlog
import structlog.tracebacks
from opentelemetry import trace

_TELLTALE = re.compile(r"(?i)(password|passwd|secret|token|authorization|api_?key|private_?key|cookie)")
_HARMLESS = re.compile(r"(?i)(page_token|_file|_count|_name|_id)$")


def configure_logs(service: str, level: str, style: str) -> None:
    """Set up logging for this process, the standard library's loggers included."""
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_trace,
        cover_secrets,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.stdlib.LoggerFactory(),
        # Not cached: several services may live in one process, and each configuration holds for all of it.
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_rendering(style),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    # Their information is our debugging.
    for chatty in ("uvicorn", "nats", "asyncio", "alembic"):
        logging.getLogger(chatty).setLevel(max(number, logging.WARNING))
    structlog.contextvars.bind_contextvars(service=service)


def _rendering(style: str) -> list[structlog.typing.Processor]:
    # Tracebacks without the values of local variables: those are requests, tokens and keys.
    if style == "text":
        plain = structlog.dev.plain_traceback
        return [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    return [
        structlog.processors.ExceptionRenderer(tracebacks),
        structlog.processors.JSONRenderer(default=repr),
    ]


def cover_secrets(
    _logger: object, _method: str, record: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    record.update(_covered(record))
    return record


def _covered(values: Mapping[str, Any]) -> dict[str, Any]:
    """At any depth of dictionaries: a request that is logged is several deep."""
    return {name: _shown(str(name), value) for name, value in values.items()}


def _shown(name: str, value: Any) -> Any:
    if value is not None and _TELLTALE.search(name) and not _HARMLESS.search(name):
        return "…"
    return _covered(value) if isinstance(value, dict) else value


def _add_trace(_logger: object, _method: str, record: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        record["trace_id"] = trace.format_trace_id(context.trace_id)
    return record
