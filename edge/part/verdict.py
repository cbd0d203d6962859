"""What can become of a part. By itself, since line control needs no more of the rule, and no package for it."""

from __future__ import annotations

from enum import Enum


class Verdict(str, Enum):
    """What the line says about a part."""

    PASS = "PASS"
    REJECT = "REJECT"
    UNINSPECTED = "UNINSPECTED"


class Cause(str, Enum):
    """Why a part is UNINSPECTED. Their order is that of their codes on the PLC links: new ones go last."""

    LATE = "late"  # no verdict by the deadline
    NO_FRAME = "no-frame"  # the camera delivered none, as from a folder that ran dry
    CAMERA = "camera"  # the camera failed
    IMAGE = "image"  # a frame that cannot be read or does not fit the model
    ENGINE = "engine"  # the inference failed
    LINK = "link"  # the verdict could not be told to the PLC in time
    UNMATCHED = "unmatched"  # not certain which frame belongs to the part
    STOPPED = "stopped"  # the line was stopped
    RESTART = "restart"  # a process of the line died, and was started again
    CHALLENGE = "challenge"  # a part known to be bad, which the line was to prove itself on, was not rejected
    INCOMPLETE = "incomplete"  # parts of the frame, or all of it, were lost on the way from the camera
