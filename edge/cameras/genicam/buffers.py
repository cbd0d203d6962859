"""The memory that a camera's stream writes into. Frames are views of it, so that no frame is copied."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

UNKNOWN_ID = (1 << 64) - 1  # frame id of a buffer whose leader packet was lost
SPARE = 4  # buffers that the stream always keeps; with fewer, frames are copied
LEAST, MOST, MEMORY = 8, 32, 256 << 20  # number of buffers, and bytes of all together


class BufferPool:
    """The buffers of one Aravis stream."""

    def __init__(self, aravis: Any, stream: Any, payload: int) -> None:
        """payload: bytes per buffer."""
        self._stream = stream
        # By the id() of the buffer, which this dictionary keeps alive.
        self._arrays: dict[int, tuple[Any, NDArray[np.uint8]]] = {}
        for _ in range(max(LEAST, min(MOST, MEMORY // payload))):
            array = np.zeros(payload, np.uint8)
            buffer = aravis.Buffer.new(payload, array.ctypes.data)
            self._arrays[id(buffer)] = buffer, array
            self.give_back(buffer)

    def lend(self, buffer: Any) -> NDArray[np.uint8] | None:
        """A buffer's bytes as uint8 ``[payload]``. The stream gets it back once the array and its views are freed.

        None if the stream has too few buffers left.
        """
        stream = self._stream
        if stream is None or stream.get_n_buffers()[0] < SPARE:
            return None
        lent = np.frombuffer(self.bytes_of(buffer).data, np.uint8)  # its views keep this array alive, not the one below
        weakref.finalize(lent, self.give_back, buffer).atexit = False
        return lent

    def bytes_of(self, buffer: Any) -> NDArray[np.uint8]:
        """A buffer's bytes, uint8 ``[payload]``, valid until the buffer is given back."""
        return self._arrays[id(buffer)][1]

    def give_back(self, buffer: Any) -> None:
        """Let the stream write into a buffer again. Any thread; does nothing once the pool is closed."""
        stream = self._stream  # a local reference, because another thread may close the pool now
        if stream is not None:
            buffer.set_timestamp(0)  # Aravis does not reset these two if a frame's leader packet is lost
            buffer.set_frame_id(UNKNOWN_ID)
            stream.push_buffer(buffer)

    def close(self) -> None:
        """Give no more buffers to the stream. Lent arrays stay valid.

        The pool must outlive the stream, which writes into the pool's memory.
        """
        self._stream = None
