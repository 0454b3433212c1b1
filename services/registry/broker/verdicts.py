"""What a plugin answered, held against what it declared."""

from __future__ import annotations

from collections.abc import Iterator

from services.registry.broker import failures
from services.registry.broker.batches import Share
from tieline.event.v1.content_pb2 import Severity
from tieline.plugin.v1.manifest_pb2 import Manifest
from tieline.plugin.v1.transform_pb2 import TransformGroupResult, TransformOutcome


class Declared:
    """The event types of a manifest, with the severity that an event has which does not say."""

    def __init__(self, manifest: Manifest) -> None:
        self.severities = {
            event.type: event.severity or Severity.SEVERITY_INFO for event in manifest.event_types
        }


def judged(share: Share, answer: TransformGroupResult, declared: Declared) -> Iterator[TransformOutcome]:
    """Exactly one outcome for each input, whatever the plugin left out or made up."""
    told: dict[str, TransformOutcome | None] = {}
    for outcome in answer.outcomes:  # two for one input are as good as none: nobody can say which was meant
        told[outcome.input_id] = None if outcome.input_id in told else outcome
    for item in share.inputs:
        found = told.get(item.input_id)
        if found is None or found.WhichOneof("outcome") is None:
            why = "the plugin said nothing of this input, or not one thing"
            yield TransformOutcome(input_id=item.input_id, failure=failures.internal("NO_OUTCOME", why))
        else:
            yield _checked(found, declared)


def _checked(outcome: TransformOutcome, declared: Declared) -> TransformOutcome:
    if outcome.HasField("failure"):
        outcome.failure.CopyFrom(failures.bounded(outcome.failure))
    for draft in outcome.events.drafts:
        if draft.type not in declared.severities:
            why = f"the plugin emits {draft.type[:100]}, which its manifest does not declare"
            return TransformOutcome(
                input_id=outcome.input_id, failure=failures.internal("UNDECLARED_TYPE", why)
            )
        draft.severity = draft.severity or declared.severities[draft.type]
    return outcome
