"""An asyncio event loop whose clock and file events go through a `Tape`."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Mapping
from typing import Any

from edge.plc.tape import Tape

Events = list[tuple[selectors.SelectorKey, int]]


class TapedSelector(selectors.BaseSelector):
    """Returns the ready files as the tape has them. On the tape a file is the number of its registration."""

    def __init__(self, tape: Tape) -> None:
        self._tape = tape
        self._inner: selectors.DefaultSelector | None = selectors.DefaultSelector() if tape.live else None
        self._keys: dict[int, selectors.SelectorKey] = {}
        self._numbers: dict[int, int] = {}  # of descriptors
        self._count = 0

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """See `selectors.BaseSelector`."""
        descriptor = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        if self._inner is not None:
            self._inner.register(fileobj, events, data)
        self._count += 1
        self._numbers[descriptor] = self._count
        self._keys[descriptor] = selectors.SelectorKey(fileobj, descriptor, events, data)
        return self._keys[descriptor]

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """See `selectors.BaseSelector`."""
        descriptor = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        if self._inner is not None:
            self._inner.unregister(fileobj)
        del self._numbers[descriptor]
        return self._keys.pop(descriptor)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """See `selectors.BaseSelector`."""
        descriptor = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        if self._inner is not None:
            self._inner.modify(fileobj, events, data)
        self._keys[descriptor] = selectors.SelectorKey(fileobj, descriptor, events, data)
        return self._keys[descriptor]

    def select(self, timeout: float | None = None) -> Events:
        """See `selectors.BaseSelector`."""
        return self._tape.take("ready", lambda: self._select(timeout), self._encode, self._decode)

    def _select(self, timeout: float | None) -> Events:
        assert self._inner is not None
        return [(self._keys[key.fd], mask) for key, mask in self._inner.select(timeout)]

    def _encode(self, events: Events) -> list[list[int]]:
        return [[self._numbers[key.fd], mask] for key, mask in events]

    def _decode(self, data: list[list[int]]) -> Events:
        keys = {number: self._keys[descriptor] for descriptor, number in self._numbers.items()}
        return [(keys[number], mask) for number, mask in data]

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        """See `selectors.BaseSelector`."""
        return self._keys

    def close(self) -> None:
        """See `selectors.BaseSelector`."""
        if self._inner is not None:
            self._inner.close()


class TapedLoop(asyncio.SelectorEventLoop):
    """An event loop that repeats itself in a replay: its clock and its selector go through the tape."""

    def __init__(self, tape: Tape) -> None:
        self._tape = tape
        super().__init__(TapedSelector(tape))

    def time(self) -> float:
        """The tape's clock, s."""
        return self._tape.now()
