"""What people notice when a part of the platform does not work: said the same way by whoever says it."""

from __future__ import annotations

from collections.abc import Mapping

EFFECTS: Mapping[str, str] = {
    "postgresql": "nothing can be changed, and no delivery is accepted: providers send again; plugins go on",
    "jetstream": "events are stored, and told to subscribers once it is back",
    "credentials": (
        "nothing can be changed and nobody signs on anew; what plugins and the gateway hold goes on until its lease ends"
    ),
    "registry": "no plugin runs: what arrives is kept and waits, nothing is polled and nothing done at providers",
    "mapper": "no delivery is accepted, and polls stop where they are: providers send again, nothing is lost",
    "gateway": "no webhook is received: providers send again; polls, actions and events go on",
}
