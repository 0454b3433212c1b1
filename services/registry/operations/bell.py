"""Tells those in this process that wait for operations that something about one has changed."""

from __future__ import annotations

import asyncio


class Bell:
    def __init__(self) -> None:
        self.runner = asyncio.Event()
        self._turned = asyncio.Event()
        self.open = True
        """Whether watching goes on."""

    def ring(self) -> None:
        self.runner.set()
        turned, self._turned = self._turned, asyncio.Event()
        turned.set()

    async def heard(self, within: float) -> None:
        """Until it rings, or the time has passed: other replicas ring bells of their own."""
        try:
            async with asyncio.timeout(within):
                await self._turned.wait()
        except TimeoutError:
            return

    def stop_watching(self) -> None:
        """Watchers wait for the end of an operation; without this word the server's drain would wait for them."""
        self.open = False
        self.ring()
