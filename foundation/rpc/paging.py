"""Pages of a list: how many, and from where, in tokens that only we need to understand."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import TypeVar

from foundation.errors import Code, Problem

T = TypeVar("T")
DEFAULT, LIMIT = 50, 1000


def page_size(asked: int) -> int:
    if asked < 0:
        raise Problem(Code.INVALID_ARGUMENT, field="page_size", why="it is negative")
    return min(asked or DEFAULT, LIMIT)


def after(page_token: str) -> str:
    """The last key of the page before; empty for the first page."""
    try:
        key = base64.b64decode(page_token.encode(), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeError, ValueError):
        key = "\0"
    if "\0" in key:  # no key holds one, and no database takes it
        raise Problem(Code.INVALID_ARGUMENT, field="page_token", why="it is not one that a page gave")
    return key


def cut(rows: Sequence[T], size: int, key: Callable[[T], str]) -> tuple[Sequence[T], str]:
    """A page of `size`, and the token of the next one; ask the store for one row more than that."""
    if len(rows) <= size:
        return rows, ""
    page = rows[:size]
    return page, token(key(page[-1]))


def token(last: str) -> str:
    """Leads to what comes after that key."""
    return base64.urlsafe_b64encode(last.encode()).decode()
