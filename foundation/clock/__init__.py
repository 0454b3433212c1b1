"""Time and ids as parameters: the system's own, and ones a test can steer."""

from foundation.clock.clock import Clock, SteeredClock, SystemClock
from foundation.clock.ids import Ids, NumberedIds, RandomIds, time_ordered_uuid

__all__ = ["Clock", "Ids", "NumberedIds", "RandomIds", "SteeredClock", "SystemClock", "time_ordered_uuid"]
