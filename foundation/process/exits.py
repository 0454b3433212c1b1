"""How a child ended, as `waitpid` says it, and for people."""

import signal
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Exit:
    """Exactly one of `code` and `signal` is set: death by signal is never mistaken for a code."""

    name: str
    code: int | None
    signal: signal.Signals | int | None

    @classmethod
    def of(cls, name: str, returncode: int) -> "Exit":
        """Read the convention of `subprocess`: a negative code is a signal."""
        if returncode >= 0:
            return cls(name, returncode, None)
        try:
            return cls(name, None, signal.Signals(-returncode))
        except ValueError:  # a real-time signal has no name
            return cls(name, None, -returncode)

    @property
    def clean(self) -> bool:
        return self.code == 0

    @property
    def sentence(self) -> str:
        if self.signal is None:
            return f"{self.name} exited with code {self.code}"
        label = self.signal.name if isinstance(self.signal, signal.Signals) else f"signal {self.signal}"
        return f"{self.name} was killed by {label}"
