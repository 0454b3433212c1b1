"""A flag, and whom it is on for: pure, and the same on every replica and after every restart."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from foundation.errors import Code, Problem
from foundation.identity.names import parse, tenant_of
from tieline.registry.v1.flags_pb2 import Flag as Message

MOST_RULES = 100
DESCRIPTION = 1024


@dataclass(frozen=True, slots=True)
class Flag:
    id: str
    content: Message
    """Description and rules, and nothing else."""
    version: int = 1
    removed: bool = False
    author: str = ""

    @property
    def name(self) -> str:
        return f"flags/{self.id}"

    @property
    def etag(self) -> str:
        return str(self.version)

    def is_on(self, plugin: str, connection: str) -> bool:
        """The first rule that fits decides; none: off."""
        if self.removed:
            return False
        for rule in self.content.rules:
            if _fits(rule, plugin, connection):
                return share(self.id, connection) < rule.percentage
        return False


def share(flag: str, connection: str) -> int:
    """From 0 to 99: of a percentage, those below it are on. More of them with every percent, and none the less."""
    digest = hashlib.sha256(f"{flag}\n{connection}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % 100


def _fits(rule: Message.Rule, plugin: str, connection: str) -> bool:
    return (
        rule.tenant in ("", f"tenants/{tenant_of(connection)}")
        and rule.plugin in ("", f"plugins/{plugin}")
        and rule.connection in ("", connection)
    )


def content(given: Message) -> Message:
    """What a caller may write; the problem that names what cannot be."""
    if len(given.description) > DESCRIPTION:
        raise _bad("flag.description", f"it is longer than {DESCRIPTION} characters")
    if len(given.rules) > MOST_RULES:
        raise _bad("flag.rules", f"there are more than {MOST_RULES}")
    for index, rule in enumerate(given.rules):
        _check(rule, f"flag.rules[{index}]")
    return Message(description=given.description, rules=given.rules)


def _check(rule: Message.Rule, where: str) -> None:
    if not 0 <= rule.percentage <= 100:
        raise _bad(f"{where}.percentage", "it is not from 0 to 100")
    patterns: Sequence[tuple[str, str, str]] = (
        ("tenant", "tenants/*", rule.tenant),
        ("plugin", "plugins/*", rule.plugin),
        ("connection", "tenants/*/connections/*", rule.connection),
    )
    for field, pattern, value in patterns:
        if value:
            parse(pattern, value, f"{where}.{field}")
    if rule.tenant and rule.connection and tenant_of(rule.connection) != tenant_of(rule.tenant):
        raise _bad(f"{where}.connection", "it belongs to another tenant than the rule's")


def _bad(field: str, why: str) -> Problem:
    return Problem(Code.INVALID_ARGUMENT, field=field, why=why)
