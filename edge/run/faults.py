"""Faults that the runtime reports to the PLC and the operator, and when they are over."""

from __future__ import annotations

from edge.line_control.client import ControlClient
from edge.part.faults import FaultCode


class Faults:
    """Reports faults through line control.

    A fault of the camera or the engine is over when the next frame is inspected.
    """

    def __init__(self, control: ControlClient) -> None:
        self._control = control
        self._until_inspected: set[FaultCode] = set()

    def camera(self, text: str) -> None:
        """The camera failed."""
        self._begin(FaultCode.CAMERA, text)

    def engine(self, text: str) -> None:
        """An inference failed."""
        self._begin(FaultCode.ENGINE, text)

    def _begin(self, code: FaultCode, text: str) -> None:
        self._until_inspected.add(code)
        self._control.fault(code, text)

    def inspected(self) -> None:
        """A frame was inspected: camera and engine work."""
        while self._until_inspected:
            self._control.fault_over(self._until_inspected.pop())

    def journal(self, text: str | None) -> None:
        """The journal cannot be written, and why; None: it can be written again. Called by the journal's thread."""
        if text is None:
            self._control.fault_over(FaultCode.JOURNAL)
        else:
            self._control.fault(FaultCode.JOURNAL, text)
