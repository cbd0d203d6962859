"""Several cameras that look at the same parts: one verdict from all views of a part."""

from __future__ import annotations

import shutil
import time

import numpy as np
import pytest

from edge.base.errors import CameraError
from edge.bundle.bundle import load_bundle
from edge.cameras.frame_queue import WAITING
from edge.cameras.group import CameraGroup
from edge.images.files import read_image
from edge.inspection.inspector import Inspection, Inspector
from edge.inspection.views import KEPT, View, Views
from edge.part.frame import CameraFrame
from edge.part.verdict import Cause, Verdict
from tests.rig import finish, reconcile, rig, wait_for

__all__ = ["rig"]
IMAGE = np.zeros((16, 16, 1), np.uint8)


def view(camera, verdict, score=0.0, trigger=1):
    frame = CameraFrame(trigger, trigger, trigger, 0.0, IMAGE, camera=camera)
    if verdict is Verdict.UNINSPECTED:
        return View(frame, None, Cause.CAMERA)
    return View(frame, Inspection(verdict, score, 0.5, [], None, None, None))


PASS, REJECT, NONE = Verdict.PASS, Verdict.REJECT, Verdict.UNINSPECTED


def test_all_views_pass_and_the_highest_score_speaks_for_them():
    views = Views(3)
    assert views.add(view(0, PASS, 0.1)) is None and views.add(view(2, PASS, 0.4)) is None
    decided = views.add(view(1, PASS, 0.2))
    assert decided.frame.camera == 2 and decided.verdict is PASS


def test_the_first_view_that_rejects_does_so_at_once_and_alone():
    views = Views(3)
    assert views.add(view(0, PASS)) is None
    assert views.add(view(1, REJECT, 0.9)).frame.camera == 1
    assert views.add(view(2, REJECT, 0.99)) is None
    assert not views._parts and not views._rejected


@pytest.mark.parametrize("order", [(NONE, PASS), (PASS, NONE)])
def test_a_view_that_is_missing_leaves_the_part_uninspected(order):
    views = Views(2)
    assert views.add(view(0, order[0])) is None
    decided = views.add(view(1, order[1]))
    assert decided.verdict is NONE and decided.cause is Cause.CAMERA


def test_a_rejecting_view_outweighs_one_that_is_missing():
    views = Views(2)
    assert views.add(view(0, NONE)) is None
    assert views.add(view(1, REJECT)).verdict is REJECT


def test_a_frame_that_is_delivered_twice_is_one_view():
    views = Views(2)
    assert views.add(view(0, PASS)) is None and views.add(view(0, PASS)) is None
    assert views.add(view(1, PASS)).verdict is PASS


def test_parts_whose_views_never_come_do_not_fill_the_memory():
    views = Views(2)
    for trigger in range(KEPT + 50):
        views.add(view(0, REJECT if trigger % 2 else PASS, trigger=trigger))
    assert len(views._parts) == KEPT and len(views._rejected) <= KEPT


class Fake:
    def __init__(self, fails=False, opens=True):
        self.exposed, self.fails, self.opens, self.closed = [], fails, opens, False

    def open(self):
        if not self.opens:
            raise CameraError("no such camera")

    def expose(self, trigger, part, encoder, at):
        self.exposed.append(CameraFrame(trigger, part, trigger, at, IMAGE))

    def next(self, timeout):
        if self.fails:
            raise CameraError("gone")
        if not self.exposed:
            time.sleep(min(timeout, 0.01))
            return None
        return self.exposed.pop(0)

    def close(self):
        self.closed = True

    def counters(self):
        return {"resent": 2}


def test_a_group_gives_the_frames_of_all_and_says_whose_they_are():
    cameras = [Fake(), Fake()]
    group = CameraGroup(cameras)
    group.open()
    group.expose(5, 5, None, 0.0)
    frames = [group.next(2.0), group.next(2.0)]
    assert sorted(frame.camera for frame in frames) == [0, 1] and group.next(0.01) is None
    group.close()
    assert all(camera.closed for camera in cameras)


