"""Whether every way to tamper with a chain shows: on records alone, no database needed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.credentials.audit.chain import Head, Record, follow, hash_of, mac_of, mac_of_head
from services.credentials.audit.entry import Actor, Entry, Outcome
from services.credentials.audit.store import HeadRow, RecordRow
from services.credentials.audit.verifying import (
    BROKEN_LINK,
    EDITED,
    FORGED,
    MISSING,
    ROLLED_BACK,
    TRUNCATED,
    Checkpoints,
    Finding,
    Verifier,
)

KEY, ATTACKER = b"k" * 32, b"a" * 32
START = datetime(2026, 1, 1, tzinfo=UTC)
Chain = list[RecordRow]


def stored(record: Record) -> RecordRow:
    entry = record.entry
    return RecordRow(
        tenant=entry.tenant,
        sequence=record.sequence,
        time=record.time,
        principal=entry.actor.principal,
        on_behalf_of=entry.actor.on_behalf_of,
        action=entry.action,
        resource=entry.resource,
        fields=list(entry.fields),
        details=dict(entry.details),
        outcome=int(entry.outcome),
        intent=entry.intent,
        previous_hash=record.previous_hash,
        hash=record.hash,
        mac=record.mac,
    )


def chain(length: int, tenant: str = "acme", after: Head | None = None, word: str = "x") -> Chain:
    head, rows = after or Head(), []
    for number in range(length):
        entry = Entry(
            tenant=tenant,
            action="lease.acquire" if number or after else "tenant.create",
            resource=f"tenants/{tenant}/credentials/{word}{number}",
            outcome=Outcome.INTENT,
            fields=["secret"],
            details={"version": str(number)},
            actor=Actor("services/gateway"),
        )
        record = follow(head, entry, START + timedelta(seconds=number), KEY)
        head = Head(record.sequence, record.hash)
        rows.append(stored(record))
    return rows


def end_of(rows: Chain, key: bytes = KEY) -> HeadRow:
    head = Head(rows[-1].sequence, rows[-1].hash) if rows else Head()
    return HeadRow(head.sequence, head.hash, mac_of_head(key, "acme", head))


def verify(
    rows: Chain, end: HeadRow | None, checkpoints: Checkpoints | None = None, begins_with: str = ""
) -> Finding | None:
    verifier = Verifier("acme", KEY, checkpoints or {}, begins_with)
    rows = sorted(rows, key=lambda row: row.sequence)
    for row in rows:
        if finding := verifier.check(row):
            return finding
    return verifier.end(rows[-1].sequence if rows else 0, end)


def rehashed(row: RecordRow, key: bytes = ATTACKER) -> RecordRow:
    content = hash_of(row.record())
    return replace(row, hash=content, mac=mac_of(key, "acme", content))


@pytest.mark.parametrize("length", [0, 1, 2, 40])
def test_what_was_written_is_intact(length: int) -> None:
    rows = chain(length)
    points = {row.sequence: {row.hash} for row in rows}
    assert verify(rows, end_of(rows), points) is None


CHANGES: dict[str, Callable[[RecordRow], Any]] = {
    "tenant": lambda _: "other",
    "time": lambda row: row.time + timedelta(microseconds=1),
    "principal": lambda row: row.principal + "x",
    "on_behalf_of": lambda _: "users/ada",
    "action": lambda _: "lease.release",
    "resource": lambda row: row.resource[:-1],
    "fields": lambda row: [*row.fields, "more"],
    "details": lambda row: row.details | {"version": "99"},
    "outcome": lambda _: int(Outcome.DONE),
    "intent": lambda row: row.intent + 1,
    "previous_hash": lambda row: row.previous_hash[::-1] if row.sequence > 1 else b"1" * 32,
    "hash": lambda _: b"h" * 32,
}


@pytest.mark.parametrize("column", CHANGES)
@pytest.mark.parametrize("sequence", [1, 3, 5])
def test_a_change_of_any_column_shows(column: str, sequence: int) -> None:
    rows = chain(5)
    row = rows[sequence - 1]
    rows[sequence - 1] = replace(row, **{column: CHANGES[column](row)})
    finding = verify(rows, end_of(chain(5)))
    assert finding is not None
    assert (finding.sequence, finding.defect) == (sequence, EDITED)
    if column != "hash":
        rows[sequence - 1] = rehashed(rows[sequence - 1])
        finding = verify(rows, end_of(chain(5)))
        assert finding is not None
        assert (finding.sequence, finding.defect) == (sequence, FORGED)


@pytest.mark.parametrize(
    "changed", [{"outcome": 77}, {"details": None}, {"details": [1]}, {"details": {"a": 1}}, {"mac": b""}]
)
def test_what_we_never_write_is_found_and_breaks_nothing(changed: dict[str, Any]) -> None:
    rows = chain(3)
    rows[1] = replace(rows[1], **changed)
    finding = verify(rows, end_of(rows))
    assert finding is not None
    assert finding.sequence == 2


def test_an_end_that_does_not_fit_shows() -> None:
    rows = chain(5)
    cut = rows[:3]
    cases: list[tuple[Chain, HeadRow | None, int, int]] = [
        (cut, end_of(rows), 4, TRUNCATED),
        (cut, end_of(cut, ATTACKER), 3, FORGED),
        (rows, end_of(cut), 4, ROLLED_BACK),
        (rows, None, 6, MISSING),
        ([], end_of(rows), 1, TRUNCATED),
        (rows, replace(end_of(rows), sequence=-1), 1, FORGED),
        (chain(5, word="y"), end_of(rows), 5, ROLLED_BACK),
    ]
    for found, end, sequence, defect in cases:
        finding = verify(found, end)
        assert finding is not None
        assert (finding.sequence, finding.defect) == (sequence, defect), finding


def test_a_rollback_of_everything_shows_against_a_checkpoint_alone() -> None:
    rows = chain(5)
    before, other = rows[:3], rows[:3] + chain(2, after=Head(3, rows[2].hash), word="z")
    point = {5: {rows[4].hash}}
    assert verify(before, end_of(before)) is None
    assert verify(before, end_of(before), point) == Finding(
        4, TRUNCATED, "a checkpoint covers records up to 5"
    )
    assert verify(other, end_of(other)) is None
    found = verify(other, end_of(other), point)
    assert found is not None
    assert (found.sequence, found.defect) == (5, ROLLED_BACK)
    assert verify([], None) is None
    beginning = verify([], None, begins_with="tenant.create")
    assert beginning is not None
    assert beginning.defect == TRUNCATED
    anew = chain(2, after=Head())
    found = verify(anew, end_of(anew), begins_with="tenant.create")
    assert found is not None
    assert (found.sequence, found.defect) == (1, ROLLED_BACK)


def test_a_record_of_another_past_does_not_fit_in() -> None:
    rows = chain(5)
    fork = chain(2, after=Head(2, b"p" * 32), word="z")
    spliced = rows[:2] + fork[:1] + rows[3:]
    finding = verify(spliced, end_of(rows))
    assert finding is not None
    assert (finding.sequence, finding.defect) == (3, BROKEN_LINK)


def tamper(rows: Chain, how: str, at: int, chance: random.Random) -> tuple[Chain, int]:
    """The chain as an attacker leaves it, and the first sequence that is not what it was."""
    rows = list(rows)
    row = rows[at]
    if how == "edit":
        column = chance.choice(sorted(CHANGES))
        rows[at] = replace(row, **{column: CHANGES[column](row)})
    elif how == "forge":
        rows[at] = rehashed(replace(row, resource=row.resource + "x"))
    elif how == "delete":
        del rows[at]
    elif how == "delete and close the gap":
        rows[at:] = [replace(one, sequence=one.sequence - 1) for one in rows[at + 1 :]]
    elif how == "insert":
        new = rehashed(replace(row, principal="users/mallory"))
        rows[at:] = [new, *(replace(one, sequence=one.sequence + 1) for one in rows[at:])]
    elif how == "swap":
        rows[at], rows[at - 1] = (
            replace(rows[at - 1], sequence=rows[at].sequence),
            replace(rows[at], sequence=rows[at - 1].sequence),
        )
        return rows, at
    elif how == "cut":
        del rows[at:]
    return rows, at + 1


@settings(max_examples=200, deadline=None)
@given(
    length=st.integers(2, 30),
    how=st.sampled_from(["edit", "forge", "delete", "delete and close the gap", "insert", "swap", "cut"]),
    where=st.integers(0, 10_000),
    chance=st.randoms(use_true_random=False),
    end=st.sampled_from(["left", "forged", "deleted"]),
)
def test_whatever_is_done_the_first_bad_record_is_named(
    length: int, how: str, where: int, chance: random.Random, end: str
) -> None:
    """Edits, forgeries, deletions, insertions, moves and cuts, with the end left, forged or deleted."""
    rows = chain(length)
    at = where % length
    if how == "swap":
        at = max(1, at)
    tampered, first_bad = tamper(rows, how, at, chance)
    ends = {"left": end_of(rows), "forged": end_of(tampered, ATTACKER), "deleted": None}
    finding = verify(tampered, ends[end], begins_with="tenant.create")
    assert finding is not None
    cut_at_the_end = how == "cut" or (how.startswith("delete") and at == length - 1)
    if not cut_at_the_end:
        assert finding.sequence == first_bad
    elif end == "forged":
        # All that is left is true: what the end says is what is not.
        assert finding.sequence in (max(1, first_bad - 1), first_bad)
    else:
        assert finding.sequence == first_bad
