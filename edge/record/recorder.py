"""What a line tells its recorder, and the recorder of a line that is not recorded."""

from __future__ import annotations

from edge.inspection.inspector import Inspector
from edge.inspection.views import View
from edge.part.events import Ended, Expose
from edge.part.frame import CameraFrame


class NullRecorder:
    """Records nothing. `edge.record.session_writer.SessionWriter` overrides every method. Any thread may call them."""

    def live(self, run: int, inspector: Inspector, threshold: float, threads: int, mode: str) -> None:
        """The line inspects with this bundle from now on. run: its row in the journal."""

    def exposed(self, expose: Expose) -> None:
        """A part was triggered."""

    def frame(self, frame: CameraFrame) -> None:
        """A camera delivered a frame, whichever part it shows."""

    def judged(self, view: View, run: int) -> None:
        """One camera's view of a part was judged. run: the journal's row of the bundle that judged it."""

    def ended(self, ended: Ended) -> None:
        """A part has its outcome."""

    def close(self) -> None:
        """Nothing more will be told."""
