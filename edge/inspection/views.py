"""A part that several cameras look at: one verdict from all its views."""

from __future__ import annotations

from dataclasses import dataclass

from edge.inspection.inspector import Inspection
from edge.part.frame import CameraFrame
from edge.part.verdict import Cause, Verdict

KEPT = 1000  # newest parts whose views are not complete


@dataclass(frozen=True)
class View:
    """What one camera found: an inspection, or why there is none."""

    frame: CameraFrame
    inspection: Inspection | None
    cause: Cause | None = None

    @property
    def verdict(self) -> Verdict:
        """Of this view alone."""
        if self.inspection is None or self.inspection.verdict is None:
            return Verdict.UNINSPECTED
        return self.inspection.verdict


class Views:
    """Joins the views of each part."""

    def __init__(self, cameras: int) -> None:
        self._cameras = cameras
        self._parts: dict[int, dict[int, View]] = {}  # by trigger, then camera
        self._rejected: dict[int, None] = {}  # triggers whose part was rejected before all views were there

    def add(self, view: View) -> View | None:
        """A view has come. Returns the one that decides about its part, if that is decided now, and None otherwise.

        The first view that rejects does so at once. Else all views are waited for: one that was not inspected leaves the part
        uninspected, and where all pass, the one with the highest score speaks for them.
        """
        if self._cameras == 1:
            return view
        trigger = view.frame.trigger
        views = self._parts.setdefault(trigger, {})
        if view.frame.camera in views:
            return None  # the camera delivered it twice
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
                    max(views.values(), key=lambda found: found.inspection.score if found.inspection is not None else 0.0))
