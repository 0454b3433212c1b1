"""What `tieline up` itself can be told: its command line, `[up]` in the settings file, two addresses."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from foundation.errors import Code, Problem
from foundation.settings import Address, NatsUrl, PostgresUrl, Secret, Settings, load
from foundation.settings.loading import SECTIONS, is_service_link

T = TypeVar("T", bound=Secret)

_PUBLIC_URL = re.compile(r"https?://[^/?#\s@]+")
_VARIABLES = frozenset(
    {
        "TIELINE_DATABASE_URL",
        "TIELINE_NATS_URL",
        "TIELINE_ENDPOINTS",
        "TIELINE_TOKEN",
        "TIELINE_DATABASE_ADMIN_URL",
        "TIELINE_DATABASE_ADMIN_URL_FILE",
        "TIELINE_DATABASE_PASSWORDS_FILE",
    }
)
"""Those of the environment that are no section's."""


class UpSettings(Settings, frozen=True, kw_only=True):
    http: Annotated[Address, Meta(description="Where the gateway listens.")] = Address("127.0.0.1", 8080)
    public_url: Annotated[
        str | None,
        Meta(
            description="Where providers and browsers reach the gateway, if that is behind a proxy:"
            " `https://tieline.example`.",
        ),
    ] = None
    plugins: Annotated[
        tuple[str, ...], Meta(description="Directories in which the registry looks for plugins.")
    ] = ()
    database_url: Annotated[
        PostgresUrl | None,
        Meta(
            description="An external PostgreSQL (≥ 15) instead of the embedded one; also TIELINE_DATABASE_URL."
        ),
    ] = None
    database_role_prefix: Annotated[
        str,
        Meta(
            pattern="^[a-z][a-z0-9_]{0,39}$",
            description="What the names of this installation's database roles begin with: "
            "roles belong to a whole PostgreSQL cluster, so a second installation there needs another.",
        ),
    ] = "tieline"
    nats_url: Annotated[
        NatsUrl | None,
        Meta(
            description="An external NATS with JetStream instead of the embedded one; also TIELINE_NATS_URL."
        ),
    ] = None


def up_settings(options: argparse.Namespace, default_file: Path) -> tuple[UpSettings, list[Path]]:
    """The settings of this run, and the user's settings files for the services to read as well."""
    if options.config is not None:
        files = [options.config.absolute()]
    else:
        files = [default_file] if default_file.exists() else []
    _refuse_unknown(os.environ)
    settings = load(UpSettings, "up", files, os.environ).settings
    given = {
        "http": options.http,
        "plugins": tuple(str(path) for path in options.plugins) if options.plugins else None,
        "database_url": _url("TIELINE_DATABASE_URL", PostgresUrl),
        "nats_url": _url("TIELINE_NATS_URL", NatsUrl),
    }
    settings = msgspec.structs.replace(settings, **{key: value for key, value in given.items() if value})
    if settings.public_url and not _PUBLIC_URL.fullmatch(settings.public_url):
        why = "it is not like https://tieline.example"
        raise Problem(Code.SETTINGS_INVALID, where="public_url", why=why)
    for directory in settings.plugins:
        if not Path(directory).is_dir():
            raise Problem(Code.SETTINGS_INVALID, where="plugins", why=f"{directory} is not a directory")
    return settings, files


def _refuse_unknown(variables: Mapping[str, str]) -> None:
    """A misspelt section would be nobody's; a misspelt engine would start one of ours beside the real one."""
    for variable, text in variables.items():
        if not variable.startswith("TIELINE_") or variable in _VARIABLES or is_service_link(variable, text):
            continue
        section = variable.removeprefix("TIELINE_").partition("_")[0].lower()
        if section not in SECTIONS:
            raise Problem(Code.SETTINGS_INVALID, where=variable, why="nothing of Tieline reads it")


def _url(variable: str, kind: type[T]) -> T | None:
    text = os.environ.get(variable)
    try:
        return kind.parse(text) if text else None
    except ValueError as error:
        raise Problem(Code.SETTINGS_INVALID, where=variable, why=str(error)) from None
