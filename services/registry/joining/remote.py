"""A plugin that somebody else runs: dialled where it announces itself, called like any other, never ended by us."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import grpc
import grpc.aio
import structlog

from foundation.clock import Clock
from foundation.clock.tasks import end
from foundation.errors import Problem
from foundation.process.supervised import Report, State
from foundation.rpc import options
from foundation.store.errors import StoreError
from services.registry.catalogue.catalogue import Published
from services.registry.catalogue.checks import CONTRACTS
from services.registry.catalogue.describing import difference
from services.registry.host.launch import Launch
from services.registry.host.process import DESCRIBE_SECONDS, HOST, LOOK_SECONDS, PluginProcess
from services.registry.host.socket_room import SocketRoom
from services.registry.joining.authority import Authority, Identity
from services.registry.joining.book import JoinBook
from services.registry.joining.names import certificate_name
from services.registry.joining.store import Member
from tieline.plugin.v1 import plugin_pb2, plugin_pb2_grpc

log = structlog.get_logger(__name__)

MISSED = 3
"""Announcements that a process may miss before no calls go there."""


class Roster:
    """Who joined, read from the database that all replicas share. Without a book nobody may join."""

    def __init__(
        self, book: JoinBook | None = None, announce_every: timedelta = timedelta(seconds=10)
    ) -> None:
        self.book = book
        self.looks = 0
        self._every = announce_every.total_seconds()
        self._members: list[Member] = []
        self._turned = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self.book is not None:
            self._task = asyncio.create_task(self._keep(self.book), name="look who announces itself")
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(self._task)

    async def looked_after(self, looks: int) -> None:
        """Until it was looked more often than that."""
        while self.looks <= looks:
            await self._turned.wait()

    def of(self, plugin: str, version: str) -> list[Member]:
        """Those that are heard, the latest first."""
        mine = (one for one in self._members if (one.plugin, one.version) == (plugin, version))
        return sorted((one for one in mine if one.silent < self._every * MISSED), key=lambda one: one.silent)

    def others(self, plugin: str, version: str) -> list[Member]:
        """Those that were heard once."""
        heard = self.of(plugin, version)
        mine = [one for one in self._members if (one.plugin, one.version) == (plugin, version)]
        return [one for one in mine if one not in heard]

    async def _keep(self, book: JoinBook) -> None:
        while True:
            try:
                self._members = await book.members()
            except (Problem, StoreError) as away:
                # What was announced last is still where it was; a database that is away ends no plugin.
                log.warning("who announces itself is not known now", why=str(away))
            self.looks += 1
            turned, self._turned = self._turned, asyncio.Event()
            turned.set()
            await asyncio.sleep(self._every / 5)


@dataclass(frozen=True, slots=True)
class Line:
    """A connection to one member, and what it was made with."""

    member: Member
    identity: Identity
    launch: Launch

    def leads_to(self, member: Member) -> bool:
        return (self.member.name, self.member.address) == (member.name, member.address)


class RemoteProcess(PluginProcess):
    """Of those that joined as this plugin and version, one is called; another takes over when it is silent."""

    def __init__(
        self, published: Published, room: SocketRoom, roster: Roster, *, cell: str = "", clock: Clock
    ) -> None:
        super().__init__(published, room, cell=cell, clock=clock)
        self._roster = roster
        self._line: Line | None = None
        self._refused = False
        self._keeping: asyncio.Task[None] | None = None
        self._told: set[asyncio.Task[None]] = set()
        self._ended = False

    @property
    def resource(self) -> str:
        return self._line.member.name if self._line is not None else super().resource

    @property
    def shared(self) -> bool:
        return self._line is not None

    @property
    def state(self) -> State:
        if self._ended:
            return State.STOPPED
        if self._line is not None:
            return State.READY
        return State.FAILED if self._refused else State.WAITING if self.lost else State.STARTING

    @property
    def lost(self) -> bool:
        silent = self._roster.others(self.name, self.manifest.version)
        return self._line is None and not self._refused and bool(silent)

    @property
    def explanation(self) -> str:
        if self._line is not None:
            return f"serves at {self._line.member.address}"
        if self._roster.book is None:
            return "nobody may join: the registry's setting `join_listen` names no address"
        if self.lost:
            return "it is silent: whoever runs it must look"
        return self.trouble or f"waits for somebody to join: `tieline plugin join-token {self.name}`"

    def start(self) -> None:
        self._keeping = asyncio.create_task(self._keep(), name=f"keep the line to {self.name}")

    async def aclose(self) -> None:
        self._ended = True
        await end(self._keeping)
        self._retire()
        await asyncio.gather(*self._closing, *self._told, return_exceptions=True)
        self._turn()

    async def autopsy(self, launch: Launch) -> Report | None:
        """Nobody here sees how it ends, or whether it was the way to it that broke: no input is accused."""
        del launch
        return None

    async def restart(self, drain: float = 0) -> None:
        """It is asked to, with the answer to its next announcement."""
        del drain
        if self._line is not None and self._roster.book is not None:
            await self._roster.book.want_restart(self._line.member.name)

    def kill(self) -> None:
        """What we did not start we do not end."""
        task = asyncio.create_task(self.restart(), name=f"ask {self.name} to restart")
        self._told.add(task)
        task.add_done_callback(self._told.discard)

    def release(self) -> None:
        self._refused, self.trouble = False, ""

    async def _keep(self) -> None:
        while True:
            looks = self._roster.looks
            try:
                await self._look_around()
            except Exception:  # a task's border: the next look may find another one
                log.exception("a remote plugin could not be reached", plugin=self.name)
            await self._roster.looked_after(looks)

    async def _look_around(self) -> None:
        book = self._roster.book
        if book is None:
            return
        heard, identity = self._roster.of(self.name, self.manifest.version), book.authority.own()
        line = self._line
        if line is not None:
            if line.identity is identity and any(line.leads_to(member) for member in heard):
                return
            log.warning("a remote plugin is left", plugin=self.name, process=line.member.name)
            self._retire()
            self._moved()
        for member in heard:
            if await self._dial(member, book.authority, identity):
                return

    async def _dial(self, member: Member, authority: Authority, identity: Identity) -> bool:
        channel = _channel(member, authority, identity)
        stub: plugin_pb2_grpc.PluginServiceAsyncStub = plugin_pb2_grpc.PluginServiceStub(channel)
        launch = Launch(Path(), b"", channel, stub)
        try:
            if await self._serves(launch, LOOK_SECONDS):
                request = plugin_pb2.DescribeRequest(contract_majors=CONTRACTS, host=HOST)
                described: Any = await launch.stub.Describe(request, timeout=DESCRIBE_SECONDS)
                different = difference(self.manifest, described.manifest)
                if not different:
                    self._line, self._launch, self._refused = Line(member, identity, launch), launch, False
                    self.trouble = ""
                    self.starts += 1
                    self._moved()
                    log.info("a remote plugin serves", plugin=self.name, process=member.name)
                    return True
                self._refused = True
                self.trouble = f"{member.name} describes itself otherwise than its manifest: {different}"
        except grpc.aio.AioRpcError as failed:
            self.trouble = f"{member.name} does not answer at {member.address} ({failed.code().name})"
        await channel.close()
        return False

    def _retire(self) -> None:
        line, self._line, self._launch = self._line, None, None
        if line is not None:
            closing = asyncio.create_task(line.launch.channel.close(grace=1.0))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    def _moved(self) -> None:
        self.since = self._clock.now()
        self._turn()


def _channel(member: Member, authority: Authority, identity: Identity) -> grpc.aio.Channel:
    """To whoever shows a certificate of that name, wherever it listens."""
    credentials = grpc.ssl_channel_credentials(
        authority.certificate.encode(), identity.key, identity.certificates
    )
    own: Mapping[str, Any] = dict(options.CLIENT)
    named = {"grpc.ssl_target_name_override": certificate_name(member.name)}
    kept = {name: value for name, value in own.items() if name != "grpc.default_authority"}
    return grpc.aio.secure_channel(member.address, credentials, list({**kept, **named}.items()))
