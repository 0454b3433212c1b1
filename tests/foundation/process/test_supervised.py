import asyncio
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from foundation.process.child import Child
from foundation.process.command import Command
from foundation.process.errors import HopelessError, NotReadyError
from foundation.process.restart import RestartPolicy
from foundation.process.supervised import Launch, Probe, Report, Rules, State, Supervised
from foundation.process.supervision import Supervision
from foundation.process.testing import gone, until

Python = Callable[..., Command]

FOREVER = "import signal\nprint('up')\nwhile True: signal.pause()"
DEAF = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + FOREVER
QUICK = Rules(ready_within=30, policy=RestartPolicy(base=0.01, cap=0.05))


async def yes() -> bool:
    return True


def yes_if(condition: Callable[[], bool]) -> Probe:
    async def probe() -> bool:
        return condition()

    return probe


async def no() -> bool:
    return False


def _lives_again(it: Supervised, pid: int) -> bool:
    return it.state is State.READY and it.child is not None and it.child.pid != pid


class Log:
    """What a supervised child went through."""

    def __init__(self) -> None:
        self.states: list[State] = []
        self.reports: list[Report] = []

    def __call__(self, state: State, report: Report | None) -> None:
        self.states.append(state)
        if report is not None:
            self.reports.append(report)


def made(command: Command) -> Launch:
    return partial(Child.spawn, command)


def says_up(box: list[Supervised]) -> Probe:
    async def probe() -> bool:
        return "up" in (box[0].child.tail if box[0].child else "")

    return probe


async def test_a_life_in_order(python: Python) -> None:
    log = Log()
    box: list[Supervised] = []
    it = Supervised("it", made(python(FOREVER)), says_up(box), QUICK, on_change=log)
    box.append(it)
    await it.start()
    await it.ready()
    await it.stop()
    await it.stop()
    assert log.states == [State.STARTING, State.READY, State.STOPPING, State.STOPPED]
    assert it.child is not None
    assert not it.child.running


async def test_a_killed_child_comes_back(python: Python) -> None:
    it = Supervised("it", made(python(FOREVER)), yes, QUICK)
    await it.start()
    pids = set()
    for _ in range(3):
        assert it.child is not None
        pids.add(pid := it.child.pid)
        it.child.signal(signal.SIGKILL)
        await until(partial(_lives_again, it, pid))
    assert len(pids) == 3
    assert it.last is not None
    assert it.last.sentence.startswith("child was killed by SIGKILL")
    assert it.last.was_ready
    await it.stop()


async def test_a_crash_loop_ends_and_is_released(python: Python, tmp_path: Path) -> None:
    """It comes up once, then dies at once, five times; mended and released, it serves again."""
    flag, log = tmp_path / "mended", Log()
    flag.touch()
    code = (
        f"import os, signal, sys\nif not os.path.exists({str(flag)!r}): sys.exit('broken settings')\n"
        + FOREVER
    )
    box: list[Supervised] = []
    it = Supervised("it", made(python(code)), says_up(box), QUICK, on_change=log)
    box.append(it)
    await it.start()
    flag.unlink()
    assert it.child is not None
    it.child.signal(signal.SIGKILL)
    await until(lambda: it.state is State.FAILED)
    assert it.restarts.crashes == 5
    assert log.reports[-1].sentence == "child exited with code 1 before it was ready: broken settings"
    with pytest.raises(NotReadyError, match="it is failed: child exited with code 1"):
        await it.ready()
    flag.touch()
    it.release()
    async with asyncio.timeout(30):
        await it.ready()
    assert it.restarts.crashes == 0
    await it.stop()


async def test_kept_from_the_first_start_on(python: Python, tmp_path: Path) -> None:
    """Whoever keeps it waits for nothing; a first start that fails is tried again."""
    flag, log = tmp_path / "mended", Log()
    code = f"import os, sys\nif not os.path.exists({str(flag)!r}): sys.exit('not yet')\n" + FOREVER
    it = Supervised("it", made(python(code)), yes_if(flag.exists), QUICK, on_change=log)
    it.keep()
    await until(lambda: State.WAITING in log.states, 30)
    flag.touch()
    it.restarts.forgive()
    await until(lambda: it.state is State.READY, 30)
    assert log.reports[0].sentence == "child exited with code 1 before it was ready: not yet"
    await it.stop()


