"""One running child: started by the launcher, heard, awaited, and ended with everything it started."""

import asyncio
import os
import signal
import subprocess
import threading
from contextlib import suppress
from functools import partial
from typing import Self

from foundation.process.command import Command
from foundation.process.errors import LaunchError
from foundation.process.exits import Exit
from foundation.process.output import Bounds, Line, Reader, Sink, Tail, ignore

_DEFAULT_BOUNDS = Bounds()


class Child:
    """A process of our own session; `wait` tells its end, `stop` brings it about.

    The end is seen through a pidfd while the dead child still is a zombie, so that its process group can be
    killed before the number may belong to somebody else.
    """

    def __init__(
        self, command: Command, process: subprocess.Popen[bytes], sink: Sink, bounds: Bounds
    ) -> None:
        self.command = command
        self.pid = process.pid
        self._process = process
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[Exit] = self._loop.create_future()
        self._tail = Tail(bounds.tail)
        self._readers = [
            Reader(os.dup(pipe.fileno()), partial(_pass_on, sink, command.name, stream), self._tail, bounds)
            for stream, pipe in (("stdout", process.stdout), ("stderr", process.stderr))
            if pipe is not None
        ]
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        self._pidfd = os.pidfd_open(process.pid)
        self._loop.add_reader(self._pidfd, self._reap)

    @classmethod
    async def spawn(cls, command: Command, sink: Sink = ignore, bounds: Bounds = _DEFAULT_BOUNDS) -> Self:
        """Start the command; once this returns, the program itself is running.

        From the main thread only: the death signal fires when the *thread* that started a child ends.
        """
        if threading.current_thread() is not threading.main_thread():
            raise LaunchError(
                f"{command.name} must be started from the main thread, or it dies with its thread"
            )
        told, status = os.pipe()
        try:
            try:
                child = cls(command, _popen(command, status), sink, bounds)
            finally:
                os.close(status)
            try:
                refusal = await child._executed(told)
            except BaseException:
                child.kill()
                await child.wait()
                raise
            if refusal:
                await child.wait()
                raise LaunchError(f"{command.name} was not started: {refusal}")
        finally:
            os.close(told)
        return child

    @property
    def running(self) -> bool:
        return not self._ended.done()

    @property
    def tail(self) -> str:
        """The last 8 KiB of both streams, not redacted: whoever shows it knows what to hide."""
        return self._tail.text()

    async def wait(self) -> Exit:
        return await asyncio.shield(self._ended)

    async def send(self, data: bytes) -> None:
        """Write to the child's stdin pipe, which stays open until the child is gone."""
        if self._process.stdin is None:
            raise LaunchError(f"{self.command.name} was started without a stdin pipe")
        view, fd = memoryview(data), self._process.stdin.fileno()
        os.set_blocking(fd, False)
        while view and self.running:
            try:
                view = view[os.write(fd, view) :]
            except BlockingIOError:
                await _writable(self._loop, fd)
            except BrokenPipeError:
                return

    def hang_up(self) -> None:
        """Close the stdin pipe: some children take its end as the request to leave."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    def signal(self, number: signal.Signals) -> None:
        """Signal the child itself, if it still lives; its number cannot belong to a stranger before that."""
        if self.running:
            signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """SIGKILL for the child and all of its process group."""
        if self.running:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    async def stop(self, grace: float | None = None) -> Exit:
        """Ask, wait for the grace, then insist. Cancelled, it insists at once, and leaves no zombie."""
        self.signal(self.command.stop_signal)
        try:
            async with asyncio.timeout(self.command.grace if grace is None else grace):
                return await self.wait()
        except TimeoutError:
            self.kill()
            return await self.wait()
        except asyncio.CancelledError:
            self.kill()
            await self.wait()
            raise

    async def _executed(self, told: int) -> str:
        """Wait for the exec, which closes the status pipe, or for the launcher's refusal."""
        await _readable(self._loop, told)
        return os.read(told, 4096).decode(errors="replace").strip()

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # what the child left behind in its group
        returncode = self._process.wait()
        os.close(self._pidfd)
        self.hang_up()
        try:
            for reader in self._readers:
                reader.close()
        finally:  # whatever a sink made of the last words
            self._ended.set_result(Exit.of(self.command.name, returncode))


def _popen(command: Command, status: int) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command.launcher(status),
            env=dict(command.env),
            cwd=command.cwd,
            stdin=subprocess.PIPE if command.stdin_pipe else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
            pass_fds=(*command.pass_fds, status),
        )
    except OSError as error:
        where = f" in {command.cwd}" if str(error.filename) == str(command.cwd) else ""
        raise LaunchError(f"{command.name} was not started{where}: {error.strerror}") from error


def _pass_on(sink: Sink, name: str, stream: str, text: str) -> None:
    sink(Line(name, stream, text))


async def _readable(loop: asyncio.AbstractEventLoop, fd: int) -> None:
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)


async def _writable(loop: asyncio.AbstractEventLoop, fd: int) -> None:
    ready = asyncio.Event()
    loop.add_writer(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_writer(fd)
