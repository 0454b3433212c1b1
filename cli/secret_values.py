"""Values of credentials as a person hands them over: from stdin or from files, never from the command line."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from foundation.errors import Code, Problem
from tieline.credentials.v1.secrets_pb2 import SecretValue

KINDS = [field.name for field in SecretValue.DESCRIPTOR.oneofs_by_name["value"].fields]
FROM_STDIN = {
    "api_key": "key",
    "bearer_token": "token",
    "webhook_secret": "secret",
    "private_key": "private_key",
    "service_account": "document",
}
"""Kinds of a single value, and the field that stdin fills."""


def add_value_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--field",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="a field from a file; `scopes` one a line, `base.NAME` for the keys of an AWS role",
    )
    verb.add_argument("--expires", metavar="TIME", help="when it ends: 2027-01-31 or 2027-01-31T12:00:00Z")


def value_of(options: argparse.Namespace, kind: str) -> SecretValue:
    """The value of that kind; a kind of a single value reads stdin where no file gives it."""
    value = SecretValue()
    part = getattr(value, kind)
    part.SetInParent()
    fields = dict(_file(text) for text in options.field)
    if kind in FROM_STDIN and FROM_STDIN[kind] not in fields:
        fields[FROM_STDIN[kind]] = sys.stdin.buffer.read()
    for name, raw in fields.items():
        _fill(part, name, raw, kind)
    if options.expires:
        value.expire_time.FromDatetime(_moment(options.expires))
    return value


def _fill(part: Message, name: str, raw: bytes, kind: str) -> None:
    first, _, rest = name.partition(".")
    of = part.DESCRIPTOR.fields_by_name.get(first)
    inner = of is not None and of.message_type is not None and not of.is_repeated
    if of is None or inner is not bool(rest):
        known = ", ".join(part.DESCRIPTOR.fields_by_name)
        raise Problem(Code.INVALID_ARGUMENT, field="--field", why=f"{kind} has {known}, not {name}")
    if inner:
        _fill(getattr(part, first), rest, raw, f"{kind}.{first}")
        return
    try:
        content: Any = raw if of.type == of.TYPE_BYTES else _text(raw)
    except UnicodeDecodeError:
        why = f"the file for {name} holds no text"
        raise Problem(Code.INVALID_ARGUMENT, field="--field", why=why) from None
    if of.is_repeated:
        getattr(part, first).extend(content.split())
    else:
        setattr(part, first, content)


def _text(raw: bytes) -> str:
    # A terminal or an editor adds the last line break; no secret ends with one, and PEM does not miss it.
    return raw.removesuffix(b"\n").removesuffix(b"\r").decode()


def _file(text: str) -> tuple[str, bytes]:
    name, equals, path = text.partition("=")
    if not equals:
        raise Problem(Code.INVALID_ARGUMENT, field="--field", why=f"{text!r} is not NAME=FILE")
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise Problem(Code.INVALID_ARGUMENT, field="--field", why=f"{path}: {error.strerror}") from error
    if not content:
        # Else a file that was not written would have the vault make a secret that nobody knows.
        raise Problem(Code.INVALID_ARGUMENT, field="--field", why=f"{path}: it is empty")
    return name, content


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        why = f"{text!r} is no date and no time"
        raise Problem(Code.INVALID_ARGUMENT, field="--expires", why=why) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
