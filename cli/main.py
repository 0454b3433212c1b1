"""The `tieline` command. Exit 0: done; 1: refused or failed; 2: wrong usage or an unusable installation."""

from __future__ import annotations

import os
import sys

from cli.options import parse
from cli.verbs import call
from foundation.errors import Problem


def run() -> None:
    options = parse()
    try:
        code = call(options)
    except Problem as problem:
        sys.stderr.write(f"tieline {options.verb}: {problem.text}\n")
        code = problem.meaning.exit
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        # Whoever reads our output has read enough; what is left to print goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    raise SystemExit(code)
