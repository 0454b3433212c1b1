"""One life of a plugin's process: how it is started, and what its client knows of it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio

from foundation.process.cgroups import Group
from foundation.process.command import Command, Limits, clean_env
from foundation.process.supervised import Report
from services.registry.catalogue.catalogue import Published
from services.registry.host.prepared import Prepared
from services.registry.host.sandbox import Enclosure
from services.registry.host.secrets import Secrets
from tieline.plugin.v1 import plugin_pb2_grpc

MEMORY_BYTES = 256 * 1024 * 1024
OPEN_FILES = 1024
NICE = 5
"""Plugins come after the platform where the machine is short of time."""
GRACE_SECONDS = 4.0
"""From SIGTERM to SIGKILL: less than our own parent allows us."""


@dataclass(slots=True)
class Launch:
    """What it holds ready is forgotten with it."""

    socket: Path
    nonce: bytes
    channel: grpc.aio.Channel
    stub: plugin_pb2_grpc.PluginServiceAsyncStub
    enclosure: Enclosure = field(default_factory=Enclosure)
    prepared: dict[str, Prepared] = field(default_factory=dict)
    """What it holds, by instance."""
    secrets: Secrets = field(default_factory=Secrets, repr=False)
    """Values that it was given: they are covered in whatever it says."""
    memory: Group | None = None
    """What bounds its memory, and its children's, where the kernel does."""
    crash: Report | None = None
    """How this life ended, once it has."""

    def __post_init__(self) -> None:
        self.secrets.update([_in_text(self.nonce)], self.enclosure.secrets)

    @property
    def address(self) -> str:
        return f"unix://{self.socket}"

    def proves(self, proof: bytes) -> bool:
        """Whether whoever answers is the process that was started."""
        return hmac.compare_digest(hmac.digest(self.nonce, self.address.encode(), hashlib.sha256), proof)


def memory_limit(published: Published) -> int:
    return published.manifest.limits.memory_bytes or MEMORY_BYTES


def command_for(published: Published, launch: Launch, scratch: Path | None) -> Command:
    process, limits, environment = (
        published.manifest.runtime.process,
        published.manifest.limits,
        published.environment,
    )
    if environment is None:
        raise ValueError(f"{published.name} is not installed")
    program, *arguments = process.command
    own = {
        "TIELINE_PLUGIN_ADDRESS": launch.address,
        "TIELINE_PLUGIN_NONCE": _in_text(launch.nonce).decode(),
    }
    if scratch is not None:
        own["TIELINE_PLUGIN_SCRATCH"] = str(scratch)
    if environment.libraries:
        own["PYTHONPATH"] = own["NODE_PATH"] = os.pathsep.join(map(str, environment.libraries))
    return Command(
        name=published.name,
        argv=(environment.program(program), *arguments),
        env=clean_env(*process.pass_env, **own),
        cwd=environment.folder,
        grace=GRACE_SECONDS,
        limits=Limits(
            data=memory_limit(published) if launch.memory is None else None,
            files=limits.open_files or OPEN_FILES,
            nice=NICE,
        ),
        cgroup=None if launch.memory is None else launch.memory.path,
        stdin_pipe=True,
    )


def _in_text(nonce: bytes) -> bytes:
    return base64.urlsafe_b64encode(nonce)
