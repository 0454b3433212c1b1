"""What can be wrong with an engine, each told in one sentence that says what to do where we know it."""


class EngineError(Exception):
    """The base of this package's errors; `sentence` is fit for a person's eyes and holds no secret."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.sentence = sentence


class BinariesMissingError(EngineError):
    """The wheels with the engines are not installed."""


class DirectoryError(EngineError):
    """The data directory cannot be made, read or written."""


class DiskFullError(EngineError):
    """No space is left where the engine keeps its data."""


class ForeignDataError(EngineError):
    """The data belongs to another major version."""


class DataInUseError(EngineError):
    """Processes of an earlier start still use the data and would not leave."""


class SocketPathError(EngineError):
    """No directory is short enough for a unix socket."""


class StartError(EngineError):
    """The engine did not come up; the sentence ends with its own last words."""


class UnreachableError(EngineError):
    """An external engine does not answer, or not to us."""
