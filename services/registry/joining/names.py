"""What a certificate calls its holder. Names are checked, addresses never: a process may listen anywhere."""

from __future__ import annotations

import re
import secrets

DOMAIN = "tieline.internal"
REGISTRY = f"registry.{DOMAIN}"
"""Every replica: who may call plugins, and whom plugins announce themselves to."""

_PROCESS = re.compile(rf"([0-9a-f]{{16}})\.([a-z][a-z0-9-]{{1,62}})\.plugins\.{re.escape(DOMAIN)}")


def new_process(plugin: str) -> str:
    return f"plugins/{plugin}/processes/{secrets.token_hex(8)}"


def certificate_name(process: str) -> str:
    """`plugins/github/processes/1f…` as a name that TLS knows how to check."""
    _, plugin, _, id_ = process.split("/")
    return f"{id_}.{plugin}.plugins.{DOMAIN}"


def process_of(certificate_name: str) -> str | None:
    found = _PROCESS.fullmatch(certificate_name)
    return f"plugins/{found[2]}/processes/{found[1]}" if found else None
