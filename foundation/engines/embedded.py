"""An engine that is our child: what PostgreSQL and nats-server have in common.

Whoever uses the data, use it under the tail lock: it is passed to the engine's process, inherited by all that
one starts, and free exactly when the last of them is gone. Each start takes it first. So a start right after
`kill -9`, of the engine or of everything, waits for the stragglers instead of racing them, and what they
left behind (pid files, shared memory) may be cleared without asking who is alive.
"""

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path

from foundation.engines.engine import Engine
from foundation.engines.errors import DataInUseError, DirectoryError, EngineError, StartError
from foundation.engines.files import no_space, private_directory, told
from foundation.process.child import Child
from foundation.process.command import Command
from foundation.process.errors import LaunchError, LockHeldError, NotReadyError, ProcessError
from foundation.process.lock import OwnerLock, TailLock
from foundation.process.output import Line, Sink, ignore
from foundation.process.restart import RestartPolicy
from foundation.process.supervised import Report, Rules, State, Supervised

OnChange = Callable[[State, Report | None], None]

# Everything waits for an engine, so it is never given up, and its disk may have room again any second. To
# replay a few GB of log after a crash may take minutes; who kills the server meanwhile only starts it over.
_RULES = Rules(ready_within=600.0, policy=RestartPolicy(cap=15.0, crash_limit=None))

_PREDECESSORS = 6.0  # seconds for those of an earlier start; PostgreSQL itself kills its own after five
_STRAGGLERS = 1.0  # seconds for those that outlive a server that died or was stopped


def unheard(_state: State, _report: Report | None) -> None:
    """Nobody listens."""


class Embedded(Engine):
    """One engine on one data directory, supervised from `start` to `stop`."""

    def __init__(self, directory: Path, *, sink: Sink = ignore, on_change: OnChange = unheard) -> None:
        self.directory = directory.absolute()
        self._sink = sink
        self._owner: OwnerLock | None = None
        self._lock = TailLock(self.directory / "in-use.lock")
        self._patience = _PREDECESSORS
        self._refusal: EngineError | None = None
        self._supervised = Supervised(self.name, self._launch, self._serves, _RULES, on_change=on_change)

    @abstractmethod
    async def _prepare(self) -> None:
        """Make the data fit to be served. Nobody else uses it now."""

    @abstractmethod
    def _command(self, lock: int) -> Command:
        """What to run; `lock` is to be among its descriptors."""

    @abstractmethod
    async def _serves(self) -> bool:
        """Whether a client gets an answer."""

    def _close(self) -> None:
        """Let go of what is held between the lives of the server."""

    @property
    def state(self) -> State:
        return self._supervised.state

    @property
    def pid(self) -> int | None:
        """The server's process while there is one."""
        child = self._supervised.child
        return child.pid if child is not None and child.running else None

    async def start(self) -> None:
        private_directory(self.directory)
        self._owner = self._owned()
        try:
            await self._supervised.start()
        except NotReadyError as error:
            raise self._start_error(error) from error
        finally:
            if self.state is not State.READY:
                self._let_go()

    async def ready(self) -> None:
        await self._supervised.ready()

    def kill(self) -> None:
        self._supervised.kill()

    async def stop(self, grace: float | None = None) -> None:
        """Stop in order; afterwards nothing of the engine is left, whatever it took."""
        if self._owner is None:
            return
        try:
            await self._supervised.stop(grace)
            await self._take_lock()
        except BaseException:  # the time for stopping is over: nobody may be left all the same
            self._lock.kill_holders()
            raise
        finally:
            self._let_go()

    async def _launch(self) -> Child:
        try:
            lock = await self._take_lock()
            try:
                await self._prepare()
                return await Child.spawn(self._command(lock), self._hear)
            finally:
                self._lock.close()  # the child's from now on
        except EngineError as error:
            self._refusal = error  # to be raised by the first start as it is
            raise LaunchError(error.sentence) from error

    async def _take_lock(self) -> int:
        patience, self._patience = self._patience, _STRAGGLERS
        try:
            return await self._lock.acquire(patience)
        except LockHeldError as error:
            raise DataInUseError(error.sentence) from error
        except ProcessError as error:
            raise self._unusable(error) from error

    def _owned(self) -> OwnerLock:
        """Alone on this directory: whoever else holds its tail lock is left over, and may be killed."""
        try:
            return OwnerLock(self.directory / "owner.lock", self.name)
        except LockHeldError as error:
            raise DataInUseError(error.sentence) from error
        except ProcessError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: ProcessError) -> EngineError:
        if isinstance(error.__cause__, OSError):
            return told(self.directory, error.__cause__)
        return DirectoryError(error.sentence)

    def _let_go(self) -> None:
        self._lock.close()
        self._close()
        if self._owner is not None:
            self._owner.close()
            self._owner = None

    def _hear(self, line: Line) -> None:
        self._sink(line)

    def _start_error(self, error: NotReadyError) -> EngineError:
        if self._refusal is not None:
            return self._refusal
        last = self._supervised.last
        tail = last.tail if last is not None else ""
        if "No space left on device" in tail:
            return no_space(self.directory)
        return StartError(f"{self.name} did not start: {_reason(tail) or error.sentence}")


def _reason(tail: str) -> str:
    """The line that says why, which often is not the last."""
    worst = [
        line for line in tail.splitlines() if any(word in line for word in ("PANIC:", "FATAL:", "[FTL]"))
    ]
    return worst[-1].strip() if worst else ""