async def test_what_is_hopeless_is_not_tried_again_until_somebody_says_so(python: Python) -> None:
    log, hopes = Log(), [HopelessError("it is somebody else")]

    async def probe() -> bool:
        if hopes:
            raise hopes.pop()
        return True

    it = Supervised("it", made(python(FOREVER)), probe, QUICK, on_change=log)
    it.keep()
    await until(lambda: it.state is State.FAILED, 30)
    assert it.child is not None
    assert not it.child.running
    assert log.reports[-1].sentence == "it is somebody else"
    assert log.states == [State.STARTING, State.FAILED]
    await it.restart()
    await until(lambda: it.state is State.READY, 30)
    await it.stop()


async def test_a_restart_is_no_crash(python: Python) -> None:
    log = Log()
    it = Supervised("it", made(python(FOREVER)), yes, QUICK, on_change=log)
    await it.start()
    assert it.child is not None
    pid = it.child.pid
    await it.restart()
    await until(partial(_lives_again, it, pid), 30)
    assert not log.reports
    assert it.restarts.crashes == 0
    await it.stop()
    await it.restart()
    assert it.state is State.STOPPED


async def test_a_restart_does_not_wait_for_a_delay(python: Python) -> None:
    it = Supervised(
        "it", made(python(FOREVER)), yes, Rules(policy=RestartPolicy(base=1e6, cap=1e6)), chance=lambda: 0.9
    )
    await it.start()
    for _ in range(2):
        assert it.child is not None
        it.child.kill()
        await until(lambda: it.state is not State.READY, 30)
        await until(lambda: it.state in {State.READY, State.WAITING}, 30)
    await until(lambda: it.state is State.WAITING, 30)
    assert it.next_start is not None
    await it.restart()
    await until(lambda: it.state is State.READY, 30)
    assert it.next_start is None
    await it.stop()


async def test_who_is_ended_for_a_reason_says_so(python: Python) -> None:
    log = Log()
    it = Supervised("it", made(python(FOREVER)), yes, QUICK, on_change=log)
    await it.start()
    it.end("it used too much of everything")
    await until(lambda: log.reports, 30)
    assert log.reports[0].sentence == "it was ended: it used too much of everything"
    await until(lambda: it.state is State.READY, 30)
    assert it.child is not None
    it.child.kill()
    await until(lambda: len(log.reports) == 2, 30)
    assert log.reports[1].sentence == "child was killed by SIGKILL"
    await it.stop()


async def test_the_first_start_is_no_case_for_patience(python: Python) -> None:
    it = Supervised("it", made(python("raise SystemExit('the port is taken')")), no, QUICK)
    with pytest.raises(NotReadyError) as caught:
        await it.start()
    assert caught.value.sentence == "child exited with code 1 before it was ready: the port is taken"
    assert it.state is State.STOPPED


async def test_a_program_that_is_not_there() -> None:
    it = Supervised("it", made(Command(name="it", argv=("/no/such/thing",))), yes, QUICK)
    with pytest.raises(NotReadyError, match="cannot execute /no/such/thing"):
        await it.start()


async def test_never_ready_is_told_and_ended(python: Python) -> None:
    it = Supervised("it", made(python(DEAF)), no, Rules(ready_within=0.3))
    with pytest.raises(NotReadyError, match=r"it was not ready within 0\.3 s"):
        await it.start()
    assert it.child is not None
    await gone([it.child.pid])


async def test_a_hanging_probe_does_not_hang_the_start(python: Python) -> None:
    async def hang() -> bool:
        await asyncio.Event().wait()
        return True

    it = Supervised("it", made(python(FOREVER)), hang, Rules(ready_within=0.3))
    with pytest.raises(NotReadyError, match="not ready within"):
        await it.start()
    assert it.child is not None
    await gone([it.child.pid])


