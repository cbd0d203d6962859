"""The PLC's program and its machine: conveyor, camera position, ejector, and checks on what the line sends.

Pure: messages and times in, messages and log events out; no clock and no port of its own. What counts is where a part
*is*: a reject that fires at the wrong moment ejects the part that is in front of the ejector then, and the log says so.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count

from simulation.plc.belt_motion import BeltMotion
from simulation.plc.settings import PlcSettings
from simulation.plc.wire import COMMANDS, STATES, VERDICTS, Ack, Frame, Inbox, Kind, Outbox, Reader

BEAT_S = 0.050  # between heartbeats
SILENCE_S = 0.200  # without a message of the line, after which the link counts as lost
LINGER_S = 0.5  # for the last acknowledgements at the end
GONE = 256  # newest parts that have left the belt and are still known
RELEASED = (0, 3)  # verdict codes with which a part may pass
Note = Callable[..., None]  # (time in s, event, **fields)


@dataclass(slots=True, eq=False)
class _Part:
    id: int
    centre: float  # when it is in front of the ejector, s
    way: float  # position of the belt then, in belt seconds
    leaves: float  # when the ejector cannot hit it any more, s
    verdict: int | None = None
    commanded: bool = False
    refused: bool = False
    contradicted: bool = False


class Conveyor:
    """Belt, ejector and the PLC's program. All times are s of the caller's clock.

    ``receive`` and ``advance`` move it on; ``next_due`` says when ``advance`` has something to do. ``outgoing`` holds
    the messages to send; the caller empties it. ``encoder_error`` (counts) is added to the encoder; ``sensor_sees`` is
    whether CONFIRMs are sent.
    """

    def __init__(
        self, settings: PlcSettings, *, session: int, sequence: int = 0, now: float = 0.0, note: Note = lambda *_,
        **__: None,
    ) -> None:
        """session, sequence: the numbers that this side begins with. now: when it starts. note: gets every event."""
        self.settings, self.session, self.outgoing = settings, session, list[Frame]()
        self.reader, self.inbox, self.outbox = Reader(), Inbox(), Outbox(sequence)
        self.fed = 0
        self.encoder_error = 0
        self.sensor_sees = settings.confirm
        self._note, self._start, self._random = note, now, random.Random(settings.seed)
        self._agenda: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._order = count()  # keeps the order of things that are due at the same time
        self._belt: dict[int, _Part] = {}
        self._gone: dict[int, _Part] = {}
        self._firings: list[tuple[float, _Part]] = []
        self._motion = BeltMotion(settings.speeds, now)
        self._next_id, self._slot, self._beats = settings.first_part, 0.0, 0
        self._state: int | None = None
        self._heard = self._last_beat = -math.inf  # when the line's last valid message, and its last heartbeat, came
        self._linked = False
        self._advanced = now
        self._not_ready_since: float | None = now
        self._last_departure = now
        self._counts: Counter[str] = Counter()
        self._verdicts, self._faults = Counter[int](), Counter[int]()
        self._ejected: list[int] = []
        self._failsafe: list[int] = []
        self._escaped: list[int] = []
        self._states: list[str] = []
        self._gap = self._behind = 0.0
        self._lateness_ms: list[float] = []
        self._at(now, self._beat)
        self._at(now, self._feed)

    def next_due(self) -> float:
        """When to call ``advance`` next, s."""
        return min(self._agenda[0][0], self.outbox.next_due())

    def advance(self, now: float) -> None:
        """Do all that is due by ``now``, in order of time."""
        self._advanced = now
        while self._agenda[0][0] <= now:
            due, _, action, arguments = heapq.heappop(self._agenda)
            self._behind = max(self._behind, now - due)
            action(due, now, *arguments)
        send, lost = self.outbox.due(now)
        for frame in send:
            self._send(frame)
        if self.ready(now):
            self._not_ready_since = None
        elif self._not_ready_since is None:
            self._not_ready_since = now
        for frame in lost:
            self._counts["lost " + frame.kind.name] += 1
            self._note(now, "unacknowledged", part=frame.part, type=frame.kind.name)

    def receive(self, frame: Frame, now: float) -> None:
        """Take a valid message of the line, whose last byte arrived at ``now``."""
        if self.inbox.begins(frame, now):
            self._state = None  # the state from before its restart is void
            self._note(now, "session", session=frame.session)
        self._heard = now
        if not self._linked:
            self._linked = True
            self._note(now, "heartbeat_back" if self._counts["heartbeat_losses"] else "line_heard")
            self._at(now + SILENCE_S, self._listen)
        if frame.kind is Kind.LINE_HEARTBEAT:
            self._line_beat(frame, now)
        elif frame.kind is Kind.LINE_ACK:
            self._acknowledged(frame, now)
        elif frame.kind in COMMANDS:
            code = self.inbox.repetition(frame)
            if code is None:
                code = {Kind.VERDICT: self._verdict, Kind.REJECT: self._reject,
                        Kind.FAULT: self._fault}[frame.kind](frame, now)
                self.inbox.remember(frame, code, now)
            else:
                self._note(now, "repeated", part=frame.part, type=frame.kind.name, sequence=frame.sequence)
            self._send(Frame(Kind.PLC_ACK, code, 0, frame.sequence, frame.part, 0, self._clock(now)))

    def ready(self, now: float) -> bool:
        """Whether parts are fed: the link is up, and a heartbeat of the last 200 ms said ready or degraded."""
        return self._linked and self._state in (2, 3) and now - self._last_beat < SILENCE_S

    def ended(self, now: float) -> str | None:
        """Why the simulation is over: all parts have passed, or the line does not become ready; None: it is not over.
        """
        s = self.settings
        if s.parts and self.fed >= s.parts and not self._belt:
            settled = not self.outbox and not self._firings
            return "parts" if settled or now >= self._last_departure + LINGER_S else None
        waiting = self._not_ready_since is not None and now - self._not_ready_since > s.start_timeout_s
        # Without a number of parts it survives any outage; with one it would wait forever.
        return "line not ready" if waiting and (s.parts or not self.fed) else None

    def stop(self, now: float) -> None:
        """Stop the belt: one last heartbeat says so."""
        self._send(Frame(Kind.PLC_HEARTBEAT, 0, value=self._beats, time=self._clock(now)))

    # -- the belt ---------------------------------------------------------------------------------------------------

    def _at(self, due: float, action: Callable[..., None], *arguments: object) -> None:
        heapq.heappush(self._agenda, (due, next(self._order), action, arguments))

    def _send(self, frame: Frame) -> None:
        self.outgoing.append(replace(frame, session=self.session))

    def _clock(self, moment: float) -> int:
        """The PLC's own ms counter. It wraps 5 s after the start, so that every simulation covers that."""
        return round((moment - self._start) * 1000 - 5000) % (1 << 32)

    def _moment(self, clock: int) -> float:
        return self._start + ((clock + 5000 + (1 << 31)) % (1 << 32) - (1 << 31)) / 1000

    def _encoder(self, now: float) -> int:
        counts = math.floor(self._motion.way(now) * (self.settings.encoder_per_s or 0)) + self.encoder_error
        return (counts + (1 << 31)) % (1 << 32) - (1 << 31)

    def _beat(self, due: float, now: float) -> None:
        moves, by_encoder = self._motion.share(now) != 0, self.settings.by_encoder
        value = self._encoder(now) if by_encoder else self._beats
        self._send(Frame(Kind.PLC_HEARTBEAT, moves + 2 * by_encoder, value=value, time=self._clock(now)))
        self._beats += 1
        self._at(due + BEAT_S if now - due < BEAT_S else now + BEAT_S, self._beat)

    def _feed(self, due: float, now: float) -> None:
        s = self.settings
        if s.parts and self.fed >= s.parts:
            return
        if now - due > s.pitch_s / 2:
            self._slot = self._motion.way(now)  # this process was held up: parts must not overlap because of that
        if self.ready(now):
            # The part is in front of the camera when the TRIGGER goes out, not when it should have gone out.
            way = self._motion.way(now) + s.travel_ms / 1000
            part = _Part(self._next_id, self._motion.moment(way, now), way,
                         self._motion.moment(way + s.tolerance_s, now))
            self._belt[part.id] = part
            self._next_id = self._next_id % 0xFFFFFFFF + 1
            self.fed += 1
            encoder = self._encoder(now)
            self.outbox.post(Kind.TRIGGER, code=int(s.encoder_per_s is not None), part=part.id, value=encoder,
                             time=self._clock(now))
            self._note(now, "trigger", part=part.id, encoder=encoder)
            self._at(part.centre, self._arrive, part)
            self._at(part.leaves, self._leave, part)
        self._slot += s.pitch_s
        self._at(self._motion.moment(self._slot + self._random.uniform(-s.jitter, s.jitter) * s.pitch_s, now),
                 self._feed)

    def _arrive(self, due: float, now: float, part: _Part) -> None:
        """The fail-safe rule: eject a part that may not pass, unless a REJECT will still hit it."""
        coming = any(p is part and at <= part.leaves for at, p in self._firings)
        if part.id in self._belt and part.verdict not in RELEASED and not coming:
            self._failsafe.append(part.id)
            self._eject(part, due, "failsafe")

    def _leave(self, due: float, now: float, part: _Part) -> None:
        if part.id in self._belt:
            self._counts["passed"] += 1
            self._note(due, "passed", part=part.id)
            if part.verdict not in RELEASED:
                self._escaped.append(part.id)
            self._depart(part, due)

    def _fire(self, due: float, now: float, part: _Part, width_ms: int) -> None:
        self._firings.remove((due, part))
        lateness_ms = round((due - part.centre) * 1000, 3)
        self._lateness_ms.append(lateness_ms)
        way = self._motion.way(due)
        hit = min(self._belt.values(), key=lambda p: abs(p.way - way), default=None)
        if hit is None or width_ms <= 0 or abs(hit.way - way) > self.settings.tolerance_s:
            self._counts["missed"] += 1
            self._note(due, "missed", part=part.id, lateness_ms=lateness_ms, width_ms=width_ms)
            return
        if hit is not part:
            self._counts["wrong_part"] += 1
            self._note(due, "wrong_part", part=hit.id, commanded=part.id, lateness_ms=lateness_ms)
        self._eject(hit, due, "reject", lateness_ms=round((due - hit.centre) * 1000, 3))

    def _eject(self, part: _Part, when: float, by: str, **fields: object) -> None:
        self._ejected.append(part.id)
        self._note(when, "ejected", part=part.id, by=by, **fields)
        self._depart(part, when)
        if self.sensor_sees:
            self._counts["confirms"] += 1
            self._note(when, "confirm", part=part.id)
            self.outbox.post(Kind.CONFIRM, part=part.id, value=self._encoder(when), time=self._clock(when))

    def _depart(self, part: _Part, when: float) -> None:
        self._last_departure = when
        self._gone[part.id] = self._belt.pop(part.id)
        if len(self._gone) > GONE:
            del self._gone[next(iter(self._gone))]
        self._counts["missing"] += part.verdict is None and not part.refused

    # -- what the line says -----------------------------------------------------------------------------------------

    def _line_beat(self, frame: Frame, now: float) -> None:
        if self._last_beat > -math.inf:
            self._gap = max(self._gap, now - self._last_beat)
        self._last_beat = now
        if frame.code != self._state:
            self._state = frame.code
            if STATES[frame.code] == "fault" and self.settings.clear_s is not None:
                self._at(now + self.settings.clear_s, self._clear)
            if STATES[frame.code] not in self._states:
                self._states.append(STATES[frame.code])
            self._note(now, "line_state", state=STATES[frame.code])

    def _clear(self, due: float, now: float) -> None:
        self._note(now, "clear")
        self.outbox.post(Kind.CLEAR, time=self._clock(now))

    def _listen(self, due: float, now: float) -> None:
        if due < self._heard + SILENCE_S:
            self._at(self._heard + SILENCE_S, self._listen)
            return
        self._linked = False
        self._counts["heartbeat_losses"] += 1
        self._note(due, "heartbeat_lost")

    def _acknowledged(self, ack: Frame, now: float) -> None:
        command = self.outbox.acknowledged(ack)
        if command is None:
            return
        if ack.code == Ack.DONE:
            if command.kind is Kind.TRIGGER:
                self._note(now, "taken", part=ack.part)
            return
        self._counts["refused " + command.kind.name] += 1
        self._note(now, "refused", part=ack.part, type=command.kind.name, code=ack.code)
        part = self._belt.get(ack.part)
        if part is not None and command.kind is Kind.TRIGGER and ack.code == Ack.NOT_READY:
            part.refused = True

    def _find(self, frame: Frame) -> tuple[_Part | None, int]:
        part = self._belt.get(frame.part)
        gone = self._gone.get(frame.part)
        return part or gone, Ack.DONE if part else Ack.TOO_LATE if gone else Ack.UNKNOWN_PART

    def _verdict(self, frame: Frame, now: float) -> int:
        part, code = self._find(frame)
        self._note(now, "verdict", part=frame.part, verdict=VERDICTS[frame.code], value=frame.value, ack=code)
        if part is None:
            self._counts["unknown verdicts"] += 1
            return code
        if part.verdict is not None:
            self._counts["doubled"] += 1
            self._note(now, "doubled_verdict", part=part.id, first=VERDICTS[part.verdict], then=VERDICTS[frame.code])
            self._contradiction(part, part.verdict != frame.code, now)
        else:
            self._verdicts[frame.code] += 1
            late = now > part.centre
            self._counts["late"] += late
            if late:
                self._note(now, "late_verdict", part=part.id, by_ms=round((now - part.centre) * 1000, 3))
            self._counts["missing"] -= code == Ack.TOO_LATE and not part.refused  # it was counted when the part left
        part.verdict = frame.code
        self._contradiction(part, part.commanded and frame.code in RELEASED, now)
        return code

    def _reject(self, frame: Frame, now: float) -> int:
        part, code = self._find(frame)
        # What came while this process was held up may have come at once: it is given the benefit of the doubt.
        fires = max(self._count_moment(frame.time, now) if frame.code == 1 else self._moment(frame.time),
                    self._advanced)
        width_ms = frame.value
        self._note(now, "reject", part=frame.part, in_ms=round((fires - now) * 1000, 3), width_ms=width_ms, ack=code)
        if part is None or code != Ack.DONE:
            self._counts["late rejects" if part else "unknown rejects"] += 1
            return code
        self._counts["doubled rejects"] += part.commanded
        part.commanded = True
        self._contradiction(part, part.verdict in RELEASED, now)
        steady = self._motion.way(now) + (fires - now) * self._motion.share(now)
        if frame.code == 0 and abs(self._motion.way(fires) - steady) > self.settings.tolerance_s:
            self._counts["dropped rejects"] += 1  # a REJECT by the clock goes when the belt does not keep its speed
            return code
        self._firings.append((fires, part))
        self._at(fires, self._fire, part, width_ms)
        return code

    def _count_moment(self, count: int, now: float) -> float:
        """When the encoder comes to a count."""
        ahead = (count - self._encoder(now) + (1 << 31)) % (1 << 32) - (1 << 31)
        return self._motion.moment(self._motion.way(now) + ahead / (self.settings.encoder_per_s or 1.0), now)

    def _contradiction(self, part: _Part, found: bool, now: float) -> None:
        if found and not part.contradicted:
            part.contradicted = True
            self._counts["contradictions"] += 1
            self._note(now, "contradiction", part=part.id)

    def _fault(self, frame: Frame, now: float) -> int:
        self._faults[frame.code] += 1
        self._note(now, "fault", part=frame.part, code=frame.code)
        return Ack.DONE

    def summary(self, now: float) -> dict[str, object]:
        """All counts; times in ms. ``reject_lateness_ms``: distance of the firing from the part's true ejector time,
        with ``mean`` signed (above 0: too late). ``escaped_ids``: parts that passed without a verdict that lets
        them."""
        self.inbox.settle(now)
        n, r = self._counts, self.reader
        gap = max(self._gap, now - self._last_beat) if self._last_beat > -math.inf else 0.0
        return {
            "triggers": self.fed, "refused": n["refused TRIGGER"],
            "verdicts": {name: self._verdicts[code] for code, name in enumerate(VERDICTS)},
            "ejected_ids": list(self._ejected), "passed_ids_count": n["passed"], "failsafe_ids": list(self._failsafe),
            "escaped_ids": list(self._escaped), "on_belt": len(self._belt), "wrong_part": n["wrong_part"],
            "missed": n["missed"], "late_verdicts": n["late"], "doubled_verdicts": n["doubled"],
            "missing_verdicts": n["missing"], "contradictory_verdicts": n["contradictions"],
            "unknown_part_verdicts": n["unknown verdicts"], "late_rejects": n["late rejects"],
            "unknown_part_rejects": n["unknown rejects"], "doubled_rejects": n["doubled rejects"],
            "crc_errors": r.crc_errors, "garbage_bytes": r.garbage_bytes, "resynchronisations": r.resynchronisations,
            "unknown_frames": r.unknown_frames, "sequence_errors": self.inbox.sequence_errors,
            "reordered": self.inbox.reordered, "repeated_commands": self.inbox.repeated,
            "sessions": self.inbox.sessions, "resent": self.outbox.resent, "heartbeat_losses": n["heartbeat_losses"],
            "largest_heartbeat_gap_ms": round(gap * 1000, 3), "unacknowledged": n["lost TRIGGER"],
            "unacknowledged_confirms": n["lost CONFIRM"], "stray_acks": self.outbox.stray_acks,
            "line_states_seen": list(self._states),
            "faults": {str(code): times for code, times in sorted(self._faults.items())},
            "dropped_rejects": n["dropped rejects"], "confirms": n["confirms"],
            "refused_confirms": n["refused CONFIRM"], "reject_lateness_ms": _lateness(self._lateness_ms),
            "own_lateness_ms": round(self._behind * 1000, 3),
        }


def _lateness(lateness_ms: list[float]) -> dict[str, float | None]:
    """p50, p99 (nearest rank) and max of the distance, and the signed mean; None where nothing fired."""
    if not lateness_ms:
        return dict.fromkeys(("p50", "p99", "max", "mean"))
    ranked = sorted(map(abs, lateness_ms))
    p50, p99 = (ranked[math.ceil(share * len(ranked)) - 1] for share in (0.5, 0.99))
    return {"p50": p50, "p99": p99, "max": ranked[-1], "mean": round(sum(lateness_ms) / len(ranked), 3)}
