"""Reading a tenant's events from the stream, in its order, from a number on, for as long as somebody listens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import datetime

import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from services.mapper.bus import STREAM, Bus
from services.mapper.names import subjects_of

log = structlog.get_logger(__name__)

BATCH = 128
BATCH_BYTES = 4 * 1024 * 1024
"""An event is far smaller, see `validation`; more than this at once and the server may cut the client off."""
PULL_SECONDS = 30.0
LOOK_SECONDS = 0.5
RETRY_SECONDS = 0.2
_REQUEST_ENDED = {"404", "408", "409"}
FORGOTTEN_AFTER = 60.0
"""Seconds after which the server removes what a reader left behind that went without a word."""


@dataclass(frozen=True, slots=True)
class Told:
    number: int
    content: bytes


@dataclass(frozen=True, slots=True)
class Start:
    """Behind a number, or at the first event published since a time."""

    after: int = 0
    since: datetime | None = None


class Feed:
    """Survives the server: after a restart it goes on behind the last number it gave."""

    def __init__(self, bus: Bus, stopping: asyncio.Event) -> None:
        self._bus = bus
        self._stopping = stopping

    async def follow(self, tenant: str, start: Start) -> AsyncGenerator[list[Told]]:
        """Batches, and an empty one now and then, so that whoever listens can look after other things.

        Ends when the process is stopping; else never.
        """
        while not self._stopping.is_set():
            try:
                async with aclosing(self._read(tenant, start)) as batches:
                    async for batch in batches:
                        if batch:
                            start = Start(after=batch[-1].number)
                        yield batch
                        if self._stopping.is_set():
                            return
            except (nats.errors.Error, OSError, TimeoutError) as error:
                log.debug("reading begins anew", error=str(error) or type(error).__name__)
            await asyncio.sleep(RETRY_SECONDS)
            yield []

    async def _read(self, tenant: str, start: Start) -> AsyncGenerator[list[Told]]:
        client = self._bus.client
        if not client.is_connected:
            raise nats.errors.ConnectionClosedError
        stream = client.jetstream()
        info = await stream.add_consumer(STREAM, _consumer(tenant, start))
        inbox = client.new_inbox()
        subscription = await client.subscribe(inbox)
        try:
            pull = _Pull(client, subscription, inbox, f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{info.name}")
            while True:
                yield await pull.next()
        finally:
            with suppress(nats.errors.Error, TimeoutError):
                await subscription.unsubscribe()
                await stream.delete_consumer(STREAM, info.name)


def _consumer(tenant: str, start: Start) -> ConsumerConfig:
    config = ConsumerConfig(
        ack_policy=AckPolicy.NONE,
        filter_subject=subjects_of(tenant),
        inactive_threshold=FORGOTTEN_AFTER,
        mem_storage=True,
    )
    if start.since is not None:
        config.deliver_policy, config.opt_start_time = DeliverPolicy.BY_START_TIME, start.since
    else:
        config.deliver_policy, config.opt_start_seq = DeliverPolicy.BY_START_SEQUENCE, start.after + 1
    return config


class _Pull:
    """One request is always open at the server, for a bounded number of events and bytes."""

    def __init__(self, client: Client, subscription: Subscription, inbox: str, subject: str) -> None:
        self._client = client
        self._subscription = subscription
        self._inbox = inbox
        self._subject = subject
        self._open = 0
        self._connected = client.stats["reconnects"]

    async def next(self) -> list[Told]:
        """What has come; empty if nothing came for a moment."""
        if self._open <= 0:
            request = {"batch": BATCH, "max_bytes": BATCH_BYTES, "expires": int(PULL_SECONDS * 1e9)}
            await self._client.publish(self._subject, json.dumps(request).encode(), reply=self._inbox)
            self._open = BATCH
        told: list[Told] = []
        try:
            told += self._take(await self._subscription.next_msg(timeout=LOOK_SECONDS))
            while self._subscription.pending_msgs and len(told) < BATCH:
                told += self._take(await self._subscription.next_msg(timeout=LOOK_SECONDS))
        except nats.errors.TimeoutError:
            # A request does not survive the connection that it was made on, and nobody would answer it.
            if self._client.stats["reconnects"] != self._connected or not self._client.is_connected:
                raise nats.errors.ConnectionClosedError from None
        return told

    def _take(self, message: Msg) -> list[Told]:
        headers = message.headers or {}
        status = headers.get("Status")
        if status is None:
            self._open -= 1
            return [Told(message.metadata.sequence.stream, message.data)]
        if status not in _REQUEST_ENDED or "Consumer" in headers.get("Description", ""):
            raise nats.errors.Error(f"the server ended the reading with status {status}")
        self._open = 0
        return []
