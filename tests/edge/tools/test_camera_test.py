"""`lineside camera-test`, on folders and on a scripted driver. No camera is needed."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge.base.errors import CameraError
from edge.cameras.custom.section import CustomSection
from edge.cameras.driver import Grabbed
from edge.cameras.genicam.section import GenicamSection
from edge.cameras.live import LiveCamera
from edge.images.files import read_image, write_image
from edge.part.frame import CameraFrame
from edge.tools.camera_test.advice import advise
from edge.tools.camera_test.album import BOX, EVEN, Album, focus_measure, look_at, shrink
from edge.tools.camera_test.report import Taken, answers, intervals, report_camera, window
from edge.tools.camera_test.trial import try_cameras

LINE = """
[line]
name = "felt-3"
bundle = "bundle"
{camera}
[plc]
kind = "frames"
port = "/dev/null"

[belt]
travel_ms = 600
"""
KEYS = {"camera", "kind", "name", "frames", "seconds", "rate", "jitter_ms", "trigger_to_frame_ms", "gaps", "incomplete",
        "unanswered", "clipped", "level", "focus", "exposure_us", "counters", "advice"}


def line_file(folder: Path, camera: str) -> Path:
    path = folder / "line.toml"
    path.write_text(LINE.format(camera=camera))
    return path


def texture(seed: int = 0) -> np.ndarray:
    """Cloth-like grey, 60 to 180, uint8 [120, 160, 1]."""
    noise = cv2.GaussianBlur(np.random.default_rng(seed).normal(0, 1, (120, 160)), (0, 0), 1.5)
    return np.clip(120 + 25 * noise / noise.std(), 60, 180).astype(np.uint8)[:, :, None]


def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), sigma).reshape(image.shape)


# One image.

def test_focus_falls_with_each_blur_and_does_not_change_with_the_exposure():
    image = texture()
    values = [focus_measure(blurred(image, sigma)[:, :, 0]) for sigma in (0.5, 1, 2, 4)]
    assert values == sorted(values, reverse=True) and values[0] > 10 * values[-1]
    dimmer = (image * 0.6).astype(np.uint8)
    assert focus_measure(dimmer[:, :, 0]) == pytest.approx(focus_measure(image[:, :, 0]), rel=0.1)


def test_shares_of_clipped_pixels_are_exact():
    image = texture()
    image[:12] = 255
    image[100:106] = 0
    look, counts = look_at(image)
    assert (look.high, look.low) == (0.1, 0.05) and counts.sum() == 120 * 160 and counts[255] == 12 * 160
    assert look.level == pytest.approx(image.mean(), abs=0.01)


def test_in_colour_the_channel_with_most_counts_at_255_and_with_fewest_at_0():
    image = np.full((20, 20, 3), 100, np.uint8)
    image[:2, :, 0] = 255
    image[:4, :, 1] = 0
    look, _ = look_at(image)
    assert look.high == 0.1 and look.low == 0.0


def test_a_picture_shows_clipped_pixels_in_colour():
    image = np.full((400, 400, 1), 100, np.uint8)
    image[:200], image[200:300] = 255, 0
    small = shrink(image)
    assert max(small.shape[0] / BOX[1], small.shape[1] / BOX[0]) == 1
    assert small[10, 10].tolist() == [255, 40, 40] and small[120, 10].tolist() == [40, 110, 255]
    assert small[180, 10].tolist() == [100] * 3


def test_an_album_keeps_what_stands_out_and_pictures_of_the_whole_time():
    album, image = Album(), texture()
    special = {30: blurred(image, 5), 60: image // 2, 90: image + 60}
    for number in range(200):
        album.add(special.get(number, image), float(number))
    pictures = album.pictures()
    assert list(pictures) == ["first", "last", "sharpest", "least sharp", "brightest", "darkest"]
    numbers = {name: picture.number for name, picture in pictures.items()}
    names = ("first", "last", "least sharp", "darkest", "brightest")
    assert [numbers[name] for name in names] == [0, 199, 30, 60, 90]
    even = [picture.number for picture in album.evenly()]
    assert len(even) == EVEN and even[0] == 0 and even[-1] > 180 and len(album.looks) == 200
    assert max(np.diff(even)) <= 1.5 * min(np.diff(even))


# Frames.

def taken(frame_id, arrival, host=None, device=None, trigger=0, whole=True, connection=0, exposed=True):
    frame = CameraFrame(trigger, 0, frame_id, arrival if host is None else host, None, device_time=device,
                        connection=connection, exposed=exposed)
    return Taken(arrival, frame, whole)


def test_intervals_use_the_cameras_clock_and_skip_gaps():
    frames = [taken(1, 0.0, device=5.0), taken(2, 0.14, device=5.1), taken(4, 0.31, device=5.3),
              taken(5, 0.4, device=5.4), taken(1, 9.0, device=0.1, connection=1)]
    assert [apart for _, apart in intervals(frames)] == pytest.approx([0.1, 0.1])
    assert [apart for _, apart in intervals([taken(1, 0.0), taken(2, 0.14)])] == pytest.approx([0.14])


def test_frames_without_a_clock_answer_triggers_by_their_ids():
    found = answers([taken(70, 0.05), taken(71, 0.15), taken(73, 0.48)], [0.0, 0.1, 0.2, 0.3])
    assert [at for at, _ in found] == [0.0, 0.1, 0.3]


def test_frames_with_a_clock_answer_triggers_by_it_even_if_the_camera_skipped_one():
    frames = [taken(1, 0.06, host=0.01, device=1.0), taken(2, 0.26, host=0.21, device=1.2),
              taken(3, 0.41, host=0.31, device=1.3)]
    assert [at for at, _ in answers(frames, [0.0, 0.1, 0.2, 0.3])] == [0.0, 0.2, 0.3]


def test_triggers_that_the_camera_was_not_given_get_no_frame():
    frames = [taken(1, 0.02), taken(0, 0.12, trigger=2, whole=False, exposed=False), taken(2, 0.22)]
    assert [at for at, _ in answers(frames, [0.0, 0.1, 0.2])] == [0.0, 0.2]


def test_a_window_has_a_margin():
    assert window(0.3) == 5 and window(20.1) == 35


def report(**changes):
    frames = [taken(number, 0.1 * number + 0.05) for number in range(20)]
    triggers, looks = [0.1 * number for number in range(20)], [look_at(texture())[0]] * 20
    made = report_camera(1, "genicam", "GV01", frames, triggers, looks, {}, 2.0)
    return replace(made, **changes)


def test_a_good_camera_gets_no_advice():
    section = GenicamSection(kind="genicam", window_ms=60)
    right = report(window_ms=45)
    assert not right.fails and right.unanswered == 0 and right.rate == pytest.approx(10, rel=0.01)
    assert advise(right, section, 10) == []


@pytest.mark.parametrize(("changes", "words", "fails"), [
    ({"gaps": 2, "counters": {"missing_packets": 40}}, "40 packets lost", True),
    ({"incomplete": 1}, "bandwidth_mb_s", True),
    ({"unanswered": 3}, "3 of 20 triggers got no answer", True),
    ({"dropped": 1}, "too slow", True),
    ({"disconnects": 1}, "power", True),
    ({"frames": 0}, "no complete frame came", True),
    ({"counters": {"underruns": 1}}, "no free buffer", False),
    ({"window_ms": 80}, "more than half", False),
    ({"rate": 5.0}, "5.0 frames per second came instead of 10", False),
    ({"doubled": 2}, "came twice", False),
    ({"clipped": {"low": 0, "low_worst": 0, "high": 0.1, "high_worst": 0.2}, "exposure_us": 5000},
     "lower exposure_us, now 5000", False),
    ({"clipped": {"low": 0.1, "low_worst": 0.1, "high": 0, "high_worst": 0}}, "at 0", False),
    ({"level": 20}, "dark", False),
    ({"level": 230}, "bright", False),
    ({"focus": {"median": 1.0, "lowest": 0.2, "highest": 1.1}}, "20 % of the usual sharpness", False),
    ({"focus": {"median": 1.0, "lowest": 0.9, "highest": 4.0}}, "Turn the lens", False),
    ({"measured": 7}, "7 of 20", False),
])
def test_the_advice_says_what_is_wrong_and_what_to_change(changes, words, fails):
    made = report(**{"window_ms": 45, **changes})
    said = advise(made, GenicamSection(kind="genicam", window_ms=60), 10)
    assert len(said) == 1 and words in said[0] and made.fails is fails


def test_the_advice_on_too_small_a_window_names_a_better_one():
    said = advise(report(window_ms=45), GenicamSection(kind="genicam", window_ms=10), 5)
    assert len(said) == 1 and "window_ms = 10 is too small" in said[0] and "Set window_ms = 45" in said[0]


def test_a_sensor_that_never_triggers_is_named():
    section = GenicamSection(kind="genicam", trigger="hardware", match="frame-id", trigger_source="Line4")
    made = report_camera(1, "genicam", "GV01", [], None, [], {}, 2.0)
    assert made.fails and "Line4" in advise(made, section, 10)[0]


# Cameras.

def test_a_folder_is_tested_like_a_camera(lineside, tmp_path):
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(6):
        image = blurred(texture(), 4) if number == 2 else texture()
        if number == 4:
            image[:12] = 255
        write_image(frames / f"{number}.png", image)
    path = line_file(tmp_path, '[camera]\nkind = "folder"\npath = "frames"\n')
    code, out, err = lineside("camera-test", path, "--seconds", 0.5, "--rate", 40, "--out", tmp_path / "out", "--json")
    assert code == 0, err
    told = json.loads(out)
    one = told["cameras"][0]
    assert one.keys() >= KEYS and (one["camera"], one["kind"], one["name"]) == (1, "folder", "frames")
    assert 6 < one["frames"] == one["triggers"] and one["gaps"] == one["incomplete"] == one["unanswered"] == 0
    assert one["clipped"]["high_worst"] == pytest.approx(0.1) and one["focus"]["lowest"] < 0.2 * one["focus"]["median"]
    assert one["jitter_ms"].keys() == one["trigger_to_frame_ms"].keys() == {"p50", "p99", "max"}
    assert any("at 255" in text for text in one["advice"]) and any("sharpness" in text for text in one["advice"])
    sheet = read_image(Path(told["sheet"]))
    assert sheet.shape[2] == 3 and (sheet == (255, 40, 40)).all(axis=2).sum() > 500  # clipped pixels are red
    code, out, _ = lineside("camera-test", path, "--seconds", 0.3, "--rate", 40, "--out", tmp_path / "out")
    assert code == 0 and "contact sheet" in out and "camera 1" in out


def test_images_that_cannot_be_read_are_incomplete_and_end_with_1(lineside, tmp_path):
    (tmp_path / "frames").mkdir()
    write_image(tmp_path / "frames" / "0.png", texture())
    (tmp_path / "frames" / "1.png").write_bytes(b"nothing")
    path = line_file(tmp_path, '[camera]\nkind = "folder"\npath = "frames"\n')
    code, out, _ = lineside("camera-test", path, "--seconds", 0.2, "--rate", 40, "--out", tmp_path / "out", "--json")
    one = json.loads(out)["cameras"][0]
    assert code == 1 and one["incomplete"] > 0 and one["unanswered"] == 0 and "cannot decode" in one["errors"][0]


@pytest.mark.parametrize("camera", ['[camera]\nkind = "folder"\npath = "missing"\n', '[camera]\nkind = "folder"\n'])
def test_bad_input_ends_with_2(lineside, tmp_path, camera):
    code, _, err = lineside("camera-test", line_file(tmp_path, camera), "--out", tmp_path / "out")
    assert code == 2 and "path" in err and not (tmp_path / "out").exists()


class Scripted:
    """A driver. script: each trigger's result: "frame", "incomplete", "lost", "ignored" or "gone". free: s a frame."""

    name, ids = "camera S1", (1, 1000)

    def __init__(self, script: list[str], free: float = 0.0) -> None:
        self._script, self._free = list(script), free
        self._ready: list[Grabbed] = []
        self._id, self._gone = 0, False
        self._image = texture()

    def connect(self) -> None:
        self._gone = False

    def trigger(self) -> None:
        what = self._script.pop(0) if self._script else "frame"
        if what == "gone":
            self._gone = True
        elif what != "ignored":
            self._id += 1
            if what != "lost":
                image = self._image if what == "frame" else None
                self._ready.append(Grabbed(image, self._id, time.monotonic(), exposure_us=400.0))

    def grab(self, timeout: float) -> Grabbed | None:
        if self._free:
            time.sleep(self._free)
            self.trigger()
        if self._gone:
            raise CameraError("the plug is out")
        until = time.monotonic() + timeout
        while not self._ready and time.monotonic() < until:
            time.sleep(0.001)
        return self._ready.pop(0) if self._ready else None

    def statistics(self) -> dict[str, int]:
        return {"missing_packets": 3}

    def disconnect(self) -> None:
        self._ready = []


