"""Settings from TOML files and the environment: defaults, then each file in turn, then the environment.

A file has one section per process (`[mapper]`), so that one file can configure a whole installation. The
environment spells a setting `TIELINE_MAPPER_LOG_LEVEL`. Nothing unknown is ignored, in neither place: a
misspelt setting that silently keeps its default is how installations go wrong.

Except what Kubernetes puts into every container by itself: for a Service called `tieline-mapper` the variables
`TIELINE_MAPPER_SERVICE_HOST`, `TIELINE_MAPPER_PORT=tcp://…` and their like. Nobody wrote those.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from foundation.errors import Code, Problem
from foundation.settings.types import Settings, decode

T = TypeVar("T", bound=Settings)
_SERVICE_LINK = re.compile(
    r"""(?x) \w+_SERVICE_HOST = [0-9a-fA-F.:]+
    | \w+_SERVICE_PORT(_\w+)? = \d+
    | \w+_PORT = (tcp|udp|sctp)://\S+
    | \w+_PORT_\d+_(TCP|UDP|SCTP) = (tcp|udp|sctp)://\S+
    | \w+_PORT_\d+_(TCP|UDP|SCTP)_(PROTO = (tcp|udp|sctp) | PORT = \d+ | ADDR = [0-9a-fA-F.:]+)"""
)
SECTIONS = ("up", "gateway", "credentials", "registry", "mapper")


@dataclass(frozen=True, slots=True)
class Loaded(Generic[T]):
    settings: T
    origins: Mapping[str, str]
    """Where each setting that is not a default came from."""


def load(kind: type[T], section: str, files: Sequence[Path], environment: Mapping[str, str]) -> Loaded[T]:
    names = [field.name for field in msgspec.structs.fields(kind)]
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for file in files:
        for name, value in _from_file(section, file, names).items():
            values[name], origins[name] = value, f"{file} [{section}]"
    for name, (variable, text) in _from_environment(section, environment, names).items():
        values[name], origins[name] = text, variable
    return Loaded(_convert(kind, section, values, origins), origins)


def _from_file(section: str, file: Path, names: Sequence[str]) -> dict[str, Any]:
    try:
        document = tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise _invalid(str(file), f"it cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise _invalid(str(file), "it is not UTF-8 text") from error
    except tomllib.TOMLDecodeError as error:
        raise _invalid(str(file), f"it is not TOML ({error})") from error
    for unknown in document.keys() - set(SECTIONS):
        raise _invalid(str(file), f"there is no section [{unknown}]{_suggest(unknown, SECTIONS)}")
    values = document.get(section, {})
    if not isinstance(values, dict):
        raise _invalid(str(file), f"[{section}] must be a section")
    for unknown in values.keys() - set(names):
        raise _invalid(f"{file} [{section}]", f"there is no setting `{unknown}`{_suggest(unknown, names)}")
    return values


def _from_environment(
    section: str, environment: Mapping[str, str], names: Sequence[str]
) -> dict[str, tuple[str, str]]:
    prefix = f"TIELINE_{section.upper()}_"
    found: dict[str, tuple[str, str]] = {}
    for variable, text in environment.items():
        if not variable.startswith(prefix):
            continue
        name = variable.removeprefix(prefix).lower()
        if name not in names:
            if is_service_link(variable, text):
                continue
            raise _invalid(variable, f"there is no setting `{name}`{_suggest(name, names)}")
        found[name] = (variable, text)
    return found


def is_service_link(variable: str, text: str) -> bool:
    """Both the name and what it holds have the form that Kubernetes gives them."""
    return _SERVICE_LINK.fullmatch(f"{variable}={text}") is not None


def _convert(kind: type[T], section: str, values: Mapping[str, Any], origins: Mapping[str, str]) -> T:
    """Convert field by field, so that the first complaint names its setting and where that came from."""
    converted: dict[str, Any] = {}
    for field in msgspec.structs.fields(kind):
        if field.name in values:
            origin = origins[field.name]
            # What comes from the environment is text, so numbers may be spelt out there.
            strict = not origin.startswith("TIELINE_")
            try:
                converted[field.name] = msgspec.convert(
                    values[field.name], field.type, strict=strict, dec_hook=decode
                )
            except msgspec.ValidationError as error:
                raise _invalid(origin, f"`{field.name}`: {_lower(str(error))}") from error
        elif field.required:
            variable = f"TIELINE_{section.upper()}_{field.name.upper()}"
            raise _invalid(f"[{section}]", f"`{field.name}` is missing (in the environment: {variable})")
    return kind(**converted)


def _invalid(where: str, why: str) -> Problem:
    return Problem(Code.SETTINGS_INVALID, where=where, why=why)


def _suggest(unknown: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(unknown, known, n=1)
    return f" (did you mean `{near[0]}`?)" if near else ""


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
