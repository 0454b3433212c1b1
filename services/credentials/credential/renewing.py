"""When a credential renews by itself, as its owner wants it and its kind allows."""

from __future__ import annotations

import random
from datetime import datetime, timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict, ParseDict

from services.credentials.credential.checks import Field
from services.credentials.credential.store import CredentialRow
from tieline.credentials.v1.credentials_pb2 import Credential

OVERLAP = timedelta(hours=24)
LEAST_PERIOD = timedelta(hours=1)
MARGIN = timedelta(minutes=10)
"""How long before its end a token is refreshed, or a fifth of its life if that is less."""

Renewal = Credential.Renewal


def accepted(given: Renewal | None, kind: str) -> dict[str, object]:
    """What is stored of a wish; without one, a credential renews as far as its kind can."""
    if given is None:
        return {"automatic": True}
    wish = Renewal(automatic=given.automatic)
    path = "credential.renewal"
    for name in ("period", "overlap"):
        if given.HasField(name):
            if kind != "WEBHOOK_SECRET":
                why = "only a webhook secret is replaced by the clock; other kinds renew before they end"
                raise Field(f"{path}.{name}").wrong(why)
            getattr(wish, name).CopyFrom(given_duration(getattr(given, name), f"{path}.{name}"))
    if wish.HasField("period") and wish.period.ToTimedelta() < LEAST_PERIOD:
        raise Field(f"{path}.period").wrong("it is less than an hour")
    if wish.HasField("period") and overlap_of(wish) > wish.period.ToTimedelta():
        raise Field(f"{path}.overlap").wrong("it is longer than the period, so old secrets would pile up")
    return MessageToDict(wish, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def given_duration(given: Duration, path: str) -> Duration:
    try:
        if given.ToTimedelta() < timedelta(0):
            raise Field(path).wrong("it is negative")
    except (OverflowError, ValueError):
        raise Field(path).wrong("it is no duration") from None
    return given


def of(row: CredentialRow) -> Renewal:
    return ParseDict(dict(row.renewal), Renewal())


def overlap_of(renewal: Renewal) -> timedelta:
    return renewal.overlap.ToTimedelta() if renewal.HasField("overlap") else OVERLAP


def next_time(kind: str, renewal: Renewal, now: datetime, ends: datetime | None) -> datetime | None:
    """When the version that begins now is replaced; None: not by itself."""
    if not renewal.automatic:
        return None
    if kind == "WEBHOOK_SECRET":
        return now + renewal.period.ToTimedelta() if renewal.HasField("period") else None
    if kind == "OAUTH2_AUTHORIZATION_CODE" and ends is not None:
        margin = min(MARGIN, (ends - now) / 5)
        # Tokens that were given out together shall not all be refreshed in the same second.
        return ends - margin * (1 + random.random() / 2)  # noqa: S311 - spreads load, protects nothing
    return None
