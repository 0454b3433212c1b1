"""What a connection wants polled, by its choices and the manifest of the version that it runs on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase

from services.registry.schedules.schedule import Kind
from tieline.common.v1.delivery_pb2 import Priority
from tieline.plugin.v1.fetch_pb2 import Partition
from tieline.plugin.v1.manifest_pb2 import Manifest, Stream
from tieline.registry.v1.connections_pb2 import Connection, StreamChoice

LEAST_SECONDS = 1.0
LIST_SECONDS = 600.0
"""How often it is looked which parts a stream has."""


@dataclass(frozen=True, slots=True)
class Wish:
    """One stream."""

    stream: str
    kind: Kind
    interval: float
    gap: float
    priority: Priority.ValueType
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def takes(self, partition: str) -> bool:
        """Whether that part is wanted; what excludes wins."""
        return matches(partition, self.include) and not (self.exclude and matches(partition, self.exclude))


def matches(partition: str, globs: Sequence[str]) -> bool:
    """No globs: everything."""
    return not globs or any(fnmatchcase(partition, glob) for glob in globs)


def wishes(wanted: Connection, manifest: Manifest) -> list[Wish]:
    """A stream that this version does not know is not polled."""
    known = {stream.name: stream for stream in manifest.streams}
    return [_wish(choice, known[choice.stream]) for choice in wanted.streams if choice.stream in known]


def digest(revision: int, wanted: Iterable[Wish]) -> str:
    text = json.dumps([revision, *map(asdict, wanted)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def chosen(partitions: Iterable[Partition], wish: Wish) -> list[Partition]:
    return [one for one in partitions if wish.takes(one.id)]


def least_interval(stream: Stream) -> float:
    """Below this nobody may ask."""
    return max(_seconds(stream, "min_interval"), LEAST_SECONDS)


def _wish(choice: StreamChoice, stream: Stream) -> Wish:
    interval = _seconds(choice, "interval") or _seconds(stream, "default_interval")
    return Wish(
        stream=stream.name,
        kind=Kind.LIST if stream.partitioned else Kind.POLL,
        interval=max(interval, least_interval(stream)),
        gap=_seconds(stream, "min_interval"),
        priority=stream.priority,
        include=tuple(choice.include),
        exclude=tuple(choice.exclude),
    )


def _seconds(message: Stream | StreamChoice, field: str) -> float:
    duration = getattr(message, field)
    return float(duration.ToTimedelta().total_seconds()) if message.HasField(field) else 0.0  # type: ignore[arg-type]  # one of theirs
