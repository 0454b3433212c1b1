"""A data directory: what lies where, and who may enter it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cli.keys import Keys
from foundation.process.private import write_private


class Installation:
    """Everything of one `tieline up` lies below one directory that nobody else may enter."""

    def __init__(self, data: Path) -> None:
        self.data = data.absolute()
        self.keys = Keys(self.data / "keys")
        self.run = self.data / "run"
        self.logs = self.data / "logs"
        self.endpoints = self.run / "endpoints.json"
        self.processes = self.run / "processes.json"
        self.settings = self.data / "settings.toml"

    def prepare(self) -> None:
        for directory in (self.data, self.run, self.logs):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.keys.prepare()

    def forget_addresses(self) -> None:
        """What a run said about its addresses is no longer true."""
        for stale in (self.endpoints, self.processes):
            stale.unlink(missing_ok=True)

    def publish(self, path: Path, document: Mapping[str, Any]) -> None:
        write_private(path, json.dumps(document, indent=1) + "\n")
