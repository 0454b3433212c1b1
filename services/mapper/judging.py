"""From what the broker answered to what becomes of each delivery.

A plugin is a stranger's code: whatever it answers, every delivery gets exactly one verdict here, and none is
lost, doubled or given to another.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from services.mapper.backoff import Backoff
from services.mapper.stamping import stamp
from services.mapper.validation import validate
from services.mapper.verdicts import Dead, Judged, Postponed, Skipped, Stored, Verdict, Waiting
from tieline.common.v1 import failure_pb2
from tieline.common.v1.diagnostic_pb2 import Diagnostic
from tieline.common.v1.failure_pb2 import Failure
from tieline.mapper.v1.dead_letters_pb2 import DeadLetter
from tieline.plugin.v1.transform_pb2 import EventDraft, TransformOutcome
from tieline.registry.v1.broker_pb2 import TransformDataResponse

DEFECT_ATTEMPTS = 3
"""A defect is met again at most twice; then it is the input's fault as far as anybody can tell."""
MOST_DRAFTS = 1000

_REASON = re.compile(r"[A-Z][A-Z0-9_]{1,63}")
# These never change by waiting. All others do: a paused connection, a credential, a provider that is down.
_FINAL = {
    failure_pb2.FAILURE_KIND_INVALID_INPUT,
    failure_pb2.FAILURE_KIND_NOT_FOUND,
    failure_pb2.FAILURE_KIND_UNSUPPORTED,
}
_DEFECTS = {
    failure_pb2.FAILURE_KIND_INTERNAL,
    failure_pb2.FAILURE_KIND_NOT_PREPARED,
    failure_pb2.FAILURE_KIND_CURSOR_INVALID,
    failure_pb2.FAILURE_KIND_CONFLICT,
    failure_pb2.FAILURE_KIND_UNSPECIFIED,
}


@dataclass(frozen=True, slots=True)
class Judge:
    backoff: Backoff

    def group(
        self, inputs: Sequence[Waiting], result: TransformDataResponse.Result, now: datetime
    ) -> list[Judged]:
        """Verdicts for a connection's inputs, oldest first, up to the first that has to wait.

        What comes after that one is left alone and transformed again later: order within a connection is
        kept by never storing past somebody who waits.
        """
        if result.HasField("failure"):
            return self.failed(inputs, result.failure, result.plugin_version)
        outcomes = _by_input(result.outcomes)
        judged: list[Judged] = []
        for waiting in inputs:
            verdict = self._one(waiting, outcomes.get(str(waiting.id)), result.plugin_version, now)
            judged.append((waiting, verdict))
            if isinstance(verdict, Postponed):
                break
        return judged

    def failed(self, inputs: Sequence[Waiting], failure: Failure, version: str = "") -> list[Judged]:
        """None of the inputs was looked at. All of them die of it, or the oldest waits and the others behind it."""
        verdicts: list[Judged] = [(waiting, self._failure(waiting, failure, version)) for waiting in inputs]
        if isinstance(verdicts[0][1], Postponed):
            return verdicts[:1]
        return [(waiting, verdict) for waiting, verdict in verdicts if isinstance(verdict, Dead)]

    def _one(
        self, waiting: Waiting, outcome: TransformOutcome | None, version: str, now: datetime
    ) -> Verdict:
        match outcome.WhichOneof("outcome") if outcome is not None else None:
            case "events":
                assert outcome is not None  # noqa: S101  or it would not say so
                return self._drafts(waiting, outcome.events.drafts, version, now)
            case "skipped":
                assert outcome is not None  # noqa: S101
                reason = outcome.skipped.reason
                return Skipped(reason if _REASON.fullmatch(reason) else "UNNAMED")
            case "failure":
                assert outcome is not None  # noqa: S101
                return self._failure(waiting, outcome.failure, version)
            case _:
                return self._failure(
                    waiting, _defect("OUTCOME_MISSING", "there is no single outcome"), version
                )

    def _drafts(self, waiting: Waiting, drafts: Sequence[EventDraft], version: str, now: datetime) -> Verdict:
        if not drafts:
            return self._failure(waiting, _defect("OUTCOME_EMPTY", "it became no event at all"), version)
        if len(drafts) > MOST_DRAFTS:
            why = f"{len(drafts)} events, at most {MOST_DRAFTS} may come of one input"
            return Dead(DeadLetter.STAGE_VALIDATE, _invalid("EVENTS_TOO_MANY", why), (), version)
        if wrong := list(_diagnostics(drafts)):
            why = f"{wrong[0].pointer}: {wrong[0].summary}"
            return Dead(DeadLetter.STAGE_VALIDATE, _invalid("EVENT_INVALID", why), wrong, version)
        return Stored(stamp(drafts, waiting, version, now))

    def _failure(self, waiting: Waiting, failure: Failure, version: str) -> Dead | Postponed:
        worn_out = failure.kind in _DEFECTS and waiting.attempts + 1 >= DEFECT_ATTEMPTS
        if failure.kind in _FINAL or worn_out:
            stage = DeadLetter.STAGE_POISON if failure.reason == "POISON" else DeadLetter.STAGE_TRANSFORM
            return Dead(stage, tidy(failure), (), version)
        return Postponed(tidy(failure), self.backoff.seconds(waiting.attempts, failure))


def _by_input(outcomes: Sequence[TransformOutcome]) -> dict[str, TransformOutcome | None]:
    """Two outcomes for one input are as good as none: nobody can say which was meant."""
    found: dict[str, TransformOutcome | None] = {}
    for outcome in outcomes:
        found[outcome.input_id] = None if outcome.input_id in found else outcome
    return found


def _diagnostics(drafts: Sequence[EventDraft]) -> Iterator[Diagnostic]:
    for index, draft in enumerate(drafts):
        for diagnostic in validate(draft):
            diagnostic.pointer = f"/{index}{diagnostic.pointer}"
            yield diagnostic


def _invalid(reason: str, why: str) -> Failure:
    return Failure(kind=failure_pb2.FAILURE_KIND_INVALID_INPUT, reason=reason, message=why)


def _defect(reason: str, why: str) -> Failure:
    return Failure(kind=failure_pb2.FAILURE_KIND_INTERNAL, reason=reason, message=why)


def tidy(failure: Failure) -> Failure:
    """A stranger's failure, within the limits that the contract sets it."""
    kept = Failure()
    kept.CopyFrom(failure)
    if not _REASON.fullmatch(kept.reason):
        kept.reason = (
            failure_pb2.FailureKind.Name(kept.kind).removeprefix("FAILURE_KIND_")
            if (kept.kind in failure_pb2.FailureKind.values())
            else "UNKNOWN"
        )
    kept.message = kept.message.encode()[:1024].decode(errors="ignore")
    return kept
