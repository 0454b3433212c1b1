"""A PostgreSQL cluster on disk: made once and whole, of our version, configured by us at each start."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from foundation.engines.binaries import POSTGRES_MAJOR, postgres_binaries
from foundation.engines.errors import EngineError, ForeignDataError, StartError
from foundation.engines.files import no_space, private_directory, telling
from foundation.process.child import Child
from foundation.process.command import Command, clean_env
from foundation.process.errors import ProcessError
from foundation.process.private import sync_directory

NO_SETTINGS: Mapping[str, str] = MappingProxyType({})

_STATUS = 7  # the line of postmaster.pid, counted from 0

# What differs from PostgreSQL's defaults, and why.
SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        "listen_addresses": "",  # the socket is the only way in
        "unix_socket_permissions": "0700",
        "max_connections": "100",
        "shared_buffers": "128MB",
        # Checkpoints forced by a small WAL push the slowest hundredth of commits to 100 ms.
        "max_wal_size": "4GB",
        "checkpoint_timeout": "15min",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "log_line_prefix": "%q%u@%d ",  # time and pid are the log's that carries these lines
        "log_checkpoints": "off",
        # Statements and their parameters hold what tenants sent: they never reach a log.
        "log_min_error_statement": "panic",
        "log_parameter_max_length_on_error": "0",
        "log_statement": "none",
        "log_error_verbosity": "terse",  # details of an error quote rows
    }
)


async def create(data: Path, superuser: str, password_file: Path) -> None:
    """Run initdb beside `data` and rename the result: a kill in the middle leaves no half cluster."""
    new = data.with_name(f"{data.name}.new")
    with telling(data.parent):
        shutil.rmtree(new, ignore_errors=True)
    private_directory(new)
    command = Command(
        name="initdb",
        argv=(
            str(postgres_binaries() / "initdb"), "-D", str(new), "-U", superuser,
            "--pwfile", str(password_file), "--auth", "scram-sha-256", "--encoding", "UTF8",
            # C.UTF-8 of its own: sorts by code point on every machine, and this build has no ICU.
            "--locale", "C", "--locale-provider", "builtin", "--builtin-locale", "C.UTF-8",
            "--no-instructions",
        ),
        env=clean_env(LC_ALL="C"),
        ordinary_user=True,
    )  # fmt: skip
    try:
        await _run(command, data)
        with telling(data):
            new.rename(data)
            sync_directory(data.parent)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


async def _run(command: Command, data: Path) -> None:
    try:
        child = await Child.spawn(command)
    except ProcessError as error:
        raise StartError(error.sentence) from error
    try:
        end = await child.wait()
    finally:
        child.kill()  # cancelled: initdb must not go on writing into what we remove
    if not end.clean:
        raise _failure(end.sentence, child.tail, data)


def _failure(sentence: str, tail: str, data: Path) -> EngineError:
    if "No space left on device" in tail:
        return no_space(data.parent)
    reasons = [line for line in tail.splitlines() if "error:" in line or "FATAL:" in line]
    return StartError(f"cannot make a PostgreSQL cluster in {data}: {(reasons or [sentence])[0]}")


def check_version(data: Path) -> None:
    with telling(data):
        version = (data / "PG_VERSION").read_text(encoding="ascii").strip()
    if version != str(POSTGRES_MAJOR):
        raise ForeignDataError(
            f"{data} was made by PostgreSQL {version}, this is PostgreSQL {POSTGRES_MAJOR}: "
            "dump it with the old version and restore it here, or set it aside"
        )


def says_ready(data: Path) -> bool:
    """What the server writes into the eighth line of its pid file, which `pg_ctl` waits for too."""
    try:
        lines = (data / "postmaster.pid").read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return False
    return len(lines) > _STATUS and lines[_STATUS].strip() == "ready"


def configuration(data: Path, socket_directory: Path, settings: Mapping[str, str]) -> str:
    """All of postgresql.conf; what an operator puts into `local.conf` beside it wins."""
    lines = ["# Written at each start. Your own settings belong into local.conf, beside this file."]
    merged = {**SETTINGS, "unix_socket_directories": str(socket_directory), **settings}
    lines += [f"{name} = {_quoted(value)}" for name, value in merged.items()]
    if (data / "local.conf").exists():
        lines.append("include = 'local.conf'")
    return "\n".join([*lines, ""])


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "''")
    return f"'{escaped}'"