@pytest.fixture
def scripted(monkeypatch):
    """Let the line's cameras be of a script. Returns the triggers that they were made with."""
    modes = []

    def put(*cameras: Scripted) -> list[str]:
        drivers = list(cameras)

        def make(sections, folder):
            modes.append(sections[0].trigger)
            return LiveCamera(drivers.pop(0), sections[0].trigger, 10.0)

        monkeypatch.setattr("edge.tools.camera_test.trial.make_camera", make)
        return modes

    return put


CUSTOM = '[camera]\nkind = "custom"\ndriver = "mine.py:Mine"\n'


def test_frames_that_are_lost_incomplete_or_unanswered_are_counted(scripted, lineside, tmp_path):
    scripted(Scripted(["frame", "frame", "incomplete", "frame", "lost", "ignored", "frame", "frame"]))
    path, sheets = line_file(tmp_path, CUSTOM), tmp_path / "out"
    code, out, _ = lineside("camera-test", path, "--seconds", 0.4, "--rate", 20, "--out", sheets, "--json")
    told = json.loads(out)
    one = told["cameras"][0]
    assert code == 1 and (one["gaps"], one["incomplete"], one["unanswered"]) == (1, 1, 1)
    assert one["frames"] == one["triggers"] - 3 and one["name"] == "camera S1" and one["exposure_us"] == 400
    assert one["counters"]["missing_packets"] == 3 and one["counters"]["lost"] == 1 and one["device_times"]
    assert read_image(Path(told["sheet"])).shape[2] == 3


