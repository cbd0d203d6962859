"""Parts that several cameras look at: one verdict from all views."""

from __future__ import annotations

from dataclasses import dataclass

from edge.inspection.inspector import Inspection
from edge.part.frame import CameraFrame
from edge.part.verdict import Cause, Verdict

KEPT = 1000  # incomplete parts that are remembered, the newest ones


@dataclass(frozen=True)
class View:
    """One camera's result for a part: an inspection, or the reason why there is none."""

    frame: CameraFrame
    inspection: Inspection | None
    cause: Cause | None = None

    @property
    def verdict(self) -> Verdict:
        """The verdict of this view alone."""
        if self.inspection is None or self.inspection.verdict is None:
            return Verdict.UNINSPECTED
        return self.inspection.verdict


class Views:
    """Joins the views of each part."""

    def __init__(self, cameras: int) -> None:
        self._cameras = cameras
        self._parts: dict[int, dict[int, View]] = {}  # by trigger, then camera
        self._rejected: dict[int, None] = {}  # triggers of parts that were rejected before all views had arrived

    def add(self, view: View) -> View | None:
        """Add a view. Returns the view that decides about its part, if this is the moment when that is known; otherwise
        None.

        The first view that rejects decides at once. Otherwise all views are awaited: if one was not inspected, the part
        is uninspected; if all pass, the view with the highest score is returned.
        """
        if self._cameras == 1:
            return view
        trigger = view.frame.trigger
        views = self._parts.setdefault(trigger, {})
        if view.frame.camera in views:
            return None  # the camera delivered the frame twice
        views[view.frame.camera] = view
        if len(views) == self._cameras:
            del self._parts[trigger]
        elif len(self._parts) > KEPT:
            oldest = next(iter(self._parts))
            del self._parts[oldest]
            self._rejected.pop(oldest, None)
        if trigger in self._rejected:
            if len(views) == self._cameras:
                del self._rejected[trigger]
            return None
        if view.verdict is Verdict.REJECT:
            if len(views) < self._cameras:
                self._rejected[trigger] = None
            return view
        if len(views) < self._cameras:
            return None
        return next((found for found in views.values() if found.verdict is Verdict.UNINSPECTED),
                    max(views.values(), key=lambda found: found.inspection.score if found.inspection is not None
                        else 0.0))
