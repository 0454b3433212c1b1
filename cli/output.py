"""What a verb prints: lines for people, or with --json one document with field names as in the protos."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message


def document(message: Message) -> dict[str, Any]:
    return MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=False
    )


def show(
    options: argparse.Namespace, message: Message, line: str, more: Mapping[str, Any] | None = None
) -> None:
    print(json.dumps(document(message) | dict(more or {}), indent=1) if options.json else line)


def show_list(
    options: argparse.Namespace,
    items: Sequence[Message],
    lines: Iterable[str],
    next_page_token: str = "",
) -> None:
    if options.json:
        listed = [document(item) for item in items]
        print(json.dumps({"items": listed, "next_page_token": next_page_token}, indent=1))
        return
    for line in lines:
        print(line)
    if next_page_token:
        print(f"more: --page-token {next_page_token}")
