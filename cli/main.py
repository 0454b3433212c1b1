"""The `tieline` command. Exit 0: done; 1: refused or failed; 2: wrong usage or an unusable installation."""

from __future__ import annotations

import os
import sys

from cli.options import parse
from cli.output import Harmless, harmless
from cli.verbs import call
from foundation.errors import Code, Problem


def run() -> None:
    options = parse()
    sys.stdout = Harmless(sys.stdout)
    try:
        code = call(options)
    except Problem as problem:
        told = _too_large(problem) or problem
        sys.stderr.write(harmless(f"tieline {options.verb}: {told.text}\n"))
        code = told.meaning.exit
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        # Whoever reads our output has read enough; what is left to print goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    raise SystemExit(code)


def _too_large(problem: Problem) -> Problem | None:
    """What our own library refuses to send, in words for whoever named the file."""
    if problem.code is not Code.REMOTE_UNKNOWN or "Sent message larger than max" not in str(
        problem.data["why"]
    ):
        return None
    from foundation.rpc.options import MESSAGE_LIMIT  # noqa: PLC0415  most commands start without it

    why = f"it is larger than the {MESSAGE_LIMIT >> 20} MiB that fit into one: give less, or in parts"
    return Problem(Code.INVALID_ARGUMENT, field="request", why=why)
