"""The inputs (events) and outputs (actions) of line control's state machine.

Times are seconds of one monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge.part.verdict import Cause, Verdict


@dataclass(frozen=True)
class Trigger:
    """A part is before the camera, or was there ``age`` seconds ago."""

    part: int
    encoder: int | None = None
    age: float = 0.0


@dataclass(frozen=True)
class TriggerRefused:
    """A trigger came while the line did not accept parts. The PLC was told so."""

    part: int


@dataclass(frozen=True)
class PartVerdict:
    """The runtime's verdict. trigger: as in `Expose`; a part id may come again, a trigger's count does not."""

    part: int
    verdict: Verdict
    cause: Cause | None = None
    score: float | None = None
    trigger: int | None = None


@dataclass(frozen=True)
class VerdictDelivered:
    """The PLC acknowledged the verdict on a part."""

    part: int


@dataclass(frozen=True)
class OrderFailed:
    """The PLC refused the command to eject a part, or never acknowledged it."""

    part: int
    reason: str


@dataclass(frozen=True)
class Confirm:
    """The PLC's sensor saw a part leave at the ejector."""

    part: int


@dataclass(frozen=True)
class LinkLost:
    """The port or the PLC's heartbeat is gone."""

    reason: str


@dataclass(frozen=True)
class LinkBack:
    """The PLC's heartbeat is there (again)."""


@dataclass(frozen=True)
class Encoder:
    """The belt's encoder showed this count ``age`` seconds ago."""

    count: int
    age: float = 0.0


@dataclass(frozen=True)
class BeltStopped:
    """The belt has stopped."""


@dataclass(frozen=True)
class RuntimeReady:
    """The runtime is ready: triggers are accepted from now on."""


@dataclass(frozen=True)
class RuntimeLost:
    """The runtime is gone: no verdict will come for the parts on the belt."""


@dataclass(frozen=True)
class Clear:
    """A person has dealt with the faults that stopped the line."""


@dataclass(frozen=True)
class Challenge:
    """The next part is a challenge part, known to be bad: the line must reject it, eject it and see it leave."""


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True)
class Stop:
    """The line is stopped: all open parts end now."""


Event = (
    Trigger | TriggerRefused | PartVerdict | VerdictDelivered | OrderFailed | Confirm | LinkLost | LinkBack | Encoder
    | BeltStopped
    | RuntimeReady | RuntimeLost | Clear | Challenge | Tick | Stop
)


@dataclass(frozen=True)
class Expose:
    """Take a frame of this part, which was before the camera at ``at``. trigger: the line's own count, from 1."""

    part: int
    encoder: int | None
    trigger: int
    at: float


@dataclass(frozen=True)
class Report:
    """Send a verdict to the PLC. eject: whether an uninspected part is to be ejected."""

    part: int
    verdict: Verdict
    cause: Cause | None
    score: float | None
    eject: bool


@dataclass(frozen=True)
class Order:
    """Make the PLC eject a part at ``due``, or when the encoder shows ``count``, if that is given."""

    part: int
    due: float
    count: int | None = None


@dataclass(frozen=True)
class Ended:
    """The one outcome of a part. ``run_id`` and ``trigger`` together are unique."""

    part: int
    verdict: Verdict
    cause: Cause | None
    score: float | None
    encoder: int | None
    triggered: float
    ended: float
    trigger: int = 0
    run_id: str = ""


@dataclass(frozen=True)
class Alarm:
    """A message for the operator. code: a `FaultCode`, or 0 if it is not a fault."""

    code: int
    text: str


@dataclass(frozen=True)
class Challenged:
    """The result of a challenge."""

    part: int
    passed: bool
    text: str


@dataclass(frozen=True)
class FaultOver:
    """A fault is over."""

    code: int


Action = Expose | Report | Order | Ended | Alarm | FaultOver | Challenged
