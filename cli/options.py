"""The command line of `tieline`: its verbs, and the options that stand before or after any of them."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Container
from datetime import timedelta
from pathlib import Path

from google.protobuf.duration_pb2 import Duration

from cli.verbs import VERBS, add_arguments

DEFAULT_DATA = Path(".tieline")
_SPAN = re.compile(r"(\d{1,6})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def parser(wanted: Container[str]) -> argparse.ArgumentParser:
    """All verbs by name, and those that are wanted with their own arguments: each costs its imports."""
    whole = argparse.ArgumentParser(
        prog="tieline",
        description="Connects external services to your event platform.",
        parents=[_everywhere()],
    )
    verbs = whole.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, what in VERBS.items():
        description = what[0].upper() + what[1:] + "."
        verb = verbs.add_parser(name, help=what, description=description, parents=[_everywhere()])
        if name in wanted:
            add_arguments(name, verb)
            _share_with_actions(verb)
    return whole


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse; options left out everywhere get their defaults only now, so that both positions count."""
    given = sys.argv[1:] if arguments is None else arguments
    options = parser(given).parse_args(given)
    defaults = {"data": DEFAULT_DATA, "tenant": None, "json": False}
    for name, value in defaults.items():
        if name not in options:
            setattr(options, name, value)
    endpoints = os.environ.get("TIELINE_ENDPOINTS")
    options.endpoints = Path(endpoints) if endpoints else options.data / "run" / "endpoints.json"
    return options


def _share_with_actions(verb: argparse.ArgumentParser) -> None:
    """`tieline event list --tenant acme`: the last word of a command is where people put them."""
    for action in verb._actions:  # noqa: SLF001 - argparse has no other way to list them
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for parser in action.choices.values():
                _add_shared(parser)


def _everywhere() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    _add_shared(shared)
    return shared


def _add_shared(parser: argparse.ArgumentParser) -> None:
    missing = argparse.SUPPRESS  # so that a later parser does not undo what an earlier one was told
    where = f"data directory (default {DEFAULT_DATA})"
    parser.add_argument("--data", type=_directory, metavar="DIR", help=where, default=missing)
    parser.add_argument("--tenant", metavar="T", help="the tenant a command is about", default=missing)
    parser.add_argument("--json", action="store_true", help="print one JSON document", default=missing)


def add_paging(verb: argparse.ArgumentParser) -> None:
    """What every list takes."""
    verb.add_argument("--limit", type=int, default=50, metavar="N", help="at most this many")
    verb.add_argument("--page-token", default="", metavar="T", help="where the page before ended")


def _directory(text: str) -> Path:
    if not text:  # an unset variable of a script; the current directory is called `.`
        raise argparse.ArgumentTypeError("it names no directory")
    return Path(text)


def span(text: str) -> Duration:
    found = _SPAN.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not like 30d, 12h, 15m or 40s")
    duration = Duration()
    duration.FromTimedelta(timedelta(**{_UNITS[found[2]]: int(found[1])}))
    return duration