def test_a_group_whose_camera_cannot_be_opened_leaves_none_open():
    cameras = [Fake(), Fake(opens=False)]
    with pytest.raises(CameraError, match="no such camera"):
        CameraGroup(cameras).open()
    assert cameras[0].closed and not cameras[1].closed


def test_a_camera_that_fails_is_told_of_and_the_others_go_on():
    group = CameraGroup([Fake(), Fake(fails=True)])
    group.open()
    seen, told = [], 0
    group.expose(1, 1, None, 0.0)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and not (seen and told):
        try:
            frame = group.next(0.05)
        except CameraError:
            told += 1
        else:
            seen += [frame] if frame else []
    group.close()
    assert [frame.camera for frame in seen] == [0] and told


def test_frames_that_nobody_takes_are_dropped_the_oldest_first_and_counted():
    camera = Fake()
    group = CameraGroup([camera, Fake()])
    for trigger in range(WAITING + 20):
        camera.expose(trigger, trigger, None, 0.0)
    group.open()
    wait_for(lambda: group.counters()["dropped"] == 20)
    assert group.next(1.0).trigger == 20 and group.counters() == {"dropped": 20, "resent": 4}
    group.close()


def two_cameras(line, first, second, loop=True):
    path = line.folder / "line.toml"
    text = path.read_text()
    begin, end = text.index("[camera]"), text.index("[plc]")
    cameras = "".join(f'[[camera]]\nkind = "folder"\npath = "{folder}"\nloop = {str(loop).lower()}\n'
                      for folder in (first, second))
    path.write_text(text[:begin] + cameras + text[end:])


def test_a_line_of_two_cameras_gives_each_part_one_verdict_from_both(rig, cloth, tmp_path, lineside):
    line = rig(camera=cloth)
    bundle = load_bundle(line.folder / "bundle")
    threshold = bundle.calibrated_threshold("fp32", "openvino").value
    with Inspector(bundle) as inspector:
        verdicts = {path: inspector.inspect(read_image(path), threshold).verdict
                    for path in sorted((cloth / "test").rglob("*.png"))}
    passed, rejected = ([path for path, found in verdicts.items() if found is wanted] for wanted in (PASS, REJECT))
    for folder, paths in (("ok", passed[:4]), ("mixed", [passed[5], rejected[0], passed[6]])):
        (tmp_path / folder).mkdir()
        for number, path in enumerate(paths):
            shutil.copy(path, tmp_path / folder / f"{number}.png")
    two_cameras(line, tmp_path / "ok", tmp_path / "mixed")
    plc = line.plc(12)
    ledger, _ = finish(line.run("--parts", "12"))
    summary, _ = finish(plc)
    rows = line.rows()
    reconcile(ledger, summary, rows)
    assert ledger["frames"] == {"without_part": 0, "dropped": 0}
    assert [row["verdict"] for row in rows] == ["PASS", "REJECT", "PASS"] * 4
    assert {row["image"] for row in rows if row["verdict"] == "REJECT"} == {"camera 2: 1.png"}
    code, _, err = lineside("check", line.folder / "line.toml", "--rate", 5, "--frames", 50, "--json")
    assert code in (0, 1), err


def test_a_part_that_one_camera_does_not_see_is_not_inspected(rig, cloth, tmp_path):
    good = cloth / "test" / "good"
    (tmp_path / "few").mkdir()
    for path in sorted(good.iterdir())[:5]:
        shutil.copy(path, tmp_path / "few")
    line = rig(camera=good)
    two_cameras(line, good, tmp_path / "few", loop=False)
    plc = line.plc(8)
    ledger, _ = finish(line.run("--parts", "8"))
    summary, _ = finish(plc)
    reconcile(ledger, summary, line.rows())
    rejected = sum(row["verdict"] == "REJECT" for row in line.rows()[5:])
    assert ledger["causes"].get("no-frame", 0) + rejected == 3
