"""The one exception that business code raises and every border understands."""

from __future__ import annotations

from foundation.errors.catalogue import CATALOGUE, Code, Meaning


class Problem(Exception):  # noqa: N818 - a problem need not be an error of ours
    """Something that a caller, a person or an operator has to be told.

    The data given must be exactly what the catalogue's sentence asks for, so a wrong raise fails in its
    own test instead of showing half a sentence to somebody.
    """

    def __init__(self, code: Code, /, **data: object) -> None:
        meaning = CATALOGUE[code]
        if data.keys() != meaning.fields:
            raise TypeError(f"{code.name} carries {sorted(meaning.fields)}, not {sorted(data)}")
        self.code = code
        self.data = {name: str(value) for name, value in data.items()}
        super().__init__(self.text)

    @property
    def meaning(self) -> Meaning:
        return CATALOGUE[self.code]

    @property
    def sentence(self) -> str:
        return self.meaning.sentence.format_map(self.data)

    @property
    def remedy(self) -> str:
        return self.meaning.remedy.format_map(self.data)

    @property
    def text(self) -> str:
        """What is wrong and what to do next: fit for anybody to read."""
        return f"{self.sentence} {self.remedy}".rstrip()
