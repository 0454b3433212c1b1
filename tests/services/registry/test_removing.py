"""What plugins leave in the folders that they may write to goes, and nothing else does."""

from __future__ import annotations

from pathlib import Path

from foundation.process.supervised import State
from foundation.process.testing import until
from services.registry.host.removing import remove
from tests.services.registry.plugins import CODE, hosting, make_plugin

DEEP = 1500
"""More than Python goes down by itself."""

DIGGING = """
import os
here = os.open({where}, os.O_RDONLY)
for _ in range({depth}):
    os.mkdir("d", dir_fd=here)
    below = os.open("d", os.O_RDONLY, dir_fd=here)
    os.close(here)
    here = below
os.close(here)
"""


def test_a_folder_goes_however_deep_it_is_and_what_it_links_to_stays(tmp_path: Path) -> None:
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    (stranger / "file").touch()
    folder = tmp_path / "folder"
    (folder / "a" / "a").mkdir(parents=True)
    (folder / "file").write_text("x")
    (folder / "a" / "b" / "c").mkdir(parents=True)
    (folder / "a" / "b" / "c" / "link").symlink_to(stranger)
    (folder / "link").symlink_to(stranger)
    exec(DIGGING.format(where=repr(str(folder)), depth=DEEP), {})  # noqa: S102 - as the plugin does it below
    remove(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["stranger"]
    assert (stranger / "file").exists()
    remove(folder)
    (tmp_path / "to it").symlink_to(stranger)
    remove(tmp_path / "to it")
    assert (stranger / "file").exists()


async def test_a_plugin_that_digs_is_started_again_and_leaves_no_hole(
    tmp_path: Path, short_dir: Path
) -> None:
    digging = DIGGING.format(where='os.environ["TIELINE_PLUGIN_SCRATCH"]', depth=DEEP)
    code = CODE.replace('if __name__ == "__main__":', f'if __name__ == "__main__":\n    exec({digging!r})')
    make_plugin(tmp_path, "digger", rest="[scratch]\nquota_bytes = 100000000", code=code)
    async with hosting(tmp_path, below=short_dir) as host:
        process = host.processes["digger"]
        await until(lambda: process.state is State.READY, 30)
        process.kill()
        await until(lambda: process.state is State.READY and process.starts > 1, 30)
        assert len(process.crashes) == 1
    assert not [*short_dir.iterdir()]
