"""A loopback port that stays ours: before a child listens on it, while it does, and between its lives.

Linux lets a second socket bind an address when both ask for that (SO_REUSEADDR) and neither *listens* yet. So
we hold a bound socket that never listens: servers (Go's, uvicorn's, gRPC's all ask) listen beside it, nobody
is connected to it, and the kernel does not hand the number to a stranger who asks for "any port" or connects
from one. Not SO_REUSEPORT: with it, a stranger who listens with it already would go unnoticed.
"""

import errno
import socket
from types import TracebackType
from typing import Self

from foundation.process.errors import PortInUseError, ProcessError

LOOPBACK = "127.0.0.1"


class Port:
    """A reservation of one TCP port, until it is closed or its process ends, however that ends."""

    def __init__(self, host: str = LOOPBACK, number: int = 0) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((host, number))
        except OSError as error:
            self._socket.close()
            if error.errno == errno.EADDRINUSE:
                raise PortInUseError(f"the address {host}:{number} is in use by another process") from None
            raise ProcessError(f"cannot use the address {host}:{number}: {error.strerror}") from None
        self.host = host
        self.number: int = self._socket.getsockname()[1]

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.number}" if ":" in self.host else f"{self.host}:{self.number}"

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