async def test_a_death_is_noticed_while_a_probe_hangs(python: Python) -> None:
    async def hang() -> bool:
        await asyncio.Event().wait()
        return True

    it = Supervised("it", made(python("raise SystemExit(9)")), hang, QUICK)
    with pytest.raises(NotReadyError, match="exited with code 9 before it was ready"):
        await it.start()


async def test_a_cancelled_start_leaves_nothing(python: Python) -> None:
    it = Supervised("it", made(python(DEAF)), no, QUICK)
    starting = asyncio.create_task(it.start())
    await until(lambda: it.child is not None)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert it.child is not None
    await gone([it.child.pid])


async def test_stopping_during_the_delay(python: Python) -> None:
    slow = Rules(policy=RestartPolicy(base=60))
    it = Supervised("it", made(python(FOREVER)), yes, slow, chance=lambda: 0.9)
    await it.start()
    assert it.child is not None
    it.child.signal(signal.SIGKILL)
    await until(lambda: it.state is State.READY and it.restarts.crashes == 1)
    it.child.signal(signal.SIGKILL)
    await until(lambda: it.state is State.WAITING)
    async with asyncio.timeout(30):
        await it.stop()


async def test_a_broken_probe_is_visible(python: Python) -> None:
    answers = [True]

    async def probe() -> bool:
        return answers.pop()

    it = Supervised("it", made(python(FOREVER)), probe, QUICK)
    await it.start()
    assert it.child is not None
    it.child.signal(signal.SIGKILL)
    await until(lambda: it.state is State.FAILED)
    assert it.last is not None
    assert "IndexError" in it.last.sentence
    answers.append(True)
    it.release()
    await until(lambda: it.state is State.READY)
    await it.stop()
    await gone([it.child.pid])


async def test_a_group_stops_in_the_opposite_order(python: Python) -> None:
    order: list[tuple[str, State]] = []

    def part(name: str, command: Command) -> Supervised:
        return Supervised(
            name, made(command), yes, QUICK, on_change=lambda state, _: order.append((name, state))
        )

    async with Supervision() as everything:
        await everything.start(part("a", python(FOREVER)), part("b", python(FOREVER)))
        await everything.start(part("c", python(FOREVER)))
    starts = [name for name, state in order if state is State.READY]
    stops = [name for name, state in order if state is State.STOPPED]
    assert (set(starts[:2]), starts[2]) == ({"a", "b"}, "c")
    assert (stops[0], set(stops[1:])) == ("c", {"a", "b"})


async def test_a_group_is_gone_by_its_deadline(python: Python) -> None:
    box: list[Supervised] = []
    deaf = [Supervised(f"deaf {n}", made(python(DEAF, grace=60)), yes, QUICK) for n in range(3)]
    box += deaf
    everything = Supervision(within=3.0)
    for one in deaf:
        await everything.start(one)
    children = [one.child for one in deaf if one.child is not None]
    await until(lambda: all("up" in child.tail for child in children))
    async with asyncio.timeout(30):  # half of what one of them would be given alone
        await everything.stop()
    await gone([child.pid for child in children])


async def test_a_stage_that_cannot_start_stops_the_others(python: Python) -> None:
    fine = Supervised("fine", made(python(FOREVER)), yes, QUICK)
    slow = Supervised("slow", made(python(FOREVER)), no, Rules(ready_within=60))
    broken = Supervised("broken", made(Command(name="broken", argv=("/no/such/thing",))), yes, QUICK)
    async with Supervision() as everything:
        await everything.start(fine)
        with pytest.raises(NotReadyError, match="broken was not started: cannot execute"):
            await everything.start(slow, broken)
    assert {fine.state, slow.state, broken.state} == {State.STOPPED}
    assert all(part.child is None or not part.child.running for part in (fine, slow, broken))
