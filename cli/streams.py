"""What a connection chooses to poll, on the command line."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from cli.options import span
from foundation.errors import Code, Problem
from tieline.registry.v1.connections_pb2 import Connection, StreamChoice

POLICIES = ("lookback", "from-last", "stop")


def arguments(action: argparse.ArgumentParser) -> None:
    action.add_argument(
        "--stream",
        action="append",
        default=[],
        metavar="NAME[=SPAN]",
        help="poll this stream, as often as it says or every SPAN: issues=5m; what is not named is not polled, in an update neither",
    )
    for option, what in (("include", "poll only"), ("exclude", "do not poll")):
        action.add_argument(
            f"--{option}",
            action="append",
            default=[],
            metavar="STREAM=GLOB",
            help=f"{what} the parts of a stream that fit: logs=eu-*",
        )
    action.add_argument(
        "--resync",
        choices=POLICIES,
        help="where to begin when the provider forgot how far it was read (default: lookback)",
    )


def chosen(options: argparse.Namespace) -> Sequence[StreamChoice]:
    choices: dict[str, StreamChoice] = {}
    for text in options.stream:
        name, equals, interval = text.partition("=")
        if name in choices:
            raise Problem(Code.INVALID_ARGUMENT, field="--stream", why=f"{name} is chosen twice")
        choices[name] = StreamChoice(stream=name)
        if equals:
            try:
                choices[name].interval.CopyFrom(span(interval))
            except argparse.ArgumentTypeError as error:
                raise Problem(Code.INVALID_ARGUMENT, field="--stream", why=str(error)) from None
    for option in ("include", "exclude"):
        for text in getattr(options, option):
            name, equals, glob = text.partition("=")
            if not equals or name not in choices:
                why = f"{text!r} is not STREAM=GLOB of a stream that `--stream` chooses"
                raise Problem(Code.INVALID_ARGUMENT, field=f"--{option}", why=why)
            getattr(choices[name], option).append(glob)
    return list(choices.values())


def read(value: Any) -> list[StreamChoice]:
    """As a file has them: `{"issues": "5m"}`, or a list as `--json` prints it."""
    many = (
        [{"stream": name, "interval": interval} for name, interval in value.items()]
        if isinstance(value, Mapping)
        else value
    )
    return [_choice(one) for one in many]


def _choice(one: Mapping[str, Any]) -> StreamChoice:
    unknown = set(one) - {"stream", "interval", "include", "exclude"}
    if unknown:
        raise ValueError(f"a stream has no {min(unknown)!r}")
    choice = StreamChoice(
        stream=one["stream"], include=one.get("include", []), exclude=one.get("exclude", [])
    )
    if interval := one.get("interval"):
        try:
            choice.interval.CopyFrom(span(interval))
        except argparse.ArgumentTypeError:
            choice.interval.FromJsonString(interval)
    return choice


def read_policy(text: str) -> Connection.ResyncPolicy.ValueType:
    name = text.upper().replace("-", "_").removeprefix("RESYNC_POLICY_") or "UNSPECIFIED"
    return Connection.ResyncPolicy.Value(f"RESYNC_POLICY_{name}")


def policy(options: argparse.Namespace) -> Connection.ResyncPolicy.ValueType:
    if options.resync in (None, "lookback"):
        return Connection.RESYNC_POLICY_UNSPECIFIED
    return Connection.ResyncPolicy.Value(f"RESYNC_POLICY_{options.resync.upper().replace('-', '_')}")
