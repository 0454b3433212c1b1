"""Accepted = stored + skipped + dead + waiting, at every moment, whatever is accepted and whatever becomes of it."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foundation.clock import SystemClock
from foundation.engines.testing import Served, fresh_database
from foundation.store.schemas import MAPPER
from foundation.store.unit_of_work import Bounds, Store
from foundation.store.url import DatabaseUrl
from services.mapper.backoff import Backoff
from services.mapper.broker import Group
from services.mapper.inbox import Inbox
from services.mapper.judging import Judge
from services.mapper.leases import Leases
from services.mapper.names import PARTITIONS, event_id
from services.mapper.store.events import EventStore, Place, Wanted
from services.mapper.store.inbox import InboxStore
from services.mapper.store.leases import LeaseStore
from services.mapper.store.work import QueueStore, WorkStore
from services.mapper.verdicts import Dead, Skipped, Waiting
from services.mapper.worker import Worker
from tests.services.mapper.conftest import TEMPLATE
from tests.services.mapper.kit import PASSWORDS, became, delivery, draft
from tieline.common.v1 import failure_pb2
from tieline.common.v1.failure_pb2 import Failure
from tieline.mapper.v1.dead_letters_pb2 import DeadLetter
from tieline.mapper.v1.inbox_pb2 import AcceptOutcome
from tieline.plugin.v1.transform_pb2 import TransformInput, TransformOutcome
from tieline.registry.v1.broker_pb2 import TransformDataResponse

# What finally becomes of a key, by its number; before that it fails for now as often as its script says.
FATES = ("event", "two events", "shared event", "skipped", "refused", "broken", "invalid", "unanswered")
STATES = dict(zip(FATES, (1, 1, 1, 2, 3, 3, 3, 3), strict=True))

LAST = Place(datetime.max.replace(tzinfo=UTC), uuid.UUID(int=2**128 - 1))

keys = st.integers(0, len(FATES) - 1)
connections = st.integers(0, 2)
accept = st.tuples(st.just("accept"), st.lists(st.tuples(connections, keys), min_size=1, max_size=8))
work = st.tuples(st.sampled_from(["work", "crash", "twice"]), st.integers(1, 6))
scripts = st.dictionaries(st.tuples(connections, keys), st.integers(0, 2), max_size=6)


@dataclass
class Plugin:
    """Stands where the broker does."""

    failures: dict[tuple[int, int], int]
    calls: Counter[tuple[int, int]] = field(default_factory=Counter)

    async def transform(self, groups: Sequence[Group]) -> list[TransformDataResponse.Result]:
        return [TransformDataResponse.Result(outcomes=self._outcomes(group)) for group in groups]

    def _outcomes(self, group: Group) -> Iterator[TransformOutcome]:
        for waiting in group:
            outcome = self._outcome(waiting)
            if outcome is not None:
                yield outcome

    def _outcome(self, waiting: Waiting) -> TransformOutcome | None:
        connection, key = int(waiting.connection[-1]), int(waiting.key)
        given_ = TransformInput(input_id=str(waiting.id), key=waiting.key, payload=b"x")
        if self.failures.get((connection, key), 0) > 0:
            self.failures[connection, key] -= 1
            return failing(given_, failure_pb2.FAILURE_KIND_TRANSIENT)
        skipped = TransformOutcome(input_id=given_.input_id, skipped=TransformOutcome.Skipped(reason="PING"))
        return {
            "event": became(given_),
            "two events": became(given_, draft(given_), draft(given_)),
            "shared event": became(given_, draft(given_, external_key="push/0")),
            "skipped": skipped,
            "refused": failing(given_, failure_pb2.FAILURE_KIND_INVALID_INPUT),
            "broken": failing(given_, failure_pb2.FAILURE_KIND_INTERNAL),
            "invalid": became(given_, draft(given_, type="No Type")),
        }.get(FATES[key])


def failing(given_: TransformInput, kind: failure_pb2.FailureKind.ValueType) -> TransformOutcome:
    return TransformOutcome(input_id=given_.input_id, failure=Failure(kind=kind))


@dataclass
class Path:
    service: Store
    inbox: Inbox
    queue: QueueStore
    results: WorkStore
    leases: Leases

    def worker(self, plugin: Plugin) -> Worker:
        judge = Judge(Backoff(base=0.0, floor=0.0))
        return Worker(
            self.queue,
            self.results,
            plugin,
            judge,
            self.leases,
            clock=SystemClock(),
            stored=asyncio.Event(),
        )

    async def take(self, rows: int) -> list[Waiting]:
        return await self.queue.take(range(PARTITIONS), (), rows=rows, size=10**6)

    async def balanced(self, tenant: str) -> dict[str, int]:
        account = dict(await self.results.account([tenant]))
        parts = {name: count for name, count in account.items() if name != "accepted"}
        assert account["accepted"] == sum(parts.values()), account
        return account


@asynccontextmanager
async def opened(postgres: str) -> AsyncIterator[Path]:
    async with fresh_database(postgres, TEMPLATE) as url:
        admin = DatabaseUrl.parse(url)
        stores = [
            Store(
                admin.login(role, PASSWORDS[role]),
                MAPPER,
                application="tests",
                bounds=Bounds(connections=2),
            )
            for role in MAPPER.logins
        ]
        service, worker = stores
        try:
            leases = Leases(LeaseStore(worker), "inbox", PARTITIONS, uuid4(), SystemClock())
            yield Path(service, Inbox(InboxStore(service)), QueueStore(worker), WorkStore(service), leases)
        finally:
            for store in stores:
                await store.aclose()


@pytest.fixture
def path(engines: Served) -> Iterator[tuple[asyncio.Runner, Path]]:
    with asyncio.Runner() as runner:
        context = opened(engines.postgres)
        yield runner, runner.run(context.__aenter__())
        runner.run(context.__aexit__(None, None, None))


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(ops=st.lists(st.one_of(accept, work), min_size=1, max_size=10), script=scripts)
def test_the_account_balances_and_every_id_is_there_once(
    path: tuple[asyncio.Runner, Path], ops: list[tuple[str, object]], script: dict[tuple[int, int], int]
) -> None:
    runner, mapper = path
    runner.run(walk(mapper, ops, dict(script)))


async def walk(path: Path, ops: list[tuple[str, object]], script: dict[tuple[int, int], int]) -> None:
    tenant = f"t{uuid.uuid4().hex[:12]}"
    worker = path.worker(Plugin(script))
    accepted: set[tuple[int, int]] = set()
    for what, given_ in ops:
        if what == "accept":
            batch: list[tuple[int, int]] = given_  # type: ignore[assignment]
            outcomes = await path.inbox.accept(
                [delivery(key, tenant=tenant, connection=f"c{connection}") for connection, key in batch]
            )
            new = [outcome.result for outcome in outcomes].count(AcceptOutcome.RESULT_ACCEPTED)
            assert new == len(set(batch) - accepted)
            accepted |= set(batch)
        else:
            rows: int = given_  # type: ignore[assignment]
            taken = await path.take(rows)
            if what == "crash":
                continue  # it was taken and transformed, and then there was nobody any more
            if taken:
                # Two that hold the same work, as after a lease that was lost unnoticed.
                await asyncio.gather(*(worker.process(taken) for _ in range(2 if what == "twice" else 1)))
        await path.balanced(tenant)
    while taken := await path.take(100):
        await worker.process(taken)
    account = await path.balanced(tenant)
    assert account["waiting"] == 0
    expected = Counter(STATES[FATES[key]] for _, key in accepted)
    assert (account["stored"], account["skipped"], account["dead"]) == tuple(expected[n] for n in (1, 2, 3))
    events = await EventStore(path.service).list(tenant, Wanted(), LAST.time, LAST, 1000)
    assert sorted(place.id for place, _ in events) == sorted(
        {
            event_id(f"tenants/{tenant}/connections/c{connection}", name, ordinal)
            for connection, key in accepted
            for name, ordinal in told(key)
        }
    )


def told(key: int) -> list[tuple[str, int]]:
    names = {"event": [(f"push/{key}", 0)], "two events": [(f"push/{key}", 0), (f"push/{key}", 1)]}
    return names.get(FATES[key], [("push/0", 0)] if FATES[key] == "shared event" else [])


def test_the_first_verdict_stands(path: tuple[asyncio.Runner, Path]) -> None:
    """Two mappers hold the same delivery, and their plugins are of different versions."""
    runner, mapper = path

    async def both() -> dict[str, int]:
        await mapper.inbox.accept([delivery(0, tenant="acme", connection="c0")])
        [taken] = await mapper.take(10)
        skipped = await mapper.results.finish([(taken, Skipped("PING"))])
        dead = Dead(DeadLetter.STAGE_TRANSFORM, Failure(reason="LATE"))
        late = await mapper.results.finish([(taken, dead)])
        assert (len(skipped), late) == (1, [])
        return await mapper.balanced("acme")

    assert runner.run(both()) == {"accepted": 1, "waiting": 0, "stored": 0, "skipped": 1, "dead": 0}
