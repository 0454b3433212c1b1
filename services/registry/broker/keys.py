"""Idempotency keys that were seen, so that one key never stands for two different actions.

What a key stands for is remembered while there is room; the store of operations is what remembers it for good.
"""

from __future__ import annotations

from collections import OrderedDict

CONNECTIONS = 2000
OF_ONE = 1000


class Keys:
    def __init__(self, connections: int = CONNECTIONS, of_one: int = OF_ONE) -> None:
        self._connections, self._of_one = connections, of_one
        self._seen: OrderedDict[str, OrderedDict[str, bytes]] = OrderedDict()

    def claim(self, connection: str, key: str, meaning: bytes) -> bool:
        """False if the key stands for something else."""
        own = self._seen.setdefault(connection, OrderedDict())
        self._seen.move_to_end(connection)
        if len(self._seen) > self._connections:
            self._seen.popitem(last=False)
        known = own.setdefault(key, meaning)
        own.move_to_end(key)
        if len(own) > self._of_one:
            own.popitem(last=False)
        return known == meaning
