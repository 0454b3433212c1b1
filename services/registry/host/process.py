"""One plugin as a supervised child: started, proven to be what its manifest says, called, started again."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import random
import secrets
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from foundation.process.child import Child
from foundation.process.command import Command, Limits, clean_env
from foundation.process.errors import ProcessError
from foundation.process.output import Line
from foundation.process.restart import GiveUp, RestartPolicy, Restarts
from foundation.process.supervised import Report, Rules, State, Supervised
from foundation.rpc import options
from services.registry.catalogue.describing import difference
from services.registry.catalogue.manifests import Found
from services.registry.host.capacity import Capacity
from services.registry.host.sandbox import Enclosure, Sandbox
from services.registry.host.socket_room import SocketRoom
from tieline.plugin.v1 import plugin_pb2, plugin_pb2_grpc

log = structlog.get_logger(__name__)

HOST = "tieline 0.1.0"
DESCRIBE_SECONDS = 5.0
LOOK_SECONDS = 1.0
CALLS_IN_FLIGHT = 8
MEMORY_BYTES = 256 * 1024 * 1024
OPEN_FILES = 1024
STARTUP_SECONDS = 30.0
GRACE_SECONDS = 4.0
"""From SIGTERM to SIGKILL: less than our own parent allows us."""


CHANNEL_GRACE_SECONDS = 1.0
"""Calls on a dead process's channel end by themselves, and sooner than this."""


NOTICE_SECONDS = 1.0
"""How long the end of a process may take to become known after its connection broke."""


class PluginRefused(ProcessError):  # noqa: N818 - it is refused
    """The process is not what the manifest says. Starting it again will not help."""


class PluginDown(ProcessError):  # noqa: N818 - it is down
    """There is no process to call, now or for good."""


@dataclass(slots=True)
class Launch:
    """One life of the process, as its client sees it. What it holds ready is forgotten with it."""

    socket: Path
    nonce: bytes
    channel: grpc.aio.Channel
    stub: plugin_pb2_grpc.PluginServiceAsyncStub
    enclosure: Enclosure = field(default_factory=Enclosure)
    prepared: dict[str, int] = field(default_factory=dict)
    """Revisions held, by instance."""
    crash: Report | None = None
    """How this life ended, once it has."""

    @property
    def address(self) -> str:
        return f"unix://{self.socket}"


PATIENT = RestartPolicy(cap=15.0, crash_limit=None)
"""A plugin serves every tenant and nobody can release it yet, so it is tried again for ever, with capped pauses."""


