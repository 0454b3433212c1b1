"""Two replicas share two hundred schedules, and one is killed: nobody waits too long, and nobody is polled twice."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from subprocess import Popen

import msgspec
import psutil
import pytest

from foundation.engines.testing import Served
from foundation.process.ports import Port
from foundation.process.testing import gone, until
from foundation.settings import Address
from services.registry.schedules.planning import JITTER
from tests.services.registry.conftest import Running, prepared, ready
from tests.services.registry.polled import Span, make_polled, noted, spans
from tests.services.registry.test_killed import start
from tests.services.registry.test_schedules import Polling, every, real_inbox

CONNECTIONS, PARTS = 40, 5
INTERVAL = 15.0
PERIOD = INTERVAL * (1 + JITTER)
SLACK = 2.0
"""What a busy machine may add to a beginning, by its own clock."""


@dataclass
class Replica:
    running: Running
    process: Popen[bytes]

    def plugins(self) -> list[int]:
        return [child.pid for child in psutil.Process(self.process.pid).children()]

    def kill(self) -> float:
        os.kill(self.process.pid, signal.SIGKILL)
        return time.time()


@asynccontextmanager
async def two(engines: Served, where: Path) -> AsyncIterator[tuple[Polling, Sequence[Replica]]]:
    async with real_inbox(engines) as (address, kept, inbox), prepared(engines, where) as running:
        replicas = list[Replica]()
        try:
            for number in range(2):
                with Port() as http, Port() as grpc:
                    settings = msgspec.structs.replace(
                        running.settings,
                        listen=Address.parse(grpc.address),
                        http=Address.parse(http.address),
                        mapper=address,
                        sandbox="none",
                    )
                    folder = where / f"replica-{number}"
                    folder.mkdir()
                    process = start(settings, folder)
                    one = replace(running, settings=settings)
                    replicas.append(Replica(one, process))
                    await ready(one)
            yield Polling(replicas[0].running, kept, inbox, where), replicas
        finally:
            for replica in replicas:
                replica.process.kill()
                replica.process.wait()


def overlaps(found: Mapping[tuple[str, str, str], Sequence[Span]], died: float) -> list[object]:
    """Polls of one part that ran at once. One that never ended, ended with its process."""
    return [
        (part, before, after)
        for part, every_ in found.items()
        for before, after in pairwise(sorted(every_, key=lambda span: span.begin))
        if (before.end or died) > after.begin
    ]


@pytest.mark.proof
@pytest.mark.timeout(600)
async def test_two_replicas_share_two_hundred_schedules_and_one_is_killed(
    engines: Served, tmp_path: Path, prove: Callable[[int, int], int], found: Callable[[str], None]
) -> None:
    make_polled(tmp_path, limits="[limits]\ncalls_in_flight = 16")
    (tmp_path / "parts").write_text(" ".join(f"p{number}" for number in range(PARTS)))
    after = prove(2, 12)  # each part has a gap across the death, and a poll after it
    async with two(engines, tmp_path) as (polling, (first, second)):
        for number in range(CONNECTIONS):
            await polling.connect(f"c{number}", every(INTERVAL, "parts"), word="short")

        def begun(least: int) -> Callable[[], bool]:
            def is_so() -> bool:
                now = spans(noted(tmp_path))
                return len(now) == CONNECTIONS * PARTS and min(map(len, now.values())) >= least

            return is_so

        await until(begun(2), 120)
        shares = {pid: 0 for one in (first, second) for pid in one.plugins()}
        for every_ in spans(noted(tmp_path)).values():
            for span in every_:
                shares[span.pid] += 1
        mine = [sum(shares[pid] for pid in one.plugins()) for one in (first, second)]
        assert min(mine) > 0.1 * sum(mine), f"they share the work: {mine}"
        doomed = second.plugins()
        died = second.kill()
        await gone(doomed)
        await until(begun(2 + after), 60 + after * 2 * INTERVAL)
        polls = spans(noted(tmp_path))
    assert overlaps(polls, died) == [], "none runs twice at once"
    gaps = [b.begin - a.begin for every_ in polls.values() for a, b in pairwise(every_)]
    late = max(gaps) - PERIOD
    assert late <= INTERVAL + SLACK, "none is missed by more than an interval"
    # One more because the first may have been late, and one that was begun anew where a replica died.
    for every_ in polls.values():
        beats = (every_[-1].begin - every_[0].begin) / INTERVAL
        assert len(every_) <= beats + 3, "none is polled more often than it should be"
    found(
        f"{CONNECTIONS * PARTS} schedules every {INTERVAL:g} s on two replicas ({mine[0]} and {mine[1]} polls before one"
        f" was killed): {sum(map(len, polls.values()))} polls, longest gap {max(gaps):.1f} s"
        f" ({max(late, 0):.1f} s late), none twice at once"
    )
