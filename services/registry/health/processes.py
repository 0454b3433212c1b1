"""How a plugin's process is, in the words of health."""

from __future__ import annotations

from foundation.process.supervised import State
from services.registry.health.rules import Health
from services.registry.host.host import Host, Routed
from services.registry.host.process import PluginProcess

_LOST = "runs elsewhere and is silent; it joins again by itself once it is back"


def process_health(host: Host, routed: Routed) -> tuple[Health, str]:
    """Of the process that its calls belong on, and what is to be said of it. Nothing is started by looking."""
    if not host.versions(routed.plugin):
        return Health.DOWN, "is not installed; what arrives for it waits"
    process = host.peek(routed)
    return (Health.UNKNOWN, "") if process is None else health_of(process)


def health_of(process: PluginProcess) -> tuple[Health, str]:
    if process.lost:
        return Health.DOWN, _LOST
    match process.state:
        case State.READY:
            return Health.OK, ""
        case State.WAITING | State.FAILED:
            return Health.DOWN, process.explanation
        case State.STARTING if process.crashes_in_a_row:
            return Health.DOWN, process.explanation
    return Health.UNKNOWN, ""


def quarantined(process: PluginProcess) -> bool:
    return process.state is State.FAILED