class PluginProcess:
    """From `start` to `aclose` it is kept alive. What goes wrong inside is told, never raised at its owner."""

    def __init__(
        self,
        found: Found,
        room: SocketRoom,
        policy: RestartPolicy | None = None,
        sandbox: Sandbox | None = None,
    ) -> None:
        self.found = found
        self.manifest = found.manifest
        self.trouble = ""
        self._room = room
        self._policy = policy or PATIENT
        self._sandbox = sandbox or Sandbox()
        self._capacity = Capacity(self.manifest.limits.calls_in_flight or CALLS_IN_FLIGHT)
        self._launch: Launch | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._supervised = self._supervise()
        self._given_up = False
        self._turned = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def pid(self) -> int | None:
        child = self._supervised.child
        return child.pid if child is not None and child.running else None

    @property
    def state(self) -> State:
        return State.FAILED if self._given_up else self._supervised.state

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep(), name=f"keep {self.name}")

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
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
            yield launch

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

    def kill(self) -> None:
        self._supervised.kill()

    async def _ready(self) -> Launch:
        while self._supervised.state is not State.READY or self._launch is None:
            if self._given_up or self._supervised.state is State.FAILED:
                raise PluginDown(f"{self.name} is left alone: {self.trouble}")
            await self._turned.wait()
        return self._launch

    async def _keep(self) -> None:
        """A first start that fails is tried again as patiently as any other; the supervision goes on from there."""
        restarts = Restarts(self._policy, random.random)
        while True:
            try:
                await self._supervised.start()
            except PluginRefused as refused:
                return self._give_up(refused.sentence)
            except ProcessError as failed:
                self.trouble = failed.sentence
                verdict = restarts.crashed(time.monotonic())
                if isinstance(verdict, GiveUp):
                    return self._give_up(failed.sentence)
                await asyncio.sleep(verdict.after)
                self._supervised = self._supervise()
            except Exception as error:  # a task's border: one plugin's trouble is told and stays its own
                log.exception("a plugin could not be started", plugin=self.name)
                return self._give_up(f"it could not be started ({type(error).__name__})")
            else:
                return None

    def _give_up(self, why: str) -> None:
        self._given_up, self.trouble = True, why
        log.error("a plugin is left alone", plugin=self.name, why=why)
        self._turn()

    def _supervise(self) -> Supervised:
        startup = self.manifest.limits.startup
        within = startup.ToTimedelta().total_seconds() if startup.ByteSize() else STARTUP_SECONDS
        return Supervised(
            self.name,
            self._start,
            self._look,
            Rules(ready_within=within, policy=self._policy),
            on_change=self._changed,
        )

    async def _start(self) -> Child:
        self._retire()
        socket, nonce = self._room.fresh(), secrets.token_bytes(32)
        channel = grpc.aio.insecure_channel(f"unix://{socket}", options.CLIENT)
        stub: plugin_pb2_grpc.PluginServiceAsyncStub = plugin_pb2_grpc.PluginServiceStub(channel)
        enclosure = self._sandbox.enclose(self.manifest)
        self._launch = Launch(socket, nonce, channel, stub, enclosure)
        return await enclosure.spawn(_command(self.found, self._launch), self._heard)

    async def _look(self) -> bool:
        """Serving, started by us, and the plugin that the manifest describes."""
        launch = self._launch
        if launch is None or not launch.socket.exists():
            return False
        try:
            health: Any = health_pb2_grpc.HealthStub(launch.channel)
            answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=LOOK_SECONDS)
            if answer.status != health_pb2.HealthCheckResponse.SERVING:
                return False
            request = plugin_pb2.DescribeRequest(contract_majors=[1], host=HOST)
            described = await launch.stub.Describe(request, timeout=DESCRIBE_SECONDS)
        except grpc.aio.AioRpcError as failed:
            self.trouble = f"it does not answer ({failed.code().name})"
            return False
        self._demand_truth(launch, described)
        self.trouble = ""
        return True

    def _demand_truth(self, launch: Launch, described: plugin_pb2.DescribeResponse) -> None:
        proof = hmac.digest(launch.nonce, launch.address.encode(), hashlib.sha256)
        if not hmac.compare_digest(proof, described.launch_proof):
            raise PluginRefused(f"{self.name}: whoever answers is not the process that was started")
        if different := difference(self.manifest, described.manifest):
            raise PluginRefused(f"{self.name} describes itself otherwise than its manifest: {different}")

    def _changed(self, state: State, report: Report | None) -> None:
        if report is not None:
            self.trouble = report.sentence
            if self._launch is not None:
                self._launch.crash = report
            log.warning("a plugin ended", plugin=self.name, state=state.value, why=report.sentence)
        elif state is State.READY:
            log.info("a plugin serves", plugin=self.name, version=self.manifest.version, pid=self.pid)
        self._turn()

    def _turn(self) -> None:
        turned, self._turned = self._turned, asyncio.Event()
        turned.set()

    def _retire(self) -> None:
        """Leave a dead process's channel: calls under way on it end by themselves, new ones find the next life."""
        launch, self._launch = self._launch, None
        if launch is not None:
            self._room.forget(launch.socket)
            launch.enclosure.close()
            closing = asyncio.create_task(launch.channel.close(grace=CHANNEL_GRACE_SECONDS))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    def _heard(self, line: Line) -> None:
        log.info("a plugin says", plugin=self.name, stream=line.stream, text=line.text)


def _command(found: Found, launch: Launch) -> Command:
    process, limits = found.manifest.runtime.process, found.manifest.limits
    program, *arguments = process.command
    # A plugin's own environment of its own dependencies would stand here; so far it shares ours.
    interpreter = sys.executable if program == "python" else program
    nonce = base64.urlsafe_b64encode(launch.nonce).decode()
    return Command(
        name=found.name,
        argv=(interpreter, *arguments),
        env=clean_env(*process.pass_env, TIELINE_PLUGIN_ADDRESS=launch.address, TIELINE_PLUGIN_NONCE=nonce),
        cwd=found.folder,
        grace=GRACE_SECONDS,
        limits=Limits(data=limits.memory_bytes or MEMORY_BYTES, files=limits.open_files or OPEN_FILES),
        stdin_pipe=True,
    )
