"""One plugin as a supervised child: started, proven to be what its manifest says, called, watched, started again."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import grpc.aio
import psutil
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from foundation.clock import Clock, SystemClock
from foundation.clock.tasks import end
from foundation.process.cgroups import Cgroups, Group
from foundation.process.child import Child
from foundation.process.errors import HopelessError, ProcessError
from foundation.process.output import Line
from foundation.process.restart import RestartPolicy
from foundation.process.supervised import Report, Rules, State, Supervised
from foundation.rpc import options
from services.registry.catalogue.catalogue import Published
from services.registry.catalogue.checks import CONTRACTS
from services.registry.catalogue.describing import difference
from services.registry.egress.refusals import Refusal
from services.registry.host.capacity import Capacity
from services.registry.host.crashes import Crash, redacted
from services.registry.host.garbage import RefuseGarbage
from services.registry.host.launch import GRACE_SECONDS, Launch, command_for, memory_limit
from services.registry.host.orphans import end_orphans
from services.registry.host.removing import remove
from services.registry.host.sandbox import Sandbox
from services.registry.host.secrets import Secrets
from services.registry.host.socket_room import SocketRoom
from services.registry.host.watchdog import MIB, Patience, Watchdog
from tieline.plugin.v1 import plugin_pb2, plugin_pb2_grpc

log = structlog.get_logger(__name__)

HOST = "tieline 0.1.0"
DESCRIBE_SECONDS = 5.0
LOOK_SECONDS = 1.0
CALLS_IN_FLIGHT = 8
STARTUP_SECONDS = 30.0
CRASHES_TOLD = 10
DRAIN_SECONDS = 20.0
"""How long calls in flight may take before their process is ended in spite of them."""
CHANNEL_GRACE_SECONDS = 1.0
"""Calls on a dead process's channel end by themselves, and sooner than this."""
NOTICE_SECONDS = 1.0
"""How long the end of a process may take to become known after its connection broke."""


class PluginRefused(HopelessError):  # noqa: N818 - it is refused
    """The process is not what the manifest says. Starting it again will not help."""


class PluginDown(ProcessError):  # noqa: N818 - it is down
    """There is no process to call, now or for good."""


