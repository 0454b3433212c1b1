"""The verbs of `tieline`, each in a module of its own that is imported only when it is asked for.

A verb's module has a function of the verb's name, which takes the options and may be a coroutine, and where
it has arguments of its own a function `arguments` that adds them.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import inspect

VERBS = {
    "up": "run everything on this machine until Ctrl-C",
    "status": "what runs, and what each part is waiting for",
    "doctor": "what is wrong with this installation, and how to mend it",
    "provision": "make the keys and settings of a deployment, once",
    "tenant": "who there is",
    "token": "what people and scripts prove themselves with",
    "user": "the people who may sign on",
    "member": "who may do what in a tenant",
    "key": "what credentials are protected with, and changing it",
    "credential": "secrets go in, and never come out",
    "audit": "who did what, and whether that is what was written",
    "plugin": "which external services can be connected",
    "connection": "a tenant's use of a plugin",
    "app": "what is registered once at a provider and shared by many tenants",
    "schedule": "when what is polled, and reading the past",
    "action": "what can be done at a provider, and having it done",
    "operation": "what was to be done at providers, and what became of it",
    "flag": "features that are on for some",
    "event": "what happened, as everybody is told it",
    "demo": "a small story through the real path, to watch",
}


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    add = getattr(importlib.import_module(f"cli.{verb}"), "arguments", None)
    if add is not None:
        add(parser)


def call(options: argparse.Namespace) -> int:
    """Do what was asked; the exit code."""
    result = getattr(importlib.import_module(f"cli.{options.verb}"), options.verb)(options)
    if inspect.iscoroutine(result):
        result = asyncio.run(result)
    return result or 0
