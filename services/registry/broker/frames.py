"""The frames of a poll, held against the contract while they pass."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from foundation.rpc.streams import Answers
from services.registry.broker import failures
from services.registry.broker.failures import CallFailed
from tieline.plugin.v1.fetch_pb2 import Checkpoint, FetchDataResponse, RecordBatch

FRAME_BYTES = 1024 * 1024
SLACK_BYTES = 64 * 1024
"""A frame is a little more than its records; nobody is refused for the envelope."""
CURSOR_BYTES = 64 * 1024
EXCERPT_BYTES = 64 * 1024
RECORDS_WITHOUT_CHECKPOINT = 20_000
"""Twice what the contract allows."""
SILENCE_SECONDS = 20.0
"""A sign of life is due every 15 s."""


class Frames:
    """A plugin's stream of one poll. Iterating raises CallFailed where the contract is broken or the plugin silent."""

    def __init__(self, call: Answers[FetchDataResponse], silence: float = SILENCE_SECONDS) -> None:
        self._call, self._silence = call, silence
        self._records = self._uncovered = 0
        self._ended = False

    def cancel(self) -> bool:
        return self._call.cancel()

    async def __aiter__(self) -> AsyncIterator[FetchDataResponse]:
        frames = aiter(self._call)
        while (frame := await self._next(frames)) is not None:
            self._check(frame)
            yield frame
        if not self._ended:
            raise _broken("END_MISSING", "the poll ended without saying so")

    async def _next(self, frames: AsyncIterator[FetchDataResponse]) -> FetchDataResponse | None:
        """None at the end."""
        try:
            async with asyncio.timeout(self._silence):
                frame: FetchDataResponse | None = await anext(frames)
        except StopAsyncIteration:
            return None
        except TimeoutError:
            why = f"the plugin gave no sign of life for {self._silence:g} s"
            raise CallFailed(failures.transient("TOO_SLOW", why), bare=True) from None
        if frame is None:  # gRPC's way to say that it could not be read
            raise _broken("GARBAGE", "a frame is no message of the contract")
        return frame

    def _check(self, frame: FetchDataResponse) -> None:
        if self._ended:
            raise _broken("FRAME_AFTER_END", "there are frames after the last one")
        match frame.WhichOneof("frame"):
            case "records":
                self._check_records(frame.records)
                if frame.ByteSize() > FRAME_BYTES + SLACK_BYTES and len(frame.records.records) > 1:
                    raise _broken("FRAME_TOO_LARGE", f"a frame of {frame.ByteSize()} bytes")
            case "end":
                self._ended = True
                if frame.end.records_total not in {0, self._records}:
                    why = f"{self._records} records came, and the plugin counted {frame.end.records_total}"
                    raise _broken("RECORDS_MISSING", why)
            case "progress":
                pass
            case _:
                raise _broken("FRAME_EMPTY", "a frame holds nothing")

    def _check_records(self, batch: RecordBatch) -> None:
        if any(not record.key for record in batch.records):
            raise _broken("KEY_MISSING", "a record has no key, so a repeat could not be recognised")
        if any(len(broken.excerpt) > EXCERPT_BYTES for broken in batch.broken):
            raise _broken("EXCERPT_TOO_LARGE", f"more than {EXCERPT_BYTES} bytes of what could not be read")
        self._records += len(batch.records)
        self._uncovered += len(batch.records)
        if batch.HasField("checkpoint"):
            check_cursor(batch.checkpoint)
            self._uncovered = 0
        elif self._uncovered > RECORDS_WITHOUT_CHECKPOINT:
            raise _broken("CHECKPOINT_MISSING", f"{self._uncovered} records without a checkpoint")


def check_cursor(checkpoint: Checkpoint) -> None:
    if len(checkpoint.cursor) > CURSOR_BYTES:
        raise _broken("CHECKPOINT_TOO_LARGE", f"a checkpoint of {len(checkpoint.cursor)} bytes")


def _broken(reason: str, why: str) -> CallFailed:
    return CallFailed(failures.internal(reason, why))
