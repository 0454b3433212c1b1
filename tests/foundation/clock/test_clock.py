from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.clock import NumberedIds, RandomIds, SteeredClock, SystemClock, time_ordered_uuid


@settings(max_examples=100)
@given(st.lists(st.floats(0.001, 1000), max_size=20), st.floats(0, 1000))
def test_sleepers_wake_in_order_and_never_early(naps: list[float], passed: float) -> None:
    woken: list[tuple[float, float]] = []

    async def scenario() -> None:
        clock = SteeredClock()

        async def nap(seconds: float) -> None:
            await clock.sleep(seconds)
            woken.append((seconds, clock.monotonic()))

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(nap(seconds)) for seconds in naps]
            await clock.advance(passed)
            for task in tasks:
                task.cancel()

    asyncio.run(scenario())
    assert [seconds for seconds, _ in woken] == sorted(s for s in naps if s <= passed)
    assert all(seconds == at for seconds, at in woken)


async def test_who_sleeps_again_wakes_again_on_the_way() -> None:
    clock = SteeredClock()
    ticks: list[float] = []

    async def tick() -> None:
        while True:
            await clock.sleep(10)
            ticks.append(clock.monotonic())

    task = asyncio.create_task(tick())
    began = clock.now()
    await clock.advance(35)
    task.cancel()
    assert ticks == [10, 20, 30]
    assert clock.now() - began == timedelta(seconds=35)


async def test_the_real_clock_is_in_utc_and_moves_on() -> None:
    clock = SystemClock()
    before = clock.monotonic()
    await clock.sleep(0.001)
    assert clock.monotonic() > before
    assert clock.now().utcoffset() == timedelta(0)


def test_ids_are_new_each_time() -> None:
    ids = RandomIds()
    assert len({ids.new("ref") for _ in range(1000)}) == 1000
    assert ids.new("ref").startswith("ref-")
    numbered = NumberedIds()
    assert [numbered.new("a"), numbered.new("b")] == ["a-1", "b-2"]


@given(st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001 - bounds are naive, values are not
def test_ids_that_sort_by_time_are_uuids_of_version_7(now: datetime) -> None:
    made = uuid.UUID(time_ordered_uuid(now))
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert made.int >> 80 == int(now.timestamp() * 1000)
    assert time_ordered_uuid(now) != str(made)
    assert time_ordered_uuid(now + timedelta(milliseconds=2)) > str(made)
