"""A schedule as the registry keeps it: what is polled, when next, and how that went."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from foundation.identity.names import tenant_of
from tieline.common.v1.failure_pb2 import Failure
from tieline.plugin.v1.fetch_pb2 import Partition

_READABLE = re.compile(r"[A-Za-z0-9_.-]{1,60}")


class Kind(StrEnum):
    POLL = "poll"
    LIST = "list"
    """Looks now and then which parts a stream has."""
    BACKFILL = "backfill"


class State(StrEnum):
    """As the contract's, in lower case. RUNNING is what a lease makes of it; nobody stores it."""

    WAITING = "waiting"
    RUNNING = "running"
    THROTTLED = "throttled"
    FAILING = "failing"
    STOPPED = "stopped"
    DONE = "done"


OVER = frozenset({State.STOPPED, State.DONE})


@dataclass(frozen=True, slots=True)
class Key:
    """Which schedule."""

    tenant: str
    connection: str
    """Its id, without the tenant."""
    id: str

    @property
    def resource(self) -> str:
        """The connection's name."""
        return f"tenants/{self.tenant}/connections/{self.connection}"

    @property
    def name(self) -> str:
        return f"{self.resource}/schedules/{self.id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    key: Key
    kind: Kind
    stream: str
    partition: Partition
    state: State
    failure: Failure | None
    gone: bool
    """Its partition is not there any more."""
    interval: float
    records: int
    next_time: datetime
    last_start_time: datetime | None
    last_success_time: datetime | None
    window: tuple[datetime, datetime] | None
    backfill: str
    """The name under which a backfill's checkpoints are kept; all its partitions share it."""
    fence: int
    checkpoint_time: datetime | None
    lag: float | None


def schedule_id(stream: str, partition: str = "", backfill: str = "") -> str:
    """`issues`, `logs.eu-west-1`, and for what is too long or too strange its digest; `@` before a backfill's.

    Streams have no dots and neither has `~` or `@` a place in what is readable, so no two become one.
    """
    part = partition
    if part and not _READABLE.fullmatch(part):
        part = "~" + hashlib.sha256(part.encode()).hexdigest()[:20]
    return stream + (f".{part}" if part else "") + (f"@{backfill}" if backfill else "")


def phase(connection: str, id_: str) -> float:
    """In [0, 1), the same for ever: what keeps a thousand schedules from being due together."""
    digest = hashlib.sha256(f"{connection}/{id_}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48


def key_of(connection: str, id_: str) -> Key:
    return Key(tenant_of(connection), connection.rpartition("/")[2], id_)
