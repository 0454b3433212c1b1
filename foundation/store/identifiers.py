"""Names inside statements that take no parameters: only plain ones, so that quoting is never a question."""

import re

_PLAIN = re.compile(r"[a-z][a-z0-9_]{0,62}")


def is_plain(name: str) -> bool:
    return _PLAIN.fullmatch(name) is not None


def plain(name: str) -> str:
    if not is_plain(name):
        raise ValueError(f"{name!r} is not a plain SQL name")
    return f'"{name}"'


def quoted(name: str) -> str:
    """A name that we did not choose, such as that of an external database."""
    return '"' + name.replace('"', '""') + '"'
