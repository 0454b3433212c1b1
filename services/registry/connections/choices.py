"""What a connection chooses to poll, held against the manifest."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration

from foundation.errors import Code, Problem
from tieline.plugin.v1.manifest_pb2 import Manifest, Stream
from tieline.registry.v1.connections_pb2 import Connection, StreamChoice

GLOBS = 100
GLOB_CHARACTERS = 256
LEAST_SECONDS = 1.0
MOST_SECONDS = 366 * 24 * 3600.0


def check_streams(wanted: Connection, manifest: Manifest) -> None:
    """Raise the problem that names what cannot be polled so."""
    known, seen = {stream.name: stream for stream in manifest.streams}, set[str]()
    for index, choice in enumerate(wanted.streams):
        field = f"connection.streams[{index}]"
        stream = known.get(choice.stream)
        if stream is None:
            there = f"there is {', '.join(known)}" if known else "it has none"
            raise _bad(f"{field}.stream", f"{manifest.name} has no stream {choice.stream[:100]!r}; {there}")
        if choice.stream in seen:
            raise _bad(f"{field}.stream", "it is chosen twice")
        seen.add(choice.stream)
        _check_interval(choice, stream, f"{field}.interval")
        _check_globs(choice, stream, field)
    if wanted.resync_policy not in Connection.ResyncPolicy.values():
        raise _bad("connection.resync_policy", "there is no such policy")


def _check_interval(choice: StreamChoice, stream: Stream, field: str) -> None:
    if not choice.HasField("interval"):
        return
    least = max(_seconds(stream.min_interval), LEAST_SECONDS)
    interval = _seconds(choice.interval)
    if interval < least:
        raise _bad(field, f"{stream.name} may be asked every {least:g} s at most, and {interval:g} s is less")
    if interval > MOST_SECONDS:
        raise _bad(field, "it is longer than a year")


def _check_globs(choice: StreamChoice, stream: Stream, field: str) -> None:
    for name, globs in (("include", choice.include), ("exclude", choice.exclude)):
        if globs and not stream.partitioned:
            raise _bad(f"{field}.{name}", f"{stream.name} has no partitions to choose from")
        if len(globs) > GLOBS:
            raise _bad(f"{field}.{name}", f"there are more than {GLOBS}")
        for number, glob in enumerate(globs):
            if not glob or len(glob) > GLOB_CHARACTERS or "\0" in glob:
                why = f"a pattern has 1 to {GLOB_CHARACTERS} characters and no NUL"
                raise _bad(f"{field}.{name}[{number}]", why)


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9


def _bad(field: str, why: str) -> Problem:
    return Problem(Code.INVALID_ARGUMENT, field=field, why=why)
