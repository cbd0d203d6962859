"""The names that recorded sessions have for the runtime's messages: they outlast the names of the classes."""

from __future__ import annotations

from edge.line_control.messages import JournalWritten, ProcessEvent, decode, encode
from edge.part.events import Alarm, Challenge, Clear, FaultOver, PartVerdict, RuntimeReady, Stop
from edge.part.verdict import Cause, Verdict

RECORDED = [  # as the sessions of the first format have them
    "connected", ["RuntimeReady", {}], ["Written", {"triggers": [1, 2]}],
    ["PartVerdict", {"part": 7, "verdict": "PASS", "cause": None, "score": 0.25, "trigger": 3}],
    ["PartVerdict", {"part": 8, "verdict": "UNINSPECTED", "cause": "camera", "score": None, "trigger": 4}],
    ["Alarm", {"code": 1, "text": "the camera is gone"}], ["FaultOver", {"code": 1}], ["Clear", {}], ["Challenge", {}],
    ["Stop", {}], "closed", "stop", "orphaned"]
MESSAGES = [
    ProcessEvent.CONNECTED, RuntimeReady(), JournalWritten([1, 2]), PartVerdict(7, Verdict.PASS, None, 0.25, 3),
    PartVerdict(8, Verdict.UNINSPECTED, Cause.CAMERA, None, 4), Alarm(1, "the camera is gone"), FaultOver(1), Clear(),
    Challenge(), Stop(), ProcessEvent.CLOSED, ProcessEvent.STOP, ProcessEvent.ORPHANED]


def test_a_recorded_session_has_and_keeps_the_names_of_its_format():
    assert encode(MESSAGES) == RECORDED
    assert decode(RECORDED) == MESSAGES
