"""What can go wrong between us and a child, each told in one sentence."""


class ProcessError(Exception):
    """The base of this package's errors; `sentence` is fit for a person's eyes."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.sentence = sentence


class LaunchError(ProcessError):
    """The program was never executed."""


class HopelessError(ProcessError):
    """Something is wrong that another start will not mend."""


class NotReadyError(ProcessError):
    """A child died, or its time ran out, before it was ready for the first time."""


class PortInUseError(ProcessError):
    """Somebody else listens on the address that was asked for."""


class LockHeldError(ProcessError):
    """Another living process holds the lock; `pid` is it, where known."""

    def __init__(self, sentence: str, pid: int | None = None) -> None:
        super().__init__(sentence)
        self.pid = pid
