"""What verbs print for people."""

from __future__ import annotations

import io

from cli.output import Harmless, one_line


def test_nothing_that_a_terminal_obeys_is_printed() -> None:
    out = io.StringIO()
    print("red \x1b[31m title\r\n\ttab ü ☃ \x9b2J", file=Harmless(out))
    assert out.getvalue() == "red \\x1b[31m title\\x0d\n\ttab ü ☃ \\x9b2J\n"


def test_a_line_of_a_list_is_one() -> None:
    assert one_line("two\nlines\u2028or three") == "two lines or three"
