"""A plugin's own dependencies in its own environment, as its manifest says: once for each lock file.

An environment is made beside the others, marked when it is whole, and never changed afterwards. What of the
platform a Python plugin needs (the SDK and what that stands on) is linked in behind its own dependencies, so
that a plugin which locks the SDK itself gets the one that it locked.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

from foundation.process.child import Child
from foundation.process.command import Command, clean_env
from services.registry.catalogue.folder import digest
from services.registry.catalogue.manifests import Found

INSTALL_SECONDS = 600.0
SDK = ("tieline", "grpc", "grpc_health", "google", "typing_extensions")
_WHOLE = ".installed"
_SETTINGS = ("PIP_", "UV_", "NPM_CONFIG_", "npm_config_")
"""Where an operator has said from where packages come."""


class InstallError(Exception):
    """Why there is no environment, in a sentence."""


@dataclass(frozen=True, slots=True)
class Environment:
    """What a plugin is started with."""

    folder: Path
    """Where it is started: its own folder, or a copy of it."""
    python: str = sys.executable
    libraries: tuple[Path, ...] = ()
    """Folders of other plugins that it imports from."""

    def program(self, name: str) -> str:
        return self.python if name == "python" else name


class Installer:
    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def install(self, found: Found) -> Environment:
        process = found.manifest.runtime.process
        match process.install.WhichOneof("source"):
            case "requirements":
                return await self._python(found, found.folder / process.install.requirements)
            case "npm":
                return await self._node(found, found.folder / process.install.npm)
            case _:
                return Environment(found.folder)

    async def _python(self, found: Found, lock: Path) -> Environment:
        where = self._place(found, lock, sys.version)
        python = where / "bin" / "python"
        with self._alone(where):
            if not (where / _WHOLE).exists():
                await self._make_python(found, lock, where)
                (where / _WHOLE).touch()
        return Environment(found.folder, python=str(python))

    async def _make_python(self, found: Found, lock: Path, where: Path) -> None:
        uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
        python = str(where / "bin" / "python")
        if uv:
            await _run(found, (uv, "venv", "-q", "--python", sys.executable, str(where)))
            install = (uv, "pip", "install", "-q", "--python", python)
        else:
            await _run(found, (sys.executable, "-m", "venv", str(where)))
            install = (python, "-m", "pip", "install", "-q", "--disable-pip-version-check")
        await _run(found, (*install, "--require-hashes", "-r", str(lock)))
        _link_sdk(where)

    async def _node(self, found: Found, folder: Path) -> Environment:
        npm = shutil.which("npm")
        if npm is None:
            raise InstallError(f"{found.name} needs npm, which is not on the PATH")
        where = self._place(found, folder / "package-lock.json", "")
        tree = where / "tree"
        with self._alone(where):
            if not (where / _WHOLE).exists():
                ignored = shutil.ignore_patterns("node_modules", ".git", "__pycache__")
                await asyncio.to_thread(shutil.copytree, found.folder, tree, ignore=ignored)
                clean = (npm, "ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund")
                await _run(found, clean, tree / folder.relative_to(found.folder))
                (where / _WHOLE).touch()
        return Environment(tree)

    def _place(self, found: Found, lock: Path, also: str) -> Path:
        """Another lock file, or another interpreter, is another environment."""
        try:
            content = lock.read_bytes()
        except OSError as error:
            raise InstallError(f"{lock} cannot be read ({error.strerror})") from error
        if lock.name == "package-lock.json":  # a copy of the folder is part of it
            content += digest(found.folder)
        mark = hashlib.sha256(content + also.encode()).hexdigest()[:16]
        try:
            directory = self._directory.expanduser()
        except RuntimeError:  # containers are run by users whom nobody knows
            raise InstallError("there is no home to keep it in: name a directory in `environments`") from None
        return directory / f"{found.name}-{found.manifest.version}-{mark}"

    @contextmanager
    def _alone(self, where: Path) -> Iterator[None]:
        """Several hosts may share a directory; what one left half done is begun anew."""
        where.parent.mkdir(parents=True, exist_ok=True)
        with where.with_name(f".{where.name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InstallError("another host is installing it") from None
            if not (where / _WHOLE).exists():
                shutil.rmtree(where, ignore_errors=True)
            yield


async def _run(found: Found, argv: Sequence[str], cwd: Path | None = None) -> None:
    asked = [name for name in os.environ if name.startswith(_SETTINGS)]
    environment = clean_env("HOME", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", *asked)
    command = Command(
        name=f"{Path(argv[0]).name} for {found.name}",
        argv=tuple(argv),
        env=environment,
        cwd=cwd or found.folder,
    )
    child = await Child.spawn(command)
    try:
        async with asyncio.timeout(INSTALL_SECONDS):
            exit_ = await child.wait()
    except TimeoutError:
        raise InstallError(f"{command.name} took longer than {INSTALL_SECONDS:g} s") from None
    finally:
        await child.stop(0)
    if not exit_.clean:
        raise InstallError(f"{exit_.sentence}: {_said(child.tail)}")


def _said(tail: str) -> str:
    """What a person can use of it: the end, without passwords of an index."""
    lines = [line.strip() for line in tail.splitlines() if line.strip()]
    return re.sub(r"//[^/\s@]+@", "//…@", " ".join(lines[-8:]))[-600:] or "it did not say why"


def _link_sdk(where: Path) -> None:
    site = next((where / "lib").glob("python*/site-packages"))
    sdk = where / "sdk"
    sdk.mkdir()
    for name in SDK:
        spec = importlib.util.find_spec(name)
        if spec is None:
            continue
        places = list(spec.submodule_search_locations or ())
        source = Path(places[0]) if places else Path(str(spec.origin))
        (sdk / source.name).symlink_to(source)
    # The SDK says its version, which stands beside it.
    beside = Path(str(distribution("tieline").locate_file("")))
    for source in beside.glob("tieline-*.dist-info"):
        (sdk / source.name).symlink_to(source)
    (site / "zz-platform-sdk.pth").write_text(f"{sdk}\n")
