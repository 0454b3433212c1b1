"""Cutting the groups of a call into batches that a plugin takes, and putting their results together again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from services.registry.broker.serving import Served
from tieline.plugin.v1.manifest_pb2 import Manifest
from tieline.plugin.v1.transform_pb2 import TransformInput

ITEMS = 500
BYTES = 1024 * 1024


@dataclass(slots=True)
class Share:
    """Some inputs of one group."""

    group: int
    served: Served
    inputs: list[TransformInput] = field(default_factory=list)


Batch = list[Share]


def cut(
    groups: Iterable[tuple[int, Served, Sequence[TransformInput]]], manifest: Manifest
) -> Iterator[Batch]:
    """Batches within the plugin's limits, in order; an input that is larger than a batch travels alone."""
    items = manifest.limits.batch_items or ITEMS
    room = manifest.limits.batch_bytes or BYTES
    batch: Batch = []
    count = size = 0
    for group, served, inputs in groups:
        share = Share(group, served)
        for item in inputs:
            weight = item.ByteSize()
            if count and (count >= items or size + weight > room):
                yield batch
                batch, count, size = [], 0, 0
                share = Share(group, served)
            if not share.inputs:
                batch.append(share)
            share.inputs.append(item)
            count, size = count + 1, size + weight
    if batch:
        yield batch
