"""What owners are told of their schedules."""

from __future__ import annotations

from datetime import datetime

from foundation.notices.notice import notice
from services.registry.schedules.planning import Next
from services.registry.schedules.store import Claimed
from tieline.common.v1.failure_pb2 import Failure
from tieline.event.v1.content_pb2 import SEVERITY_ERROR
from tieline.event.v1.event_pb2 import Event


def stopped(one: Claimed, then: Next, at: datetime) -> Event:
    """It waits for a person: the provider no longer knows how far it was read, and the connection says to stop then."""
    failure = then.failure or Failure()
    return notice(
        "registry",
        one.key.tenant,
        "schedule.stopped",
        key=f"{one.key.name}/stopped/{one.turn}",
        title=f"{one.key.connection}: {one.key.id} is not polled any more",
        severity=SEVERITY_ERROR,
        at=at,
        entities={"connection": one.key.resource},
        attributes={
            "schedule": one.key.name,
            "reason": failure.reason,
            "message": failure.message,
            "remedy": f"tieline schedule reset {one.key.connection} {one.key.id}",
        },
    )
