"""Memory that a camera's stream writes into, and that frames are views of: a frame is copied by nobody."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

UNKNOWN_ID = (1 << 64) - 1  # of a buffer that no frame's head came for
SPARE = 4  # buffers that stay with the stream; below that frames are copied
LEAST, MOST, MEMORY = 8, 32, 256 << 20  # buffers, and bytes of them all


class BufferPool:
    """The buffers of one Aravis stream."""

    def __init__(self, aravis: Any, stream: Any, payload: int) -> None:
        """payload: bytes of a buffer."""
        self._stream = stream
        self._arrays: dict[int, tuple[Any, NDArray[np.uint8]]] = {}  # by id of the buffer's object, which lives as long as this does
        for _ in range(max(LEAST, min(MOST, MEMORY // payload))):
            array = np.zeros(payload, np.uint8)
            buffer = aravis.Buffer.new(payload, array.ctypes.data)
            self._arrays[id(buffer)] = buffer, array
            self.give_back(buffer)

    def lend(self, buffer: Any) -> NDArray[np.uint8] | None:
        """A buffer's bytes as uint8 ``[payload]``: the stream gets the buffer back when the array and all views of it are gone.

        None where the stream has too few buffers left for that.
        """
        stream = self._stream
        if stream is None or stream.get_n_buffers()[0] < SPARE:
            return None
        lent = np.frombuffer(self.bytes_of(buffer).data, np.uint8)  # views of it keep it, not the array below
        weakref.finalize(lent, self.give_back, buffer).atexit = False
        return lent

    def bytes_of(self, buffer: Any) -> NDArray[np.uint8]:
        """A buffer's bytes, uint8 ``[payload]``, for as long as it is not given back."""
        return self._arrays[id(buffer)][1]

    def give_back(self, buffer: Any) -> None:
        """Let the stream write into a buffer again. Any thread; nothing happens when the stream is closed."""
        stream = self._stream  # a reference of its own, since the pool may be closed meanwhile
        if stream is not None:
            buffer.set_timestamp(0)  # Aravis leaves both as they were when the head of a frame is lost
            buffer.set_frame_id(UNKNOWN_ID)
            stream.push_buffer(buffer)

    def close(self) -> None:
        """Push no buffer any more. What was lent stays as it is. The pool has to outlive the stream, which writes into its memory."""
        self._stream = None
