"""One error for the whole suite: a code, its data, and one table that says what it means everywhere."""

from foundation.errors.catalogue import CATALOGUE, Code, Meaning
from foundation.errors.problem import Problem

__all__ = ["CATALOGUE", "Code", "Meaning", "Problem"]
