"""A connection as the contract has it."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from foundation.rpc.times import stamp
from services.registry.connections.connection import Connection, State
from tieline.common.v1.failure_pb2 import Failure
from tieline.registry.v1 import connections_pb2 as pb


class Seen(Protocol):
    """What is true of a connection besides what is stored of it."""

    def version(self, connection: Connection) -> str:
        """Of its plugin, as it runs."""

    def failing(self, connection: Connection) -> tuple[Failure, datetime] | None:
        """Why it does not work although it should, and since when."""


class Shown:
    def __init__(self, seen: Seen, public_url: str) -> None:
        self._seen, self._public_url = seen, public_url.rstrip("/")

    def __call__(self, connection: Connection) -> pb.Connection:
        state, failure, since = connection.state, connection.failure, connection.state_time
        if (failing := self._seen.failing(connection)) is not None:
            state, (failure, since) = State.FAILING, failing
        shown = pb.Connection()
        shown.CopyFrom(connection.wanted)
        shown.MergeFrom(
            pb.Connection(
                name=connection.name,
                state=pb.Connection.State.Value(f"STATE_{state.name}"),
                state_time=stamp(since),
                failure=failure,
                revision=connection.revision,
                application=pb.Connection.Application.Value(f"APPLICATION_{connection.application.name}"),
                applied_revision=connection.applied_revision,
                application_failure=connection.application_failure,
                resolved_version=self._seen.version(connection),
                webhook_urls={
                    webhook: f"{self._public_url}/hooks/{endpoint}"
                    for webhook, endpoint in connection.endpoints.items()
                },
                subscriptions=connection.subscriptions,
                create_time=stamp(connection.create_time),
                update_time=stamp(connection.update_time),
                etag=connection.etag,
            )
        )
        for one in shown.account_keys:
            claim = connection.accounts.get(one.key, "claimed")
            one.claim = pb.AccountKey.Claim.Value(f"CLAIM_{claim.upper()}")
        return shown
