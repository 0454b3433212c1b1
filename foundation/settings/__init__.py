"""Typed, frozen settings, complete and valid before anything starts."""

from foundation.settings.command import run
from foundation.settings.common import ServiceSettings
from foundation.settings.loading import Loaded, load
from foundation.settings.types import Address, NatsUrl, PostgresUrl, Secret, Settings

__all__ = [
    "Address",
    "Loaded",
    "NatsUrl",
    "PostgresUrl",
    "Secret",
    "ServiceSettings",
    "Settings",
    "load",
    "run",
]
