"""Checks a simulation part by part: what the part was, what the line said, what the PLC did, and the cause of each
difference.

Pure: it takes the journal's rows, the PLC's log, the ledgers and the faults, and returns what does not agree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

SETTLE = 3.0  # s after a fault during which it may still have effects
ALONE = {"frame-dropped", "frame-late", "frame-truncated", "engine-error", "frame-duplicated", "frames-swapped",
         "frame-shifted"}  # kinds that hit single parts
EXPLAINS = {  # kind of fault: the causes of UNINSPECTED that it explains
    "frame-dropped": {"late"}, "frame-duplicated": set(), "frame-late": {"late"}, "frames-swapped": {"late"},
    "frame-truncated": {"camera"}, "frame-shifted": {"unmatched", "late"},
    "camera-stall": {"late"}, "camera-error": {"late"}, "engine-error": {"engine"},
    "engine-lost": {"engine", "restart"}, "slow-inference": {"late"}, "kill": {"restart", "stopped"},
    "freeze": {"late", "restart", "link"}, "restart": {"stopped", "restart"}, "unplug": {"link"}, "deaf-plc": {"link"},
    "mute-plc": {"link"}, "garbage": {"link"}, "half-frames": {"link"}, "lost-acks": {"link"}, "encoder-glitch": set(),
    "confirm-missing": set(), "clock-step": set(), "disk-full": set(), "cpu-hogs": {"late"},
}
NOT_TAKEN = {"engine-lost", "kill", "freeze", "restart", "unplug", "deaf-plc", "mute-plc", "garbage", "half-frames",
             "lost-acks"}


@dataclass(frozen=True)
class Occurrence:
    """A fault that happened. Times in s since the PLC's start. parts: those that it hit, where it hits single parts."""

    number: int
    kind: str
    begins: float
    ends: float
    parts: tuple[int, ...] = ()


@dataclass
class Evidence:
    """What a simulation left behind. ``truth``, ``images`` and ``inspected`` (verdict, score) are by part id."""

    log: list[dict[str, Any]]
    summary: dict[str, Any]
    rows: list[dict[str, Any]]
    ledgers: list[dict[str, Any] | None]  # one for each start of the line; None where it was killed
    truth: dict[int, str]
    images: dict[int, str]
    inspected: dict[int, tuple[str, float]]
    occurrences: list[Occurrence]
    faults: list[str]  # the kinds of the scenario's faults
    exit_codes: list[int] = field(default_factory=list)
    restarts: int = 0  # by the supervisor


@dataclass
class PartRecord:
    """One part. Times in s since the PLC's start."""

    part: int
    truth: str
    triggered: float
    taken: bool | None = None  # None: the PLC got no answer to its trigger
    verdict: str | None = None
    cause: str | None = None
    score: float | None = None
    image: str | None = None
    reject_commanded: bool = False
    ejected_by: str | None = None  # reject or failsafe
    confirmed: bool = False
    passed: bool = False
    left: float | None = None
    difference: str | None = None
    why: str | None = None


@dataclass(frozen=True)
class Failure:
    """A rule that is broken."""

    rule: str
    text: str
    part: int | None = None


@dataclass
class Reconciliation:
    """All parts, and what does not agree."""

    parts: list[PartRecord]
    failures: list[Failure]
    counts: dict[str, int]
    causes: dict[str, int]

    @property
    def differences(self) -> list[PartRecord]:
        """The parts whose way differs from their truth."""
        return [part for part in self.parts if part.difference is not None]

    def as_json(self) -> dict[str, Any]:
        """The counts, the failures, and the parts that differ."""
        return {"reconciled": not self.failures, **self.counts, "causes": self.causes,
                "failures": [asdict(f) for f in self.failures],
                "differences": [asdict(part) for part in self.differences]}


