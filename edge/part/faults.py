"""The fault codes that the line sends to the PLC, the same on every kind of link. docs/plc-frames.md lists them."""

from __future__ import annotations

from enum import IntEnum


class FaultCode(IntEnum):
    """Why the line is degraded or stopped. 0 on the wire means that no fault is active."""

    CAMERA = 1  # the camera failed, or delivered no frame
    ENGINE = 2  # an inference failed
    LATE = 3  # too many verdicts in a row came after their deadline
    JOURNAL = 4  # the journal cannot be written
    REJECTS = 5  # too many parts in a row were ejected
    UNCONFIRMED = 6  # a part was ordered to be ejected and was not seen to leave
    CHALLENGE = 7  # a challenge failed