def test_a_lost_connection_is_reported_and_ends_with_1(scripted, lineside, tmp_path):
    scripted(Scripted(["frame", "gone"]))
    path, sheets = line_file(tmp_path, CUSTOM), tmp_path / "out"
    code, out, _ = lineside("camera-test", path, "--seconds", 0.3, "--rate", 10, "--out", sheets, "--json")
    one = json.loads(out)["cameras"][0]
    assert code == 1 and one["disconnects"] == 1 and any("plug is out" in text for text in one["advice"])


def test_two_cameras_are_tested_at_once_independently(scripted, tmp_path):
    scripted(Scripted([]), Scripted(["frame", "lost"]))
    section = CustomSection(kind="custom", driver="mine.py:Mine")
    one, other = try_cameras([section, section], tmp_path, seconds=0.3, rate=20, free=False)
    assert (one.report.gaps, other.report.gaps) == (0, 1) and not one.report.fails and one.report.camera == 1
    assert other.report.camera == 2


def test_a_camera_that_runs_free_gives_all_its_frames(scripted, tmp_path):
    modes = scripted(Scripted(["frame"] * 4 + ["lost"], free=0.01))
    section = CustomSection(kind="custom", driver="mine.py:Mine")
    tried, = try_cameras([section], tmp_path, seconds=0.6, rate=1, free=True)
    told = tried.report
    assert modes == ["off"] and told.triggers is None and told.gaps == 1 and told.frames > 10
    assert abs(told.frames - told.counters["frames"]) <= 3  # that came while it ended
    assert told.trigger_to_frame_ms is None and told.window_ms is None and told.interval_ms >= 10


def test_ctrl_c_ends_it_early_and_still_reports(scripted, tmp_path):
    scripted(Scripted([]))

    def interrupt(title: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    section = CustomSection(kind="custom", driver="mine.py:Mine")
    tried, = try_cameras([section], tmp_path, seconds=60, rate=5, free=False, progress=interrupt)
    assert 0 < tried.report.frames == tried.report.triggers and tried.report.seconds < 30


def test_measuring_too_slowly_loses_no_frames(scripted, tmp_path, monkeypatch):
    scripted(Scripted([]))
    monkeypatch.setattr("edge.tools.camera_test.album.look_at", lambda image: time.sleep(0.1) or look_at(image))
    section = CustomSection(kind="custom", driver="mine.py:Mine")
    tried, = try_cameras([section], tmp_path, seconds=0.5, rate=50, free=False)
    told = tried.report
    assert told.unanswered == told.dropped == 0 and 0 < told.measured < told.frames
    assert any("were measured" in text for text in told.advice)
