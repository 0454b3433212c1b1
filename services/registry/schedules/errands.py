"""What is done when it is a schedule's turn: a poll, or a look which parts a stream has."""

from __future__ import annotations

from foundation.store.unit_of_work import Store
from services.registry.broker.failures import CallFailed, not_found
from services.registry.broker.fetching import Fetching
from services.registry.connections.connection import Connection
from services.registry.connections.picture import Picture
from services.registry.host.host import Host
from services.registry.polling.poller import Ended, Errand, Polled, Poller
from services.registry.schedules import planting
from services.registry.schedules.schedule import Kind
from services.registry.schedules.store import Claimed
from services.registry.schedules.wishes import Wish, wishes
from tieline.common.v1.delivery_pb2 import PRIORITY_BULK
from tieline.registry.v1.broker_pb2 import ConnectionRef
from tieline.registry.v1.connections_pb2 import Connection as Wanted


class Errands:
    def __init__(
        self, poller: Poller, fetching: Fetching, worker: Store, picture: Picture, host: Host
    ) -> None:
        self._poller, self._fetching, self._worker = poller, fetching, worker
        self._picture, self._host = picture, host

    async def run(self, one: Claimed) -> Polled:
        """How it ended. Raises only what the store raises."""
        if one.kind is Kind.LIST:
            return await self._list(one)
        policy = self._policy(one)
        return await self._poller.poll(
            Errand(
                connection=one.key.resource,
                stream=one.stream,
                partition=one.partition,
                priority=PRIORITY_BULK if one.kind is Kind.BACKFILL else one.priority,
                starts_over=policy != Wanted.RESYNC_POLICY_STOP,
                from_last=policy == Wanted.RESYNC_POLICY_FROM_LAST and one.kind is Kind.POLL,
                window=one.window,
                reader=one.backfill,
            )
        )

    def stops(self, one: Claimed) -> bool:
        """Whether a person is to decide about a checkpoint that is no longer known."""
        return one.kind is Kind.POLL and self._policy(one) == Wanted.RESYNC_POLICY_STOP

    def _policy(self, one: Claimed) -> Wanted.ResyncPolicy.ValueType:
        found = self._connection(one)
        return Wanted.RESYNC_POLICY_UNSPECIFIED if found is None else found.wanted.resync_policy

    def _connection(self, one: Claimed) -> Connection | None:
        return self._picture.snapshot.content.get(one.key.resource)

    async def _list(self, one: Claimed) -> Polled:
        ref = ConnectionRef(connection=one.key.resource)
        try:
            listed = await self._fetching.all_partitions(ref, one.stream)
            # Which of them are wanted is read after the listing, which may take long.
            wish = self._wish(one)
        except CallFailed as failed:
            again = failed.failure.retry_after.ToTimedelta().total_seconds()
            return Polled(Ended.FAILED, failure=failed.failure, again_after=again or None)
        broken = [entry.slot_entry for entry in listed.broken]
        async with self._worker.unit_of_work(tenants=[one.key.tenant]) as work:
            await planting.put_parts(
                work, one.key.tenant, one.key.connection, wish, listed=listed.partitions, broken=broken
            )
        if listed.broken:
            return Polled(Ended.FAILED, failure=listed.broken[0].failure)
        return Polled(Ended.CAUGHT_UP)

    def _wish(self, one: Claimed) -> Wish:
        connection = self._connection(one)
        manifest = (
            None
            if connection is None
            else self._host.manifest(connection.plugin, connection.wanted.version_range)
        )
        if connection is not None and manifest is not None:
            for wish in wishes(connection.wanted, manifest):
                if wish.stream == one.stream:
                    return wish
        raise CallFailed(not_found("STREAM_UNKNOWN", f"{one.stream} is not polled any more"))
