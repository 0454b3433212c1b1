"""Page tokens: where a list goes on, of which cut, and for which question."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self
from uuid import UUID

from foundation.errors import Code, Problem
from services.mapper.store.events import Place
from tieline.mapper.v1.events_pb2 import ListEventsRequest

_LAST_ID = UUID(int=2**128 - 1)


@dataclass(frozen=True, slots=True)
class Page:
    cut: datetime
    """What was stored later is on no page."""
    before: Place

    @classmethod
    def of(cls, request: ListEventsRequest, now: datetime) -> Self:
        if not request.page_token:
            end = request.end_time.ToDatetime(UTC) if request.HasField("end_time") else now
            # Without an end, an event of the next minute by a provider's fast clock is on the first page too.
            before = end if request.HasField("end_time") else datetime.max.replace(tzinfo=UTC)
            return cls(now, Place(before, UUID(int=0) if request.HasField("end_time") else _LAST_ID))
        try:
            cut, time, identity, question = json.loads(base64.urlsafe_b64decode(request.page_token))
            page = cls(datetime.fromisoformat(cut), Place(datetime.fromisoformat(time), UUID(identity)))
        except (ValueError, TypeError, AttributeError, binascii.Error):
            raise _refused("it was not given by ListEvents") from None
        if question != _question(request):
            raise _refused("it belongs to another question")
        return page

    def next(self, last: Place, request: ListEventsRequest) -> str:
        content = [self.cut.isoformat(), last.time.isoformat(), str(last.id), _question(request)]
        return base64.urlsafe_b64encode(json.dumps(content).encode()).decode()


def _question(request: ListEventsRequest) -> str:
    asked = ListEventsRequest()
    asked.CopyFrom(request)
    asked.ClearField("page_token")
    asked.ClearField("page_size")
    return hashlib.sha256(asked.SerializeToString(deterministic=True)).hexdigest()[:16]


def _refused(why: str) -> Problem:
    return Problem(Code.INVALID_ARGUMENT, field="page_token", why=why)
