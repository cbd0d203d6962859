"""The possible outcomes of a part.

A module of its own, so that line control loads nothing else of the decision rule.
"""

from __future__ import annotations

from enum import Enum


class Verdict(str, Enum):
    """What the line says about a part."""

    PASS = "PASS"
    REJECT = "REJECT"
    UNINSPECTED = "UNINSPECTED"


class Cause(str, Enum):
    """Why a part is UNINSPECTED. Their order is that of their codes on the PLC links, so add new ones at the end."""

    LATE = "late"  # no verdict by the deadline
    NO_FRAME = "no-frame"  # the camera delivered none; for example, a folder has no more images
    CAMERA = "camera"  # the camera failed
    IMAGE = "image"  # a frame that cannot be read or does not fit the model
    ENGINE = "engine"  # the inference failed
    LINK = "link"  # the PLC did not acknowledge the verdict in time
    UNMATCHED = "unmatched"  # it is not certain which frame belongs to the part
    STOPPED = "stopped"  # the line was stopped
    RESTART = "restart"  # a process of the line died and was restarted
    CHALLENGE = "challenge"  # a challenge part, known to be bad, was not rejected
    INCOMPLETE = "incomplete"  # data of the frame was lost on the way from the camera
