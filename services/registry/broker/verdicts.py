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
    told = {outcome.input_id: outcome for outcome in answer.outcomes}
    for item in share.inputs:
        outcome = told.get(item.input_id)
        if outcome is None or outcome.WhichOneof("outcome") is None:
            why = "the plugin said nothing of this input"
            yield TransformOutcome(input_id=item.input_id, failure=failures.internal("NO_OUTCOME", why))
        else:
            yield _checked(outcome, declared)


def _checked(outcome: TransformOutcome, declared: Declared) -> TransformOutcome:
    for draft in outcome.events.drafts:
        if draft.type not in declared.severities:
            why = f"the plugin emits {draft.type[:100]}, which its manifest does not declare"
            return TransformOutcome(
                input_id=outcome.input_id, failure=failures.internal("UNDECLARED_TYPE", why)
            )
        draft.severity = draft.severity or declared.severities[draft.type]
    return outcome
