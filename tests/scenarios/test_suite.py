"""The suite of the scenarios itself: nothing of it outlives the test run."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import psutil

from foundation.process.testing import gone

# As pytest does it to a test that runs out of time: no clean-up, not even of context managers.
TIMED_OUT = """
import asyncio, os, sys
from pathlib import Path
from tests.scenarios.suite import begin

async def main():
    suite = await begin(Path(sys.argv[1]))
    await suite.ready()
    print(*(process.pid for process in [suite.process, *suite.descendants()]), flush=True)
    os._exit(1)

asyncio.run(main())
"""


async def test_a_test_that_runs_out_of_time_leaves_nothing_running(short_dir: Path) -> None:
    run = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", TIMED_OUT, str(short_dir / "data")), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await run.communicate()
    pids = [int(pid) for pid in out.split()]
    assert len(pids) > 4
    try:
        await gone(pids, 15)
    finally:
        for pid in pids:
            if psutil.pid_exists(pid):
                psutil.Process(pid).kill()