def reconcile(evidence: Evidence, *, allowed: frozenset[str] = frozenset(), seen: Mapping[str, int] | None = None,
              restarts: int = 0, may_pass: bool = False) -> Reconciliation:
    """Check every part and the whole.

    allowed: causes that need no fault. seen: the least number of parts of each cause. restarts: the least number of
    restarts. may_pass: whether parts without a PASS may pass the ejector.
    """
    failures: list[Failure] = []
    parts = _parts(evidence)
    rows: dict[int, list[dict[str, Any]]] = {}
    for row in evidence.rows:
        rows.setdefault(row["part"], []).append(row)
    for id in rows.keys() - parts.keys():
        failures.append(Failure("one-row", "the journal has a part that the PLC never triggered", id))
    for part in parts.values():
        _judge_rows(part, rows.get(part.part, []), evidence, failures)
        _judge_exit(part, may_pass, failures)
        _explain(part, evidence, allowed, failures)
    _judge_whole(evidence, failures, restarts)
    causes = Counter(part.cause for part in parts.values() if part.cause is not None)
    for cause, least in (seen or {}).items():
        if causes[cause] < least:
            failures.append(Failure("expect",
                                    f"{causes[cause]} parts are UNINSPECTED({cause}), expected at least {least}"))
    verdicts = Counter(row["verdict"] for row in evidence.rows)
    counts = {
        "fed": len(parts), "triggers": len(evidence.rows), "passed": verdicts["PASS"], "rejected": verdicts["REJECT"],
        "uninspected": verdicts["UNINSPECTED"], "not_taken": sum(not rows.get(id) for id in parts),
        "ejected": sum(part.ejected_by is not None for part in parts.values()),
        "ejected_by_failsafe": sum(part.ejected_by == "failsafe" for part in parts.values()),
        "passed_ejector": sum(part.passed for part in parts.values()), "restarts": evidence.restarts,
    }
    return Reconciliation(list(parts.values()), failures, counts, dict(causes))


def _parts(evidence: Evidence) -> dict[int, PartRecord]:
    parts: dict[int, PartRecord] = {}
    for entry in evidence.log:
        event, id = entry["event"], entry.get("part", 0)
        if event == "trigger":
            parts[id] = PartRecord(id, evidence.truth.get(id, "unknown"), entry["t"])
        part = parts.get(id)
        if part is None:
            continue
        if event == "taken":
            part.taken = True
        elif event == "refused" and entry["type"] == "TRIGGER":
            part.taken = False
        elif event == "reject" and entry["ack"] == 0:
            part.reject_commanded = True
        elif event == "ejected":
            part.ejected_by, part.left = entry["by"], entry["t"]
        elif event == "passed":
            part.passed, part.left = True, entry["t"]
        elif event == "confirm":
            part.confirmed = True
    return parts


def _judge_rows(part: PartRecord, rows: list[dict[str, Any]], evidence: Evidence, failures: list[Failure]) -> None:
    """Each acknowledged trigger must have one row, for this part, with the verdict that inspecting its image gives."""
    def fail(rule: str, text: str) -> None:
        failures.append(Failure(rule, text, part.part))

    if len(rows) > 1 or (part.taken and not rows):
        fail("one-row", f"{len(rows)} rows in the journal for a trigger that the line acknowledged")
    if part.taken is False and rows:
        fail("one-row", "a row in the journal for a trigger that the line refused")
    if not rows:
        return
    row = rows[0]
    part.verdict, part.cause, part.score, part.image = row["verdict"], row["cause"], row["score"], row["image"]
    encoder = next(entry["encoder"] for entry in evidence.log if entry["event"] == "trigger"
                   and entry["part"] == part.part)
    if row["encoder"] != encoder:
        fail("identity", f"the journal has encoder count {row['encoder']}, the trigger had {encoder}")
    if part.image is not None and part.image != evidence.images[part.part]:
        fail("identity", f"it was judged by {part.image}, but the camera saw {evidence.images[part.part]}")
    if part.verdict != "UNINSPECTED":
        verdict, score = evidence.inspected[part.part]
        if part.verdict != verdict or part.score is None or abs(part.score - score) > 1e-6:
            fail("identity", f"the journal says {part.verdict} ({part.score}), inspecting its image gives {verdict} "
                             f"({score})")
        if part.cause is not None:
            fail("one-row", f"a {part.verdict} with cause {part.cause}")


def _judge_exit(part: PartRecord, may_pass: bool, failures: list[Failure]) -> None:
    """A part without a PASS must be ejected, and one with a PASS must not."""
    let_pass = may_pass and part.verdict == "UNINSPECTED"
    if part.passed and part.verdict != "PASS" and not let_pass:
        failures.append(Failure("escape", f"it passed the ejector with {part.verdict or 'no verdict'}", part.part))
    if part.passed and part.reject_commanded:
        failures.append(Failure("escape", "it passed the ejector though a reject was commanded", part.part))
    if part.ejected_by is not None and part.verdict == "PASS":
        failures.append(Failure("bookkeeping", f"it was ejected ({part.ejected_by}) with a PASS", part.part))
    if part.verdict == "REJECT" and part.truth == "good" and part.score is None:
        failures.append(Failure("bookkeeping", "a good part was rejected without a score", part.part))


