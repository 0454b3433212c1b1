"""Generate the contract's stubs from `protos/`: the build hook, and a command for `make` and the tests.

The protos lie two folders up in the repository and beside this file in an sdist. Output is complete and
exact: what is there before is removed, so a renamed proto leaves nothing behind.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
import tempfile
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).resolve().parent
PACKAGE = HERE / "src" / "tieline"
STAMP = PACKAGE / ".stubs"


def protos_root() -> Path:
    for candidate in (HERE / "protos", HERE.parent.parent / "protos"):
        if (candidate / "tieline").is_dir():
            return candidate
    raise FileNotFoundError(f"no protos/ beside {HERE} or at the top of the repository")


def fingerprint(root: Path, protos: list[Path]) -> str:
    """What the stubs depend on: every proto's path and text, and the generators' versions."""
    digest = hashlib.sha256(f"{version('grpcio-tools')} {version('mypy-protobuf')}".encode())
    for proto in protos:
        digest.update(f"\0{proto.relative_to(root)}\0".encode() + proto.read_bytes())
    return digest.hexdigest()


def generate() -> bool:
    """Bring the stubs in step with the protos; answer whether anything had to be done."""
    root = protos_root()
    protos = sorted(root.rglob("*.proto"))
    wanted = fingerprint(root, protos)
    with _alone():
        if _in_step(wanted, [PACKAGE.parent / proto.relative_to(root) for proto in protos]):
            return False
        with tempfile.TemporaryDirectory(prefix=".stubs-", dir=PACKAGE.parent) as scratch:
            _run_protoc(root, protos, Path(scratch))
            _replace(Path(scratch) / "tieline")
        STAMP.write_text(wanted)
    return True


@contextmanager
def _alone() -> Iterator[None]:
    """Several test workers may ask at once; one of them generates, the others find it done."""
    folder = os.open(PACKAGE, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _in_step(wanted: str, places: list[Path]) -> bool:
    same = STAMP.exists() and STAMP.read_text() == wanted
    return same and all(place.with_name(f"{place.stem}_pb2.pyi").exists() for place in places)


def _run_protoc(root: Path, protos: list[Path], target: Path) -> None:
    # Heavy, and only needed when something changed.
    from grpc_tools import protoc  # noqa: PLC0415

    plugins = Path(sys.executable).parent
    arguments = [
        "protoc",
        f"-I{root}",
        f"-I{Path(protoc.__file__).parent / '_proto'}",
        f"--python_out={target}",
        f"--grpc_python_out={target}",
        f"--plugin=protoc-gen-mypy={plugins / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={plugins / 'protoc-gen-mypy_grpc'}",
        f"--mypy_out=quiet:{target}",
        f"--mypy_grpc_out=quiet:{target}",
        *(str(proto.relative_to(root)) for proto in protos),
    ]
    if status := protoc.main(arguments):
        raise RuntimeError(f"protoc refused the protos (exit {status}); its words are above")


def _replace(made: Path) -> None:
    """Only after protoc was content: a faulty proto leaves the stubs of the last good one."""
    STAMP.unlink(missing_ok=True)
    for old in PACKAGE.glob("*/v1"):
        shutil.rmtree(old)
    for new in made.glob("*/v1"):
        (new / "__init__.py").touch()
        domain = PACKAGE / new.parent.name
        domain.mkdir(exist_ok=True)
        new.rename(domain / "v1")
    for domain in PACKAGE.iterdir():
        if domain.is_dir() and not any(child for child in domain.iterdir() if child.name != "__pycache__"):
            shutil.rmtree(domain)


class StubsBuildHook(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        if self.target_name == "wheel":
            generate()


if __name__ == "__main__":
    generate()
