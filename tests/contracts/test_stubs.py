"""Stubs follow the protos exactly, and a distribution built from its own source archive works elsewhere."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GENERATED = shutil.ignore_patterns("v1", ".stubs*", "__pycache__")
ONE = 'syntax = "proto3";\npackage tieline.extra.v1;\nmessage One { string name = 1; }\n'


class Tree:
    """The folders of the repository that the Python distribution is built from, and nothing generated."""

    def __init__(self, root: Path) -> None:
        self.sdk = root / "sdk" / "python"
        self.protos = root / "protos" / "tieline"
        shutil.copytree(ROOT / "sdk" / "python", self.sdk, ignore=GENERATED)
        shutil.copytree(ROOT / "protos" / "tieline", self.protos)
        self.package = self.sdk / "src" / "tieline"

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            (sys.executable, self.sdk / "hatch_build.py"),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def generate(self) -> int:
        process = self.start()
        process.communicate(timeout=60)
        return process.returncode

    def stubs(self) -> set[str]:
        return {str(path.relative_to(self.package)) for path in self.package.glob("*/v1/*_pb2*")}

    def add(self, text: str, name: str = "one") -> Path:
        folder = self.protos / "extra" / "v1"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.proto").write_text(text)
        return folder / f"{name}.proto"


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "tree")


def test_every_proto_has_its_stubs_and_nothing_else_does(tree: Tree) -> None:
    assert tree.generate() == 0
    endings = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")
    protos = [path.relative_to(tree.protos).with_suffix("") for path in tree.protos.rglob("*.proto")]
    assert tree.stubs() == {f"{proto}{ending}" for proto in protos for ending in endings}


def test_a_proto_that_comes_moves_and_goes_leaves_nothing_stale(tree: Tree) -> None:
    assert tree.generate() == 0
    before = tree.stubs()
    proto = tree.add(ONE)
    assert tree.generate() == 0
    assert "extra/v1/one_pb2.pyi" in tree.stubs()
    proto.rename(proto.with_name("two.proto"))
    assert tree.generate() == 0
    assert {name for name in tree.stubs() if "extra" in name} == {
        f"extra/v1/two_pb2{ending}" for ending in (".py", ".pyi", "_grpc.py", "_grpc.pyi")
    }
    shutil.rmtree(tree.protos / "extra")
    assert tree.generate() == 0
    assert tree.stubs() == before
    assert not (tree.package / "extra").exists()


def test_nothing_is_done_when_nothing_changed_and_all_when_stubs_are_gone(tree: Tree) -> None:
    assert tree.generate() == 0
    stub = tree.package / "plugin" / "v1" / "plugin_pb2.pyi"
    made = stub.stat().st_mtime_ns
    assert tree.generate() == 0
    assert stub.stat().st_mtime_ns == made
    stub.unlink()
    assert tree.generate() == 0
    assert stub.exists()


def test_a_faulty_proto_keeps_the_last_good_stubs(tree: Tree) -> None:
    assert tree.generate() == 0
    before = tree.stubs()
    proto = tree.add("this is no proto")
    assert tree.generate() != 0
    assert tree.stubs() == before
    proto.write_text(ONE)
    assert tree.generate() == 0
    assert "extra/v1/one_pb2.py" in tree.stubs()


def test_two_who_ask_at_once_do_not_disturb_each_other(tree: Tree) -> None:
    asking = [tree.start() for _ in range(2)]
    for process in asking:
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 0, said
    assert "plugin/v1/plugin_pb2.py" in tree.stubs()
    assert [path.name for path in tree.package.parent.iterdir()] == ["tieline"]


def build(target: str, source: Path, out: Path) -> Path:
    """With the tools that are here: no isolation, no network."""
    command = (sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(out))
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (made,) = out.iterdir()
    return made


USE = """
import sys
sys.path.insert(0, sys.argv[1])
from tieline.plugin.v1 import plugin_pb2, plugin_pb2_grpc
from tieline.common.v1 import options_pb2
assert plugin_pb2.__file__.startswith(sys.argv[1]), plugin_pb2.__file__
assert options_pb2.__file__.startswith(sys.argv[1]), options_pb2.__file__
service = plugin_pb2.DESCRIPTOR.services_by_name["PluginService"]
assert all(method.GetOptions().HasExtension(options_pb2.rule) for method in service.methods)
print(len(service.methods), plugin_pb2_grpc.PluginServiceServicer.__name__)
"""


def test_a_wheel_from_the_source_archive_works_elsewhere(tree: Tree, tmp_path: Path) -> None:
    archive = build("sdist", tree.sdk, tmp_path / "sdist")
    with tarfile.open(archive) as tar:
        names = [name.partition("/")[2] for name in tar.getnames()]
        tar.extractall(tmp_path / "unpacked", filter="data")
    assert {name for name in names if name.startswith("protos/")} == {
        f"protos/tieline/{path.relative_to(tree.protos)}" for path in tree.protos.rglob("*.proto")
    }
    assert not [name for name in names if "_pb2" in name]
    (source,) = (tmp_path / "unpacked").iterdir()
    shutil.rmtree(tree.sdk.parent.parent)

    wheel = build("wheel", source, tmp_path / "wheel")
    site = tmp_path / "site"
    shutil.unpack_archive(wheel, site, format="zip")
    assert (site / "tieline" / "py.typed").exists()
    done = subprocess.run(
        (sys.executable, "-I", "-c", USE, str(site)),
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.stdout.split() == ["13", "PluginServiceServicer"], done.stderr
