"""What to run, under which rules: everything a child gets, and nothing it gets by accident."""

import os
import pwd
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from foundation.process import launch

# What a program may know of its surroundings: where programs and certificates are, the time zone, the
# locale. Everything else (tokens, proxies, interpreter switches) is named by whoever builds the command.
HARMLESS = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR")

_OVERFLOW_UID = 65534


def clean_env(*also: str, **own: str) -> dict[str, str]:
    """The harmless part of our environment, what is asked for by name, and the child's own."""
    return {name: os.environ[name] for name in (*HARMLESS, *also) if name in os.environ} | own


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one child; None leaves ours in place. No core files: they would hold secrets."""

    data: int | None = None  # bytes of writable memory
    files: int | None = None
    core: int | None = 0
    processes: int | None = None  # threads count too; of the user, so only where that is one of its own
    nice: int = 0

    def arguments(self) -> list[str]:
        limits = (
            ("data", self.data),
            ("nofile", self.files),
            ("core", self.core),
            ("nproc", self.processes),
        )
        found = [
            part for name, bound in limits if bound is not None for part in ("--limit", f"{name}={bound}")
        ]
        return [*found, "--nice", str(self.nice)] if self.nice else found


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    """What keeps a child in; `confining.py` says how. Paths are absolute, and real: no links in them."""

    gate: int = 0  # the launcher's end of a socket pair: the listener of its proxy comes out of ours
    user: int = 0  # who it will be where we are root
    hide: tuple[Path, ...] = ()
    private: tuple[Path, ...] = ()
    keep: tuple[Path, ...] = ()
    write: tuple[Path, ...] = ()

    def arguments(self) -> list[str]:
        found = ["--gate", str(self.gate), "--user", str(self.user)]
        places = (("hide", self.hide), ("private", self.private), ("keep", self.keep), ("write", self.write))
        return found + [part for name, paths in places for path in paths for part in (f"--{name}", str(path))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One child to be. Secrets never stand in `argv`; `env` stays out of the representation."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=clean_env, repr=False)
    cwd: Path | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    grace: float = 10.0  # seconds between the stop signal and SIGKILL
    death_signal: signal.Signals = signal.SIGKILL  # what it gets when we die
    limits: Limits = Limits()
    ordinary_user: bool = False  # root, and a uid without a name, become somebody in a namespace
    pass_fds: tuple[int, ...] = ()
    confinement: Confinement | None = None
    cgroup: Path | None = None  # the control group that it and all it starts belong to
    stdin_pipe: bool = False  # a pipe we hold open; its end tells the child that we are gone

    def launcher(self, status_fd: int) -> list[str]:
        """The launcher's argv; the program's own follows the double dash."""
        options = ["--status-fd", str(status_fd), "--parent", str(os.getpid())]
        options += ["--death-signal", str(int(self.death_signal)), *self.limits.arguments()]
        if self.cgroup is not None:
            options += ["--cgroup", str(self.cgroup)]
        if self.ordinary_user and not _is_ordinary():
            options += ["--map-user", str(ordinary_uid())]
        if self.confinement is not None:
            options += self.confinement.arguments()
        return [sys.executable, "-I", "-S", str(launch.__file__), *options, "--", *self.argv]


def _is_ordinary() -> bool:
    try:
        return pwd.getpwuid(os.geteuid()).pw_uid != 0
    except KeyError:  # as containers are run that pick any number
        return False


def ordinary_uid() -> int:
    """A uid that has a name here, as programs that refuse root also refuse a nameless one.

    Not the overflow uid if it can be helped: in a namespace every stranger's file seems to belong to it.
    """
    uids = [entry.pw_uid for entry in pwd.getpwall() if entry.pw_uid != 0]
    return next((uid for uid in uids if uid != _OVERFLOW_UID), _OVERFLOW_UID)
