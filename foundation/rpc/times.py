"""A Timestamp may hold anything; not all of it is a time."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from foundation.errors import Code, Problem


def stamp(value: datetime) -> Timestamp:
    """A time of ours, on its way out."""
    told = Timestamp()
    told.FromDatetime(value.astimezone(UTC))
    return told


def moment(given: Timestamp, field: str) -> datetime:
    """The time that it says, or the problem INVALID_ARGUMENT for that field."""
    try:
        return given.ToDatetime(UTC)
    except (ValueError, OverflowError):
        raise Problem(Code.INVALID_ARGUMENT, field=field, why="it is no time") from None
