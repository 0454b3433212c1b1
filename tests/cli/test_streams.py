"""What is to be polled, as options and files say it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from cli import streams
from cli.connection_file import read_many
from cli.output import document
from foundation.errors import Problem
from tieline.registry.v1.connections_pb2 import Connection


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    streams.arguments(parser)
    return parser.parse_args(words)


def test_options_choose_streams_their_intervals_and_their_parts() -> None:
    given = options(
        *("--stream", "issues", "--stream", "logs=5m", "--include", "logs=eu-*", "--exclude", "logs=*-test"),
        *("--resync", "from-last"),
    )
    issues, logs = streams.chosen(given)
    assert (issues.stream, issues.HasField("interval")) == ("issues", False)
    assert (logs.interval.seconds, list(logs.include), list(logs.exclude)) == (300, ["eu-*"], ["*-test"])
    assert streams.policy(given) == Connection.RESYNC_POLICY_FROM_LAST
    assert streams.policy(options()) == Connection.RESYNC_POLICY_UNSPECIFIED


@pytest.mark.parametrize(
    "words",
    [
        ("--stream", "issues=soon"),
        ("--stream", "issues", "--stream", "issues"),
        ("--include", "logs=*"),
        ("--stream", "logs", "--exclude", "logs"),
    ],
)
def test_what_cannot_be_is_told(words: tuple[str, ...]) -> None:
    with pytest.raises(Problem):
        streams.chosen(options(*words))


def test_what_a_list_printed_is_what_a_file_may_say(tmp_path: Path) -> None:
    given = options("--stream", "issues", "--stream", "logs=5m", "--include", "logs=eu-*", "--resync", "stop")
    made = Connection(
        name="tenants/acme/connections/main",
        plugin="plugins/x",
        streams=streams.chosen(given),
        resync_policy=streams.policy(given),
    )
    file = tmp_path / "many.json"
    file.write_text(json.dumps({"items": [document(made)]}))
    (read,) = read_many(str(file), "tenants/acme")
    assert (read.streams, read.resync_policy) == (made.streams, made.resync_policy)
    short = tmp_path / "short.toml"
    short.write_text("""[[connections]]
id = "main"
plugin = "x"
resync_policy = "stop"
streams = { logs = "5m" }
""")
    (read,) = read_many(str(short), "tenants/acme")
    assert (read.streams[0].interval.seconds, read.resync_policy) == (300, Connection.RESYNC_POLICY_STOP)
    short.write_text("""[[connections]]
id = "main"
streams = [{ stream = "logs", every = "5m" }]
""")
    with pytest.raises(Problem, match="every"):
        read_many(str(short), "tenants/acme")
