import asyncio
import signal
from collections.abc import Callable

import uvloop

from foundation.process.child import Child
from foundation.process.command import Command

Python = Callable[..., Command]


def test_children_live_in_uvloop_as_well(python: Python) -> None:
    lines: list[str] = []

    async def live() -> None:
        command = python(
            "import sys; print(sys.stdin.read(3)); sys.stdin.read(); print('end')", stdin_pipe=True
        )
        child = await Child.spawn(command, lambda line: lines.append(line.text))
        await child.send(b"abc")
        child.hang_up()
        assert (await child.wait()).clean
        sleeper = await Child.spawn(Command(name="sleep", argv=("sleep", "60")))
        assert (await asyncio.wait_for(sleeper.stop(), 30)).signal is signal.SIGTERM

    uvloop.run(live())
    assert lines == ["abc", "end"]