class PluginProcess:
    """From `start` to `aclose` it is kept alive. What goes wrong inside is told, never raised at its owner."""

    def __init__(
        self,
        published: Published,
        room: SocketRoom,
        *,
        cell: str = "",
        policy: RestartPolicy | None = None,
        sandbox: Sandbox | None = None,
        patience: Patience | None = None,
        cgroups: Cgroups | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.published = published
        self.manifest = published.manifest
        self.cell = cell
        self.trouble = ""
        self.crashes: deque[Crash] = deque(maxlen=CRASHES_TOLD)
        """Newest first."""
        self.starts = 0
        self.outdated = False
        """What lies on disk is no longer what it was started from."""
        self._room = room
        self._sandbox = sandbox or Sandbox()
        self._patience = patience or Patience()
        self._cgroups = cgroups
        self._clock = clock or SystemClock()
        self.since = self._clock.now()
        self._capacity = Capacity(self.manifest.limits.calls_in_flight or CALLS_IN_FLIGHT)
        self._launch: Launch | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._turned = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        self._draining = False
        self._scratch: Path | None = None
        self._refused_before: list[Refusal] = []
        self.idle_since = self._clock.monotonic()
        startup = self.manifest.limits.startup
        within = startup.ToTimedelta().total_seconds() if startup.ByteSize() else STARTUP_SECONDS
        self._supervised = Supervised(
            self.name,
            self._start,
            self._look,
            Rules(ready_within=within, policy=policy or RestartPolicy()),
            on_change=self._changed,
        )

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def resource(self) -> str:
        """Its name for people and programs, the same over all its lives."""
        apart = f"-{self.cell}" if self.cell else ""
        return f"plugins/{self.name}/processes/{self.manifest.version.replace('.', '-')}{apart}"

    @property
    def shared(self) -> bool:
        """Every replica calls this very process, by the one name that it has."""
        return False

    @property
    def pid(self) -> int | None:
        child = self._supervised.child
        return child.pid if child is not None and child.running else None

    @property
    def state(self) -> State:
        return self._supervised.state

    @property
    def lost(self) -> bool:
        """It runs elsewhere, and is silent."""
        return False

    @property
    def draining(self) -> bool:
        return self._draining

    @property
    def calls_in_flight(self) -> int:
        return self._capacity.in_use

    @property
    def launch(self) -> Launch | None:
        """The present life."""
        return self._launch

    @property
    def refused(self) -> list[Refusal]:
        """Whom it tried to reach and may not, in this life or the one before; the latest first."""
        return (self._launch.enclosure.refused if self._launch else []) or self._refused_before

    @property
    def confined(self) -> bool:
        """As it truly is, not as it was asked for."""
        return self._launch is not None and self._launch.enclosure.confined

    def _walls(self) -> str:
        """What is to be known about walls that were wanted and are not there."""
        enclosure = self._launch.enclosure if self._launch is not None else None
        return f"; {enclosure.reason}" if enclosure is not None and enclosure.reason else ""

    @property
    def next_start(self) -> datetime | None:
        at = self._supervised.next_start
        return None if at is None else self._clock.now() + timedelta(seconds=at - self._supervised.now())

    @property
    def explanation(self) -> str:
        """Why it is so, and what to do, in one line."""
        match self.state:
            case State.READY:
                return self._serving()
            case State.FAILED:
                release = f"`tieline plugin release {self.name}` or a new version tries again"
                return f"in quarantine: {self.trouble}; {release}"
            case State.WAITING:
                return f"{self.trouble}; it is started again by itself"
            case State.STARTING:
                return f"starts; before: {self.trouble}" if self.trouble else "starts"
            case _:
                return "is not wanted"

    def _serving(self) -> str:
        if self._draining:
            return "finishes its calls, then starts anew"
        if self.outdated:
            anew = f"`tieline plugin restart {self.name}` takes them"
            return f"serves; its files changed since it was started: {anew}"
        return f"serves{self._walls()}"

    def start(self) -> None:
        self._supervised.keep()

    async def aclose(self) -> None:
        await end(self._watching)
        await self._supervised.stop()
        self._retire()
        await asyncio.gather(*self._closing, return_exceptions=True)

    @asynccontextmanager
    async def call(self, within: float, *, alone: bool = False) -> AsyncIterator[Launch]:
        """Room for one call (`alone`: and for no other), and a process that is ready for it.

        PluginDown if that takes too long.
        """
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(within):
                    await stack.enter_async_context(self._capacity.all() if alone else self._capacity.one())
                    launch = await self._ready()
            except TimeoutError:
                raise PluginDown(f"{self.name} is {self.state}: {self.trouble or 'no answer yet'}") from None
            try:
                yield launch
            finally:
                self.idle_since = self._clock.monotonic()

    def proved(self) -> None:
        """It answered: whatever kills it next is not a crash loop."""
        self._supervised.restarts.proved()

    def excuse(self, crashes: int = 1) -> None:
        """So many of its crashes were an input's fault: they count neither as a loop nor for patience."""
        self._supervised.restarts.excuse(crashes)

    async def autopsy(self, launch: Launch) -> Report | None:
        """A call on this launch broke off: how the process ended, or None if it lives."""
        with suppress(TimeoutError):
            async with asyncio.timeout(NOTICE_SECONDS):
                while launch.crash is None:
                    await self._turned.wait()
        return launch.crash

    def accuse(self, report: Report, inputs: tuple[str, ...]) -> None:
        """These inputs were in flight when it died of that."""
        for index, crash in enumerate(self.crashes):
            if crash.report is report:
                self.crashes[index] = replace(crash, suspects=(*crash.suspects, *inputs))

    @property
    def crashes_in_a_row(self) -> int:
        """Since it last was of use."""
        return self._supervised.restarts.crashes

    def release(self) -> None:
        """Out of quarantine, with nothing held against it."""
        self._supervised.release()

    async def restart(self, drain: float = DRAIN_SECONDS) -> None:
        """Finish the calls in flight, end it gently and start it anew. New calls wait for the new life."""
        async with self._drained(drain):
            await self._supervised.restart(GRACE_SECONDS)

    async def drain(self, within: float = DRAIN_SECONDS) -> None:
        """Finish the calls in flight, then end it for good."""
        async with self._drained(within):
            await self.aclose()

    def kill(self) -> None:
        self._supervised.kill()

    def end(self, why: str) -> None:
        """Kill it for a reason, which its crash will tell."""
        self._supervised.end(why)

    @asynccontextmanager
    async def _drained(self, within: float) -> AsyncIterator[None]:
        self._draining = True
        try:
            async with AsyncExitStack() as stack:
                with suppress(TimeoutError):
                    async with asyncio.timeout(within):
                        await stack.enter_async_context(self._capacity.all())
                yield
        finally:
            self._draining = False

    async def _ready(self) -> Launch:
        while self.state is not State.READY or self._launch is None:
            if self.state in {State.FAILED, State.STOPPING, State.STOPPED}:
                raise PluginDown(f"{self.name} is left alone: {self.trouble or self.explanation}")
            await self._turned.wait()
        return self._launch

    async def _start(self) -> Child:
        self._retire()
        self.starts += 1
        socket, nonce = self._room.fresh(), secrets.token_bytes(32)
        channel = grpc.aio.insecure_channel(
            f"unix://{socket}", options.CLIENT, interceptors=[RefuseGarbage()]
        )
        stub: plugin_pb2_grpc.PluginServiceAsyncStub = plugin_pb2_grpc.PluginServiceStub(channel)
        enclosure = self._sandbox.enclose(self.manifest, self.cell)
        self._launch = Launch(socket, nonce, channel, stub, enclosure, memory=self._memory())
        if self.manifest.HasField("scratch"):
            self._scratch = self._room.scratch(socket)
        return await enclosure.spawn(command_for(self.published, self._launch, self._scratch), self._heard)

    def _memory(self) -> Group | None:
        if self._cgroups is None:
            return None
        try:
            return self._cgroups.make(memory_limit(self.published))
        except OSError as error:
            log.warning("a plugin's memory is bounded by limits only", plugin=self.name, why=str(error))
            return None

    async def _look(self) -> bool:
        """Serving, started by us, and the plugin that the manifest describes."""
        launch = self._launch
        if launch is None or not launch.socket.exists():
            self.trouble = self._listens_elsewhere() or self.trouble
            return False
        try:
            if not await self._serves(launch, LOOK_SECONDS):
                self.trouble = "it says that it does not serve"
                return False
            request = plugin_pb2.DescribeRequest(contract_majors=CONTRACTS, host=HOST)
            described = await launch.stub.Describe(request, timeout=DESCRIBE_SECONDS)
        except grpc.aio.AioRpcError as failed:
            self.trouble = f"it does not answer as a plugin ({failed.code().name}: {failed.details()})"
            return False
        self._demand_truth(launch, described)
        self.trouble = ""
        return True

    async def _serves(self, launch: Launch, within: float) -> bool:
        health: Any = health_pb2_grpc.HealthStub(launch.channel)
        answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=within)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def _demand_truth(self, launch: Launch, described: plugin_pb2.DescribeResponse) -> None:
        if not launch.proves(described.launch_proof):
            raise PluginRefused(f"{self.name}: whoever answers is not the process that was started")
        if different := difference(self.manifest, described.manifest):
            raise PluginRefused(f"{self.name} describes itself otherwise than its manifest: {different}")

    def _listens_elsewhere(self) -> str:
        """A plugin that chose its own address would otherwise be looked for in vain, without a word why."""
        pid = self.pid
        if pid is None:
            return ""
        try:
            connections = psutil.Process(pid).net_connections("all")
        except psutil.Error:
            return ""
        for connection in connections:
            if connection.status == psutil.CONN_LISTEN:
                return (
                    f"it listens on {connection.laddr.ip}:{connection.laddr.port}, not where it was told to"
                )
            if isinstance(connection.laddr, str) and connection.laddr:
                return f"it listens on {connection.laddr}, not where it was told to"
        return ""

    def _changed(self, state: State, report: Report | None) -> None:
        self.since = self._clock.now()
        if report is not None:
            self._bury(state, report)
        elif state is State.READY:
            log.info("a plugin serves", plugin=self.name, version=self.manifest.version, pid=self.pid)
            self._watch()
        self._turn()

    def _bury(self, state: State, report: Report) -> None:
        if "was not ready" in report.sentence and self.trouble:
            report = replace(report, sentence=f"{report.sentence}: {self.trouble}")
        launch = self._launch
        if launch is not None and launch.memory is not None and launch.memory.ran_out:
            limit = memory_limit(self.published) // MIB
            report = replace(
                report, sentence=f"{report.sentence}: out of memory, of which {limit} MiB is its limit"
            )
        hidden = launch.secrets if launch is not None else Secrets()
        report = replace(report, sentence=redacted(report.sentence, hidden))
        self.trouble = report.sentence
        self.crashes.appendleft(Crash(self._clock.now(), report, redacted(report.tail, hidden, is_tail=True)))
        if launch is not None:
            launch.crash = report
            # Whatever it had started and hidden from its process group.
            end_orphans(launch.socket.parent, launch.enclosure.network)
            if launch.memory is not None:
                launch.memory.close()
        self._clear()
        log.warning("a plugin ended", plugin=self.name, state=state.value, why=report.sentence)

    def _watch(self) -> None:
        launch, pid = self._launch, self.pid
        if launch is None or pid is None:
            return
        if self._watching is not None:
            self._watching.cancel()

        async def answers(within: float) -> bool:
            try:
                return await self._serves(launch, within)
            except grpc.aio.AioRpcError:
                return False

        watchdog = Watchdog(
            answers=answers,
            end=self._supervised.end,
            memory_limit=memory_limit(self.published),
            scratch=self._scratch,
            scratch_quota=self.manifest.scratch.quota_bytes,
            patience=self._patience,
        )
        self._watching = asyncio.create_task(watchdog.watch(pid), name=f"watch {self.name}")

    def _turn(self) -> None:
        turned, self._turned = self._turned, asyncio.Event()
        turned.set()

    def _retire(self) -> None:
        """Leave a dead process's channel: calls under way on it end by themselves, new ones find the next life."""
        self._refused_before = self.refused
        self._clear()
        launch, self._launch = self._launch, None
        if self._watching is not None:
            self._watching.cancel()
        if launch is not None:
            end_orphans(launch.socket.parent, launch.enclosure.network)
            if launch.memory is not None:
                launch.memory.close()
            self._room.forget(launch.socket)
            launch.enclosure.close()
            self._close(launch.channel.close(grace=CHANNEL_GRACE_SECONDS))

    def _clear(self) -> None:
        scratch, self._scratch = self._scratch, None
        if scratch is not None:
            # It may hold a great many files.
            self._close(asyncio.to_thread(remove, scratch))

    def _close(self, closing: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(closing)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _heard(self, line: Line) -> None:
        hidden = self._launch.secrets if self._launch is not None else Secrets()
        log.info("a plugin says", plugin=self.name, stream=line.stream, text=redacted(line.text, hidden))
