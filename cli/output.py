"""What a verb prints: lines for people, or with --json one document with field names as in the protos."""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

_CONTROLS = {
    number: f"\\x{number:02x}" for number in (*range(0x20), *range(0x7F, 0xA0)) if chr(number) not in "\n\t"
}


def harmless(text: str) -> str:
    """What providers and other tenants wrote steers no terminal: no character moves a cursor or hides a line."""
    return text if text.isprintable() else text.translate(_CONTROLS)


def one_line(text: str) -> str:
    """For lists, where a line break would make two of one."""
    return " ".join(text.split())


class Harmless(io.TextIOBase):
    """Standard output with nothing in it that a terminal would obey."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def write(self, text: str) -> int:
        self._out.write(harmless(text))
        return len(text)

    def flush(self) -> None:
        self._out.flush()

    def fileno(self) -> int:
        return self._out.fileno()

    def isatty(self) -> bool:
        return self._out.isatty()


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
