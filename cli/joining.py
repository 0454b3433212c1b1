"""`tieline plugin join-token`: a plugin that runs elsewhere is let in, once."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from cli.client import Client
from foundation.errors import Code, Problem
from foundation.process.private import write_private
from tieline.registry.v1 import joining_pb2, joining_pb2_grpc


def arguments(action: argparse.ArgumentParser) -> None:
    action.add_argument(
        "--versions", default="", metavar="RANGE", help="which may join with it (default any)"
    )
    action.add_argument(
        "--to", type=Path, required=True, metavar="DIR", help="where join.token and ca.pem are written"
    )


async def join_token(installation: Client, options: argparse.Namespace) -> None:
    """Token and authority go into files: a secret that is printed stays in somebody's terminal."""
    stub = joining_pb2_grpc.JoinServiceStub(installation.registry)
    answer = await stub.CreateJoinToken(
        joining_pb2.CreateJoinTokenRequest(plugin=f"plugins/{options.id}", version_range=options.versions)
    )
    token, authority = _written(options.to, answer.join_token, answer.ca_certificates)
    until = answer.expire_time.ToJsonString()
    if options.json:
        print(json.dumps({"token_file": str(token), "ca_file": str(authority), "expire_time": until}))
    else:
        print(f"{token} and {authority} let one process of {options.id} in, until {until}")


def _written(directory: Path, token: str, authorities: str) -> tuple[Path, Path]:
    token_file, authority_file = directory / "join.token", directory / "ca.pem"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(token_file, token + "\n")
        authority_file.write_text(authorities)
    except OSError as error:
        raise Problem(
            Code.INVALID_ARGUMENT, field="--to", why=f"{error.filename}: {error.strerror}"
        ) from error
    return token_file, authority_file
