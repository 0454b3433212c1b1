"""What one revision changed: the fields by name, and the settings as a JSON patch (RFC 6902)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from services.registry.connections.connection import Revision
from services.registry.connections.wanted import changed_fields
from tieline.registry.v1 import connections_pb2 as pb

Operation = dict[str, Any]


def differences(revision: Revision, before: Revision | None) -> tuple[list[str], bytes]:
    """Names of what differs from the revision before, and the patch that makes its settings of the earlier ones."""
    earlier = before.wanted if before is not None else pb.Connection()
    old = json.loads(earlier.settings or b"{}")
    operations = patch(old, json.loads(revision.wanted.settings or b"{}"))
    return changed_fields(earlier, revision.wanted), json.dumps(operations, separators=(",", ":")).encode()


def patch(before: Any, after: Any) -> list[Operation]:
    """Operations which, one after the other, make the one document of the other."""
    return list(_patch(before, after, ""))


def _patch(before: Any, after: Any, place: str) -> Iterator[Operation]:
    if _same(before, after):
        return
    if isinstance(before, dict) and isinstance(after, dict):
        yield from _of_objects(before, after, place)
    elif isinstance(before, list) and isinstance(after, list):
        yield from _of_arrays(before, after, place)
    else:
        yield {"op": "replace", "path": place, "value": after}


def _of_objects(before: Mapping[str, Any], after: Mapping[str, Any], place: str) -> Iterator[Operation]:
    for key in sorted(before.keys() | after.keys()):
        below = f"{place}/{_escaped(key)}"
        if key not in after:
            yield {"op": "remove", "path": below}
        elif key not in before:
            yield {"op": "add", "path": below, "value": after[key]}
        else:
            yield from _patch(before[key], after[key], below)


def _of_arrays(before: Sequence[Any], after: Sequence[Any], place: str) -> Iterator[Operation]:
    """What both have is compared in its place; the rest is cut off from the end, or added there."""
    both = min(len(before), len(after))
    for index in range(both):
        yield from _patch(before[index], after[index], f"{place}/{index}")
    for index in reversed(range(both, len(before))):
        yield {"op": "remove", "path": f"{place}/{index}"}
    for index in range(both, len(after)):
        yield {"op": "add", "path": f"{place}/{index}", "value": after[index]}


def _same(one: Any, other: Any) -> bool:
    """As JSON: `1` is not `true`, which Python thinks it is."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")
