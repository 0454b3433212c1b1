"""One request on its way through a server: what every layer may know of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import grpc.aio
from google.protobuf.message import Message

from foundation.errors import Code, Problem
from foundation.identity import Method, Principal

ServicerContext = grpc.aio.ServicerContext[Any, Any]


class Unreadable:
    """Stands where a request was no message of its method; no layer behind `understood` meets it."""


@dataclass(slots=True)
class Call:
    method: Method
    request: Message
    context: ServicerContext
    principal: Principal | None = None
    """Whose right decides."""
    agent: Principal | None = None
    """The process that acts for the principal, where one does."""

    @property
    def author(self) -> str:
        """Who did it, for the record: both, where one acted for another."""
        who = self.principal.name if self.principal else "anybody"
        return f"{who} through {self.agent.name}" if self.agent else who

    def metadata(self, name: str) -> str | None:
        for key, value in self.context.invocation_metadata() or ():
            if key == name and isinstance(value, str):
                return value
        return None


ON_BEHALF_OF = "tieline-on-behalf-of"
"""Metadata in which a process hands on the token of the caller that it acts for."""

Layer = Callable[[Call], AbstractAsyncContextManager[None]]
"""Something that is true around every request. Layers are entered in order and left in reverse."""

_present: ContextVar[Call] = ContextVar("tieline_call")


def present_call() -> Call | None:
    """The request that this code runs for, if it runs for one."""
    return _present.get(None)


def enter_call(call: Call) -> None:
    _present.set(call)


def caller() -> Principal:
    """Who asks. Only for methods whose rule demands a token."""
    call = present_call()
    if call is None or call.principal is None:
        raise Problem(Code.TOKEN_MISSING, method=call.method.path if call else "this")
    return call.principal


def author() -> str:
    """Who asks, for the record."""
    caller()
    call = present_call()
    return call.author if call else ""


def on_behalf_of_caller() -> tuple[tuple[str, str], ...]:
    """Metadata for a call that is made with the right of whoever asked us, and with ours to act for them."""
    call = present_call()
    handed = call.metadata(ON_BEHALF_OF) or call.metadata("authorization") if call else None
    if not handed:
        raise Problem(Code.TOKEN_MISSING, method=call.method.path if call else "this")
    return ((ON_BEHALF_OF, handed),)
