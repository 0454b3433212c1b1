"""Which events a subscriber wants to be told."""

from __future__ import annotations

from foundation.errors import Code, Problem
from tieline.event.v1.event_pb2 import Event
from tieline.mapper.v1.subscriptions_pb2 import EventFilter

_MOST = 100


def check(wanted: EventFilter, field: str) -> None:
    """Refuse what this version cannot keep to, rather than telling too much or too little."""
    if wanted.condition:
        raise Problem(
            Code.INVALID_ARGUMENT, field=f"{field}.condition", why="conditions are not evaluated yet"
        )
    for name in ("categories", "types", "entities"):
        if len(getattr(wanted, name)) > _MOST:
            raise Problem(Code.INVALID_ARGUMENT, field=f"{field}.{name}", why=f"more than {_MOST}")


def fits(wanted: EventFilter, event: Event) -> bool:
    if wanted.categories and event.category not in wanted.categories:
        return False
    if wanted.types and not any(covers(pattern, event.type) for pattern in wanted.types):
        return False
    if event.severity < wanted.min_severity:
        return False
    if wanted.entities:
        there = {(entity.kind, entity.id) for entity in event.entities}
        return any((entity.kind, entity.id) in there for entity in wanted.entities)
    return True


def covers(pattern: str, type_: str) -> bool:
    """A trailing `.*` covers everything below."""
    if pattern.endswith(".*"):
        return type_.startswith(pattern[:-1])
    return type_ == pattern