def _explain(part: PartRecord, evidence: Evidence, allowed: frozenset[str], failures: list[Failure]) -> None:
    """Note how a part differs from its truth, and why."""
    good = part.truth == "good"
    if part.left is None:
        part.difference = "neither ejected nor passed"
    elif part.passed and part.truth not in ("good", "unknown"):
        part.difference = "defective and passed"
    elif part.ejected_by is not None and good:
        part.difference = "good and ejected"
    elif part.verdict in (None, "UNINSPECTED"):
        part.difference = "not inspected"
    if part.difference is None or part.left is None:
        if part.difference:
            failures.append(Failure("cause", part.difference, part.part))
        return
    if part.verdict in ("PASS", "REJECT"):
        if part.passed or part.verdict == "REJECT":
            part.why = "the detector judged it so"
        return
    if part.verdict == "UNINSPECTED":
        fault = _fault(part, evidence.occurrences, lambda kind: part.cause in EXPLAINS[kind])
        part.why = f"{part.cause}: {fault}" if fault else f"{part.cause}: allowed" if part.cause in allowed else None
    else:
        fault = _fault(part, evidence.occurrences, lambda kind: kind in NOT_TAKEN)
        answer = "refused" if part.taken is False else "not answered"
        part.why = f"trigger {answer}: {fault}" if fault else None
    if part.why is None:
        failures.append(Failure("cause",
                                f"{part.difference}, {part.cause or 'trigger not taken'}, and no fault explains it",
                                part.part))


def _fault(part: PartRecord, occurrences: list[Occurrence], fits: Any) -> str | None:
    for occurrence in occurrences:
        if not fits(occurrence.kind):
            continue
        alone = occurrence.kind in ALONE
        beside = {"frames-swapped": {part.part - 1},
                  "frame-shifted": {part.part - 1, part.part + 1}}.get(occurrence.kind, set())
        if (part.part in occurrence.parts or beside & set(occurrence.parts)) if alone else (
                occurrence.begins <= (part.left or part.triggered) and part.triggered <= occurrence.ends + SETTLE):
            return f"fault {occurrence.number + 1} ({occurrence.kind})"
    return None


def _judge_ledgers(evidence: Evidence, failures: list[Failure]) -> None:
    """Each ledger must add up, and all together must have the counts of the journal."""
    for number, ledger in enumerate(evidence.ledgers, 1):
        if ledger is None:
            continue
        triggers, passed, rejected, uninspected = (ledger[name]
                                                   for name in ("triggers", "passed", "rejected", "uninspected"))
        if triggers != passed + rejected + uninspected:
            failures.append(Failure("ledger",
                                    f"run {number}: {triggers} triggers, {passed} passed + {rejected} rejected + "
                                    f"{uninspected} uninspected"))
        if sum(ledger["causes"].values()) != uninspected:
            failures.append(Failure("ledger", f"run {number}: causes {ledger['causes']} of {uninspected} uninspected"))
    if evidence.ledgers and None not in evidence.ledgers:
        for name, verdict in (("passed", "PASS"), ("rejected", "REJECT"), ("uninspected", "UNINSPECTED")):
            counted = sum(ledger[name] for ledger in evidence.ledgers if ledger is not None)
            rows = sum(row["verdict"] == verdict for row in evidence.rows)
            if counted != rows:
                failures.append(Failure("ledger", f"the ledgers say {counted} {name}, the journal has {rows} rows"))


def _judge_whole(evidence: Evidence, failures: list[Failure], restarts: int) -> None:
    """The ledgers must add up, the ejector must take only what was meant, and each fault must happen."""
    _judge_ledgers(evidence, failures)
    for name in ("wrong_part", "missed"):
        if evidence.summary[name]:
            failures.append(Failure("ejector", f"{evidence.summary[name]} firings {name.replace('_', ' ')}"))
    if evidence.summary["escaped_ids"]:
        failures.append(Failure("escape",
                                f"the PLC let {evidence.summary['escaped_ids']} pass without a verdict that allows it"))
    if evidence.summary["ended"] != "parts":
        failures.append(Failure("end", f"the belt ended with: {evidence.summary['ended']}"))
    if bad := [code for code in evidence.exit_codes if code not in (0, -9)]:
        failures.append(Failure("end", f"the line ended with exit code {bad[0]}"))
    if evidence.restarts < restarts:
        failures.append(Failure("expect",
                                f"{evidence.restarts} restarts by the supervisor, expected at least {restarts}"))
    came = {occurrence.number for occurrence in evidence.occurrences}
    for number, kind in enumerate(evidence.faults):
        if number not in came:
            failures.append(Failure("fault", f"fault {number + 1} ({kind}) never happened"))
