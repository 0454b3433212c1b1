import asyncio
import os
import resource
import time
from collections.abc import Awaitable, Callable
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from foundation.process.child import Child
from foundation.process.command import Command
from foundation.process.output import CHUNK, CUT, Bounds, Line, Lines, Reader, Tail
from foundation.process.testing import until

Python = Callable[..., Command]
Spawn = Callable[..., Awaitable[Child]]

LONGEST = 8
TEXT = st.lists(st.sampled_from([b"a", b"bb", b"\n", b"\xff", b"c" * 11]), max_size=40).map(b"".join)


def in_pieces(text: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    return [text[begin:end] for begin, end in pairwise(edges)]


def simply(text: bytes) -> list[bytes]:
    *ended, rest = text.split(b"\n")
    whole = [*ended, rest] if rest else ended
    return [line if len(line) <= LONGEST else line[:LONGEST] + CUT for line in whole]


@given(TEXT, st.lists(st.integers(0, 120), max_size=6))
def test_lines_do_not_depend_on_how_the_stream_arrives(text: bytes, cuts: list[int]) -> None:
    lines = Lines(LONGEST)
    found: list[bytes] = []
    for piece in in_pieces(text, cuts):
        found += lines.feed(piece, room=1000)[0]
    assert found + lines.finish() == simply(text)


@given(TEXT, st.lists(st.tuples(st.integers(0, 120), st.integers(0, 5)), max_size=6))
def test_every_line_is_passed_on_or_counted(text: bytes, cuts: list[tuple[int, int]]) -> None:
    lines, passed, left_out = Lines(LONGEST), 0, 0
    rooms = [room for _, room in cuts] + [3]
    for piece, room in zip(in_pieces(text, [cut for cut, _ in cuts]), rooms, strict=True):
        found, more = lines.feed(piece, room)
        assert len(found) <= room + 1
        passed, left_out = passed + len(found), left_out + more
    counted = passed + left_out + len(lines.finish())
    too_long = sum(len(line) > LONGEST for line in text.split(b"\n"))  # may be cut first and counted later
    assert len(simply(text)) <= counted <= len(simply(text)) + too_long


@given(st.lists(st.binary(max_size=50)))
def test_the_tail_is_the_end_of_everything(chunks: list[bytes]) -> None:
    tail = Tail(16)
    for chunk in chunks:
        tail.add(chunk)
        assert tail._held < 16 + max(map(len, chunks)) + 1
    assert tail.text() == b"".join(chunks)[-16:].decode(errors="backslashreplace")


async def test_lines_name_their_child_and_stream(python: Python, spawn: Spawn) -> None:
    lines: list[Line] = []
    code = "import sys\nprint('one\\r\\ntwo')\nsys.stderr.write('three')"
    await (await spawn(python(code, name="noisy"), lines.append)).wait()
    assert sorted(lines) == [
        Line("noisy", "stderr", "three"),
        Line("noisy", "stdout", "one"),
        Line("noisy", "stdout", "two"),
    ]


async def test_binary_garbage_is_readable(python: Python, spawn: Spawn) -> None:
    lines: list[Line] = []
    code = "import sys; sys.stdout.buffer.write(bytes(range(256)) + b'\\n\\xff\\xfe')"
    child = await spawn(python(code), lines.append)
    assert (await child.wait()).clean
    assert lines[-1].text == "\\xff\\xfe"
    assert "\\x80" in child.tail


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


async def test_a_flood_costs_no_memory_and_does_not_stall(python: Python, spawn: Spawn) -> None:
    """100 MB of short lines: the child comes to its end, the sink hears a bounded part, nothing is hoarded."""
    lines: list[Line] = []
    before = peak()
    code = "import sys\nfor _ in range(100): sys.stdout.buffer.write(b'0123456789abcde\\n' * 65536)\nprint('the end')"
    child = await spawn(python(code), lines.append, Bounds(lines_per_second=100))
    async with asyncio.timeout(60):
        assert (await child.wait()).clean
    assert child.tail.endswith("the end\n")
    assert len(lines) < 3000
    said = sum(int(line.text.split()[0][1:]) for line in lines if line.text.endswith("lines left out]"))
    heard = sum(not line.text.endswith("lines left out]") for line in lines)
    assert said + heard == 100 * 65536 + 1
    assert peak() - before < 32 << 20


async def test_a_line_of_50_mb_is_cut(python: Python, spawn: Spawn) -> None:
    lines: list[Line] = []
    before = peak()
    code = "import sys\nfor _ in range(50): sys.stdout.buffer.write(b'x' * (1 << 20))\nprint('\\nafter')"
    async with asyncio.timeout(60):
        await (await spawn(python(code), lines.append)).wait()
    assert [line.text for line in lines] == ["x" * Bounds().line + CUT.decode(), "after"]
    assert peak() - before < 32 << 20


async def test_a_flood_leaves_the_loop_its_breath(python: Python, spawn: Spawn) -> None:
    """An endless writer is read at a bounded pace, so that everything else in the loop goes on."""
    child = await spawn(python("import os\nwhile True: os.write(1, b'y\\n' * 30000)"))
    worst = 0.0
    for _ in range(100):
        began = time.process_time()  # on a busy machine the clock on the wall says little
        await asyncio.sleep(0.01)
        worst = max(worst, time.process_time() - began)
    assert child.running
    assert worst < 1.0


async def test_a_second_has_its_bytes_and_the_child_waits_for_the_next() -> None:
    bounds = Bounds(bytes_per_second=100_000)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    reader = Reader(reading, lambda _: None, Tail(16), bounds)
    loop = asyncio.get_running_loop()
    began, written = loop.time(), 0
    too_much: list[tuple[int, int]] = []

    def write() -> None:
        nonlocal written
        written += os.write(writing, b"x" * CHUNK)
        seconds = int(loop.time() - began) + 1
        # What each second may bring, what one read of it may be too much, and what a pipe holds.
        if written > seconds * (bounds.bytes_per_second + CHUNK) + CHUNK:
            too_much.append((seconds, written))

    loop.add_writer(writing, write)
    try:
        await until(lambda: written > bounds.bytes_per_second + 2 * CHUNK)
        assert not too_much
    finally:
        loop.remove_writer(writing)
        os.close(writing)
        reader.close()
