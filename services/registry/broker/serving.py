"""What the data plane must know of a connection, held in memory so that no event asks a database for it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Binding:
    """An entry of a slot that the connection has filled."""

    slot: str
    entry: str = ""
    credential: str = ""
    """With which one; empty: whatever the newest grant is for."""


class Rest(Enum):
    """What is not asked of a plugin for a connection at the moment."""

    NONE = auto()
    PROVIDER = auto()
    """Nothing that calls the provider: the platform suspended it, for its credential or a permission."""
    ALL = auto()
    """Nothing: a person paused it. What arrives for it waits."""
    ENDING = auto()
    """Nothing: it is being deleted."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Most it may ask of its provider; 0: as much as the provider allows."""

    calls_per_minute: int = 0
    concurrency: int = 0


UNBOUND = Pace()


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One connection at the revision that serves; revision 0: none does yet."""

    connection: str
    plugin: str
    instance: str
    """What its plugin knows it by at this revision: the same for ever, and another for each revision, so that a new
    one can be tried beside the one that serves, and calls of both can be under way."""
    revision: int
    settings: bytes = b""
    settings_version: str = ""
    account_keys: tuple[str, ...] = ()
    bindings: tuple[Binding, ...] = ()
    """What is filled with a credential; whose the value is, the vault knows."""
    version_range: str = ""
    """Versions of the plugin that it may run on; empty: any."""
    cell: str = ""
    """Who shares its process; empty: everybody who does not ask for one apart."""
    flags: tuple[str, ...] = ()
    """Features that are on for it."""
    rest: Rest = Rest.NONE
    pace: Pace = UNBOUND


class Connections(Protocol):
    async def find(self, connection: str) -> Served | None:
        """The connection of that name, one that was made a moment ago included."""


class FixedConnections:
    """For tests and measurements: these and no others."""

    def __init__(self, *served: Served) -> None:
        self._served = {one.connection: one for one in served}

    async def find(self, connection: str) -> Served | None:
        return self._served.get(connection)
