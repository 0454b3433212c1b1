"""Each input gets one verdict, and nothing is stored past somebody who waits."""

import random
from datetime import UTC, datetime
from uuid import UUID

import pytest

from services.mapper.backoff import Backoff
from services.mapper.judging import Judge
from services.mapper.verdicts import Dead, Postponed, Skipped, Stored, Waiting
from tests.services.mapper.kit import draft
from tieline.common.v1 import failure_pb2
from tieline.common.v1.failure_pb2 import Failure, FailureKind
from tieline.plugin.v1.transform_pb2 import TransformInput, TransformOutcome
from tieline.registry.v1.broker_pb2 import TransformDataResponse

NOW = datetime(2026, 1, 1, tzinfo=UTC)
FINAL = {"INVALID_INPUT", "NOT_FOUND", "UNSUPPORTED"}
DEFECTS = {"INTERNAL", "NOT_PREPARED", "CURSOR_INVALID", "CONFLICT", "UNSPECIFIED"}


def waiting(number: int, attempts: int = 0) -> Waiting:
    return Waiting(
        tenant="acme",
        id=UUID(int=number),
        connection="tenants/acme/connections/github",
        channel="webhook",
        key=str(number),
        event_type="push",
        content_type="application/json",
        headers=b"",
        body=b"{}",
        sha256=b"s",
        received_at=NOW,
        verified=True,
        traceparent="",
        attempts=attempts,
    )


def event(number: int) -> TransformOutcome:
    drafts = [draft(TransformInput(key=str(number)))]
    return TransformOutcome(
        input_id=str(UUID(int=number)), events=TransformOutcome.EventDrafts(drafts=drafts)
    )


def fails(number: int, kind: failure_pb2.FailureKind.ValueType) -> TransformOutcome:
    return TransformOutcome(input_id=str(UUID(int=number)), failure=Failure(kind=kind))


def judge() -> Judge:
    return Judge(Backoff(random=random.Random(1)))  # noqa: S311  a seed for a test


def result(*outcomes: TransformOutcome) -> TransformDataResponse.Result:
    return TransformDataResponse.Result(outcomes=outcomes, plugin_version="1")


def test_outcomes_in_any_order_find_their_inputs() -> None:
    skipped = TransformOutcome(
        input_id=str(UUID(int=2)), skipped=TransformOutcome.Skipped(reason="not a reason")
    )
    inputs = [waiting(n) for n in (1, 2, 3)]
    judged = judge().group(inputs, result(event(3), skipped, event(1), event(99)), NOW)
    assert [given for given, _ in judged] == inputs
    assert [type(verdict) for _, verdict in judged] == [Stored, Skipped, Stored]
    assert judged[1][1] == Skipped("UNNAMED")


def test_nothing_is_judged_past_one_that_waits() -> None:
    inputs = [waiting(n) for n in (1, 2, 3)]
    answer = result(event(1), fails(2, failure_pb2.FAILURE_KIND_TRANSIENT), event(3))
    judged = judge().group(inputs, answer, NOW)
    assert [type(verdict) for _, verdict in judged] == [Stored, Postponed]


def test_two_outcomes_for_one_input_are_none() -> None:
    judged = judge().group([waiting(1, attempts=2)], result(event(1), event(1)), NOW)
    assert isinstance(judged[0][1], Dead)
    assert judged[0][1].reason == "OUTCOME_MISSING"


@pytest.mark.parametrize(
    "name", [name.removeprefix("FAILURE_KIND_") for name in FailureKind.DESCRIPTOR.values_by_name]
)
@pytest.mark.parametrize("attempts", [0, 2])
def test_each_kind_of_failure_waits_or_dies(name: str, attempts: int) -> None:
    failure = Failure(kind=FailureKind.Value(f"FAILURE_KIND_{name}"))
    inputs = [waiting(1, attempts), waiting(2)]
    judged = judge().group(inputs, TransformDataResponse.Result(failure=failure), NOW)
    if name in FINAL:
        assert [type(verdict) for _, verdict in judged] == [Dead, Dead]
    elif name in DEFECTS and attempts == 2:
        assert [(given.key, type(verdict)) for given, verdict in judged] == [("1", Dead)]
    else:
        assert [(given.key, type(verdict)) for given, verdict in judged] == [("1", Postponed)]


def test_a_kind_of_tomorrow_waits() -> None:
    odd = Failure.FromString(b"\x08\x63")  # kind 99
    judged = judge().group([waiting(1)], TransformDataResponse.Result(failure=odd), NOW)
    assert isinstance(judged[0][1], Postponed)
    assert judged[0][1].failure.reason == "UNKNOWN"


def test_backoff_grows_to_its_cap_and_never_comes_before_it_may() -> None:
    backoff = Backoff(random=random.Random(1))  # noqa: S311
    first = [backoff.seconds(0, Failure()) for _ in range(200)]
    late = [backoff.seconds(1000, Failure()) for _ in range(200)]
    assert 0.05 <= min(first) < max(first) <= 0.25
    assert max(late) > 12
    assert max(late) <= 15.05
    asked = Failure()
    asked.retry_after.FromSeconds(60)
    assert all(60 <= backoff.seconds(0, asked) <= 60.2 for _ in range(200))
    asked.retry_after.FromSeconds(10**7)
    assert backoff.seconds(0, asked) == 3600
    asked.retry_after.seconds = 2**62  # more than any other type can hold
    assert backoff.seconds(0, asked) == 3600
