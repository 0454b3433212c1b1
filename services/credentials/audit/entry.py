"""What is written into the audit: a closed shape of ids and names of fields, never values."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from foundation.rpc.call import present_call

PLATFORM = ""
"""The chain of what concerns no tenant."""

MYSELF = "services/credentials"


class Outcome(enum.IntEnum):
    """As the contract numbers them."""

    INTENT = 1
    DONE = 2
    DENIED = 3
    FAILED = 4


@dataclass(frozen=True, slots=True)
class Actor:
    principal: str
    """Who did it."""
    on_behalf_of: str = ""
    """For whom, where a service acted for a caller."""

    @classmethod
    def present(cls) -> Actor:
        """Whoever the request at hand comes from; this service itself where there is none."""
        call = present_call()
        if call is None or call.principal is None:
            return cls(MYSELF)
        if call.agent is None:
            return cls(call.principal.name)
        return cls(call.agent.name, call.principal.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    tenant: str
    """Whose chain it belongs to; `PLATFORM`: nobody's."""
    action: str
    """Dotted: `credential.create`."""
    resource: str
    """By its full name."""
    outcome: Outcome = Outcome.DONE
    fields: Sequence[str] = ()
    """Names of the fields that were released or changed."""
    details: Mapping[str, str] = field(default_factory=dict)
    """Ids only: version, purpose, connection, request id."""
    intent: int = 0
    """For an outcome: the sequence of its intent."""
    actor: Actor = field(default_factory=Actor.present)
