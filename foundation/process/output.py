"""A child's output, read for ever in bounded memory, whatever the child writes.

Three bounds, none of which stalls the child for good: a line has a longest length (the rest of it is cut),
a second has a number of lines that are passed on (the rest is counted), and a second has a number of bytes
that are read at all (the child waits for the next second).
"""

import asyncio
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

CHUNK = 64 * 1024  # what a pipe holds
CUT = b" [cut]"


class Line(NamedTuple):
    """One line of a child's output: whose, from which stream, and what."""

    child: str
    stream: str
    text: str


Sink = Callable[[Line], None]


def ignore(_line: Line) -> None:
    """Keep nothing: the tail is enough for some children."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much of a child's output is carried; the rest is cut, counted or waited for."""

    line: int = 16 * 1024
    lines_per_second: int = 1000
    bytes_per_second: int = 32 * 1024 * 1024
    tail: int = 8 * 1024


class Lines:
    """Cuts a stream into lines; holds at most one line of bounded length."""

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._begun = b""
        self._cutting = False  # the line under way was already given out up to its bound

    def feed(self, chunk: bytes, room: int) -> tuple[list[bytes], int]:
        """Whole lines, at most `room` of them, and how many more there were."""
        *ended, rest = chunk.split(b"\n", room)
        lines = [line for line in map(self._end, ended) if line is not None]
        left_out = 0
        if b"\n" in rest:  # the room is used up: count what remains without making lines of it
            skipped, _, rest = rest.rpartition(b"\n")
            left_out = skipped.count(b"\n") + 1
            self._begun, self._cutting = b"", False
        over = self._go_on(rest)
        if over is not None:
            lines.append(over)
        return lines, left_out

    def finish(self) -> list[bytes]:
        """What stood after the last newline."""
        last, self._begun = self._begun, b""
        return [last] if last else []

    def _end(self, part: bytes) -> bytes | None:
        line, cutting = self._begun + part, self._cutting
        self._begun, self._cutting = b"", False
        if cutting:
            return None
        return line if len(line) <= self._longest else line[: self._longest] + CUT

    def _go_on(self, part: bytes) -> bytes | None:
        if self._cutting:
            return None
        self._begun += part
        if len(self._begun) <= self._longest:
            return None
        over, self._begun, self._cutting = self._begun[: self._longest] + CUT, b"", True
        return over


class Tail:
    """The last bytes of everything, for the report after a crash."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._chunks: deque[bytes] = deque()
        self._held = 0

    def add(self, chunk: bytes) -> None:
        chunk = chunk[-self._size :]
        self._chunks.append(chunk)
        self._held += len(chunk)
        while self._held - len(self._chunks[0]) >= self._size:
            self._held -= len(self._chunks.popleft())

    def text(self) -> str:
        return b"".join(self._chunks)[-self._size :].decode(errors="backslashreplace")


class Reader:
    """Reads one pipe of one child inside the running loop, in turns of one chunk."""

    def __init__(self, fd: int, give: Callable[[str], None], tail: Tail, bounds: Bounds) -> None:
        self._fd = fd
        self._give_text, self._tail, self._bounds = give, tail, bounds
        self._lines = Lines(bounds.line)
        self._loop = asyncio.get_running_loop()
        self._second = 0.0  # when the present second began
        self._passed = self._read = self._left_out = 0
        self._pause: asyncio.TimerHandle | None = None
        self._open = True
        os.set_blocking(fd, False)
        self._loop.add_reader(fd, self._turn)

    def close(self) -> None:
        """Take what the pipe still holds, and no more: a grandchild may keep writing into it for ever."""
        taken = 0
        while self._open and taken < CHUNK:
            before = self._read
            if not self._take():
                break
            taken += max(self._read - before, 1)
        self._end()

    def _turn(self) -> None:
        now = self._loop.time()
        if now - self._second >= 1.0:
            self._new_second(now)
        if self._read >= self._bounds.bytes_per_second:
            self._loop.remove_reader(self._fd)
            self._pause = self._loop.call_at(self._second + 1.0, self._go_on)
        else:
            self._take()

    def _go_on(self) -> None:
        self._pause = None
        self._loop.add_reader(self._fd, self._turn)

    def _new_second(self, now: float) -> None:
        self._second, self._passed, self._read = now, 0, 0
        if self._left_out:
            self._give(f"[{self._left_out} lines left out]")
            self._left_out = 0

    def _take(self) -> bool:
        try:
            chunk = os.read(self._fd, CHUNK)
        except BlockingIOError:
            return False
        if not chunk:
            self._end()
            return False
        self._read += len(chunk)
        self._tail.add(chunk)
        lines, left_out = self._lines.feed(chunk, max(self._bounds.lines_per_second - self._passed, 0))
        self._left_out += left_out
        for line in lines:
            self._give(line.decode(errors="backslashreplace"))
        return True

    def _give(self, text: str) -> None:
        self._passed += 1
        self._give_text(text.rstrip("\r"))

    def _end(self) -> None:
        if not self._open:
            return
        self._open = False
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        for line in self._lines.finish():
            self._give(line.decode(errors="backslashreplace"))
        if self._left_out:
            self._give(f"[{self._left_out} lines left out]")
