"""What one process may reach: the hosts of its manifest, templates filled from the settings that it holds."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any
from urllib.parse import urlsplit

from tieline.plugin.v1.manifest_pb2 import Egress

HTTPS = 443
_TEMPLATE = re.compile(r"\$\{settings:(/[^}]*|)\}")
_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_][a-z0-9_-]{0,62})*")
_PORTS = {"http": 80, "https": HTTPS}


@dataclass(frozen=True, slots=True)
class Rule:
    """One host that may be reached, and how."""

    host: str
    """A name, an address, or a name with `*.` for one level before it."""
    ports: frozenset[int]
    tunnel: bool = False
    """Bytes that are not TLS may go through."""
    plain: bool = False
    """Plain HTTP may be spoken."""
    chosen: bool = False
    """Somebody's settings name it, not the manifest. Only such a one may be on this very machine."""

    def fits(self, host: str, port: int) -> bool:
        if port not in self.ports:
            return False
        if self.host.startswith("*."):
            label, _, rest = host.partition(".")
            return bool(label) and rest == self.host[2:]
        return host == self.host


class AllowList:
    """Empty of settings at first; who initialises an instance says so here, before the plugin hears of it."""

    def __init__(self, egress: Sequence[Egress]) -> None:
        self._templates = [entry for entry in egress if _TEMPLATE.search(entry.host)]
        self._fixed = [_rule(entry, entry.host) for entry in egress if entry not in self._templates]
        self._chosen: dict[str, list[Rule]] = {}

    def allow(self, instance: str, settings: bytes) -> None:
        """What the settings of this instance name may be reached, in place of what they named before."""
        if self._templates:
            document = _document(settings)
            self._chosen[instance] = [rule for entry in self._templates for rule in _filled(entry, document)]

    def forget(self, instance: str) -> None:
        self._chosen.pop(instance, None)

    def find(self, host: str, port: int) -> Rule | None:
        """The most lenient rule that fits: one that tunnels, or speaks plainly, before one that does not."""
        wanted = normal(host)
        rules = (*self._fixed, *(rule for rules in self._chosen.values() for rule in rules))
        fitting = [rule for rule in rules if rule.fits(wanted, port)]
        return max(fitting, key=lambda rule: (rule.tunnel, rule.plain, rule.chosen), default=None)


def normal(host: str) -> str:
    return host.lower().removesuffix(".")


def is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _rule(entry: Egress, host: str) -> Rule:
    ports = frozenset(entry.ports) or frozenset({HTTPS})
    return Rule(normal(host), ports, entry.tunnel, plain=entry.tunnel or bool(set(entry.ports) - {HTTPS}))


def _filled(entry: Egress, document: Any) -> Iterator[Rule]:
    parts = _TEMPLATE.split(entry.host)  # text, pointer, text, pointer, ..., text
    if len(parts) == 3 and not parts[0] and not parts[2]:
        for value in _texts(_at(document, parts[1])):
            yield from _of_value(entry, value)
        return
    choices = [[part] if index % 2 == 0 else _texts(_at(document, part)) for index, part in enumerate(parts)]
    for chosen in product(*choices):
        host = normal("".join(chosen))
        if _NAME.fullmatch(host):
            rule = _rule(entry, host)
            yield Rule(rule.host, rule.ports, rule.tunnel, rule.plain, chosen=True)


def _of_value(entry: Egress, value: str) -> Iterator[Rule]:
    """A whole value: a host, or a URL, which counts as its host and port."""
    rule = _rule(entry, "")
    if "://" not in value:
        host = normal(value)
        if _NAME.fullmatch(host) or is_address(host):
            yield Rule(host, rule.ports, rule.tunnel, rule.plain, chosen=True)
        return
    try:
        url = urlsplit(value)
        host, port = normal(url.hostname or ""), url.port or _PORTS.get(url.scheme, 0)
    except ValueError:
        return
    ports = frozenset({port}) if port else rule.ports
    if _NAME.fullmatch(host) or is_address(host):
        yield Rule(host, ports, rule.tunnel, plain=rule.plain or url.scheme == "http", chosen=True)


def _document(settings: bytes) -> Any:
    try:
        return json.loads(settings or b"{}")
    except ValueError:
        return {}


def _at(document: Any, pointer: str) -> Any:
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(document, dict):
            document = document.get(key)
        elif isinstance(document, list) and key.isdecimal() and int(key) < len(document):
            document = document[int(key)]
        else:
            return None
    return document


def _texts(value: Any) -> list[str]:
    found = value if isinstance(value, list) else [value]
    return [text for text in found if isinstance(text, str)]
