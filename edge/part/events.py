"""What line control takes in (events) and what it wants done (actions). Times are seconds of one monotonic clock."""

from __future__ import annotations

from dataclasses import dataclass

from edge.part.verdict import Cause, Verdict


@dataclass(frozen=True)
class Trigger:
    """The PLC says that a part stands in front of the camera, or stood there ``age`` seconds ago."""

    part: int
    encoder: int | None = None
    age: float = 0.0


@dataclass(frozen=True)
class TriggerRefused:
    """A trigger came while the line did not accept parts; the PLC was told so."""

    part: int


@dataclass(frozen=True)
class PartVerdict:
    """What the runtime found. ``trigger`` is the count that Expose gave: a part id may come again, a trigger's count does not."""

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
    """The PLC refused to eject a part, or never acknowledged the command."""

    part: int
    reason: str


@dataclass(frozen=True)
class Confirm:
    """The PLC saw a part leave at the ejector."""

    part: int


@dataclass(frozen=True)
class LinkLost:
    """The port is gone, or the PLC's heartbeat."""

    reason: str


@dataclass(frozen=True)
class LinkBack:
    """The PLC is heard (again)."""


@dataclass(frozen=True)
class Encoder:
    """The belt's encoder showed this count ``age`` seconds ago."""

    count: int
    age: float = 0.0


@dataclass(frozen=True)
class BeltStopped:
    """The PLC says that the belt stands."""


@dataclass(frozen=True)
class RuntimeReady:
    """What inspects is ready: triggers are taken from now on."""


@dataclass(frozen=True)
class RuntimeLost:
    """What inspects is gone: no verdict comes for the parts on the belt."""


@dataclass(frozen=True)
class Clear:
    """A person has seen to the faults that stopped the line."""


@dataclass(frozen=True)
class Challenge:
    """The next part is known to be bad: let the line prove that it is rejected, ejected, and seen to leave."""


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True)
class Stop:
    """The line is stopped: all open parts end now."""


Event = (
    Trigger | TriggerRefused | PartVerdict | VerdictDelivered | OrderFailed | Confirm | LinkLost | LinkBack | Encoder | BeltStopped
    | RuntimeReady | RuntimeLost | Clear | Challenge | Tick | Stop
)


@dataclass(frozen=True)
class Expose:
    """Take a frame of this part, which stood before the camera at ``at``. ``trigger`` counts the line's triggers from 1."""

    part: int
    encoder: int | None
    trigger: int
    at: float


@dataclass(frozen=True)
class Report:
    """Tell the PLC the verdict. ``eject``: whether an uninspected part is ejected."""

    part: int
    verdict: Verdict
    cause: Cause | None
    score: float | None
    eject: bool


@dataclass(frozen=True)
class Order:
    """Have a part ejected at ``due``, or where ``count`` is given when the encoder shows that."""

    part: int
    due: float
    count: int | None = None


@dataclass(frozen=True)
class Ended:
    """The one outcome of a part. ``session`` and ``trigger`` together are unique."""

    part: int
    verdict: Verdict
    cause: Cause | None
    score: float | None
    encoder: int | None
    triggered: float
    ended: float
    trigger: int = 0
    session: str = ""


@dataclass(frozen=True)
class Alarm:
    """Something a person has to look at. ``code`` is a fault code of the PLC link, 0 for none."""

    code: int
    text: str


@dataclass(frozen=True)
class Challenged:
    """What came of a challenge."""

    part: int
    passed: bool
    text: str


@dataclass(frozen=True)
class FaultOver:
    """A fault that an Alarm told has passed."""

    code: int


Action = Expose | Report | Order | Ended | Alarm | FaultOver | Challenged
