"""What every engine is to its users, whoever runs it."""

from types import TracebackType
from typing import Protocol, Self


class Engine(Protocol):
    """PostgreSQL or NATS, ours or external. `async with engine:` starts and stops it."""

    name: str

    @property
    def url(self) -> str:
        """Where it is, with the password: hand it on, never log it."""
        ...

    async def start(self) -> None:
        """Return when it serves; raise an `EngineError` when it cannot."""

    async def ready(self) -> None:
        """Wait until it serves again, through any restart."""

    async def stop(self, grace: float | None = None) -> None:
        """Leave nothing of ours behind."""

    def kill(self) -> None:
        """End it at once; `stop` is still to follow."""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
