"""Camera `custom`: one message says what is wrong with a driver. The documented driver runs on Basler's emulator."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest

from edge.base.errors import CameraError
from edge.bundle.bundle import load_bundle
from edge.cameras.custom.loader import load_driver
from edge.cameras.live import LiveCamera
from edge.images.files import list_images, read_image
from edge.inspection.inspector import Inspector
from tests.rig import finish, reconcile

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "cameras.md").read_text()
BASLER = re.findall(r"```python\n(.*?)```", PAGE, re.S)
DRIVER = '''"""A driver without a camera."""
import numpy as np

from lineside import Grabbed


class Counting:
    name, ids = "counting", (1, 1000)

    def __init__(self, first, side=4):
        self.count, self.side = first, side

    def connect(self):
        self.connected = True

    def trigger(self):
        self.count += 1

    def grab(self, timeout):
        return Grabbed(np.zeros((self.side, self.side, 1), np.uint8), self.count)

    def statistics(self):
        return {"grabbed": self.count}

    def disconnect(self):
        self.connected = False
'''
if find_spec("pypylon") is None:
    warnings.warn("NO PYPYLON: run make setup", stacklevel=1)
needs_pypylon = pytest.mark.skipif(find_spec("pypylon") is None, reason="NO PYPYLON: run make setup")


def load(folder: Path, text: str | None = DRIVER, driver: str = "counting.py:Counting", **options):
    if text is not None:
        (folder / "counting.py").write_text(text)
    return load_driver(driver, options, folder)


def test_a_driver_is_created_with_its_options_and_its_results_are_passed_on(tmp_path):
    driver = load(tmp_path, first=7)
    driver.connect()
    driver.trigger()
    grabbed = driver.grab(0.1)
    assert (driver.name, driver.ids, driver.statistics()) == ("counting", (1, 1000), {"grabbed": 8})
    assert grabbed.frame_id == 8 and grabbed.image.shape == (4, 4, 1)
    driver.disconnect()


def test_name_and_ids_are_read_again_after_connecting(tmp_path):
    text = DRIVER.replace("self.connected = True", 'self.name, self.ids = "camera 5", (1, 65535)')
    driver = load(tmp_path, text, first=7)
    driver.connect()
    assert (driver.name, driver.ids) == ("camera 5", (1, 65535))


@pytest.mark.parametrize(("driver", "words"), [
    ("nowhere.py:Counting", "no driver at .*nowhere.py; expected a Python file"),
    ("counting.py:Countin", "no class 'Countin'.*'Counting'"),
    ("counting.py:Xyz", "no class 'Xyz'.*expected Counting"), ("counting.py", "FILE.py:CLASS"),
    ("counting:Counting", "FILE.py:CLASS"),
    ("counting.py:np", "no class 'np'"), ("counting.py:Grabbed", "wrong options"),
])
def test_a_missing_driver_is_an_error(tmp_path, driver, words):
    with pytest.raises(CameraError, match=words):
        load(tmp_path, driver=driver, first=1)


@pytest.mark.parametrize(("options", "words"), [
    ({}, "missing a required argument: 'first'; expected first, side=4"),
    ({"first": 1, "sid": 2}, "'sid'; expected first, side=4"),
])
def test_wrong_options_are_an_error_that_lists_the_right_ones(tmp_path, options, words):
    with pytest.raises(CameraError, match=words):
        load(tmp_path, **options)


@pytest.mark.parametrize(("old", "new", "words"), [
    ("import numpy as np", "import numbpy",
     r"ModuleNotFoundError: No module named 'numbpy' \(line 2 of .*counting.py\)"),
    ("class Counting:", "class Counting", r"SyntaxError: .* \(line 7 of"),
    ("import numpy as np", "1 / 0", "ZeroDivisionError.*line 2 of"),
    ("import numpy as np", "raise SystemExit(3)", "SystemExit: 3 .line 2 of"),
    ("self.count, self.side = first, side", "self.count = first / 0",
     "cannot be created; got ZeroDivisionError.*line 11 of"),
    ("def trigger", "def triger", r"got a class without trigger\(\); expected connect\(\), trigger\(\)"),
    ('name, ids = "counting", (1, 1000)', 'name = "counting"', "got a class without ids; expected"),
    ("def grab(self, timeout)", "def grab(self)", r"grab\(\) of .* cannot be called.*expected grab\(timeout\)"),
])
def test_a_bad_driver_is_an_error_that_names_the_line(tmp_path, old, new, words):
    assert old in DRIVER
    with pytest.raises(CameraError, match=words):
        load(tmp_path, DRIVER.replace(old, new), first=1)


@pytest.mark.parametrize(("old", "new", "words"), [
    ("self.connected = True", "self.camera.open()",
     r"connect\(\) of the driver failed; got AttributeError: .* \(line 14 of"),
    ("self.connected = True", 'raise IOError("unplugged")', r"got OSError: unplugged \(line 14 of"),
    ("(1, 1000)", "(5, 5)", "not a range of frame ids; got .5, 5."),
    ("(1, 1000)", "7", "not a range of frame ids; got 7"),
])
def test_a_driver_that_cannot_connect_is_an_error_that_names_the_line(tmp_path, old, new, words):
    driver = load(tmp_path, DRIVER.replace(old, new), first=1)
    with pytest.raises(CameraError, match=words):
        driver.connect()


@pytest.mark.parametrize(("image", "words"), [
    ("np.zeros((4, 4), np.uint8)", r"got uint8 \[4, 4\]"),
    ("np.zeros((4, 4, 1), np.uint16)", r"got uint16 \[4, 4, 1\]"),
    ("np.zeros((4, 4, 4), np.uint8)", r"got uint8 \[4, 4, 4\]"),
    ("np.zeros((4, 8, 1), np.uint8)[:, ::2]", "C-contiguous"),
    ("[[1, 2]]", "got list"),
])
def test_images_of_the_wrong_type_are_an_error(tmp_path, image, words):
    driver = load(tmp_path, DRIVER.replace("np.zeros((self.side, self.side, 1), np.uint8)", image), first=1)
    with pytest.raises(CameraError, match=words):
        driver.grab(0.1)


def test_a_driver_grabs_a_frame_or_none(tmp_path):
    assert load(tmp_path, re.sub("return Grabbed.*", "return None", DRIVER), first=1).grab(0.1) is None
    assert load(tmp_path, re.sub(r"Grabbed\(np.*, self", "Grabbed(None, self", DRIVER), first=1).grab(0.1).image is None
    with pytest.raises(CameraError, match=r"grab\(\) of counting returned no frame; got ndarray"):
        load(tmp_path, re.sub("return Grabbed.*", "return np.zeros(4)", DRIVER), first=1).grab(0.1)


def test_a_closed_driver_keeps_its_statistics(tmp_path):
    camera = LiveCamera(load(tmp_path, first=7), "software", 1.0)
    camera.open()
    assert camera.counters()["grabbed"] == 7
    camera.close()
    assert camera.counters()["grabbed"] == 7 and camera.counters()["disconnects"] == 0


def test_a_driver_written_for_0_1_works_and_each_old_path_warns_once_with_the_drivers_line(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "edge.errors", raising=False)  # it warns when it is first imported
    old = "from edge.cameras.live import Driver, Grabbed\nfrom edge.errors import CameraError"
    text = DRIVER.replace("from lineside import Grabbed", old)
    text = text.replace("self.count += 1", 'raise CameraError("unplugged")')
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        driver = load(tmp_path, text, first=7)
    told = [(one.category, one.filename, one.lineno, str(one.message).split(" will be")[0]) for one in caught]
    path = str(tmp_path / "counting.py")
    assert told == [(FutureWarning, path, 4, "edge.cameras.live.Driver"),
                    (FutureWarning, path, 4, "edge.cameras.live.Grabbed"), (FutureWarning, path, 5, "edge.errors")]
    assert all("from lineside import" in str(one.message) for one in caught)
    driver.connect()
    assert driver.grab(0.1).frame_id == 7
    with pytest.raises(CameraError, match="unplugged"):
        driver.trigger()


def with_camera(line, camera: str) -> None:
    path = line.folder / "line.toml"
    text = path.read_text()
    begin, end = text.index("[camera]"), text.index("[plc]")
    path.write_text(f'{text[:begin]}[camera]\nkind = "custom"\n{camera}\n{text[end:]}')


def test_a_line_whose_driver_fails_does_not_start_and_says_why(line):
    line.plc(0)
    (line.folder / "counting.py").write_text(DRIVER.replace("self.connected = True", "1 / 0"))
    with_camera(line, 'driver = "counting.py:Counting"\noptions = { first = 1 }')
    process = line.run()
    _, err = finish(process)
    assert process.returncode == 2 and "ZeroDivisionError" in err and "line 14 of" in err and "Traceback" not in err


def test_the_documented_driver_has_at_most_sixty_lines():
    assert len(BASLER) == 1 and len(BASLER[0].splitlines()) <= 60


PARTS, BAD_AT, BAD = 1000, 400, 9
EMULATOR = f'''
import json, sys, time
from pathlib import Path
from edge.cameras.kinds import make_camera
from edge.cameras.custom.section import CustomSection

size = {{"Width": 96, "Height": 64}}
options = [{{"serial": "0815-0000", "features": size}},
           {{"serial": "0815-0001", "features": {{**size, "PixelFormat": "RGB8Packed"}}}}]
sections = [CustomSection(kind="custom", driver="basler.py:BaslerCamera", options=given, window_ms=10_000)
            for given in options]
camera = make_camera(sections, Path(sys.argv[1]))
camera.open()
frames, shapes = [], set()
for part in range(1, {PARTS} + 1):
    if part == {BAD_AT}:
        emulated = camera._cameras[0]._driver._driver._camera
        emulated.ForceFailedBufferCount.Value = {BAD}
        emulated.ForceFailedBuffer.Execute()
    camera.expose(part, part, None, time.monotonic())
    for _ in range(2):
        frame = camera.next(30.0)
        if frame.image is not None:
            shapes.add((frame.camera, *frame.image.shape, str(frame.image.dtype)))
        frames.append([frame.camera, frame.frame_id, frame.image is not None, frame.complete, frame.cause,
                       frame.connection])
left = camera.next(0.2)
camera.close()
print(json.dumps({{"frames": frames, "shapes": sorted(shapes), "counters": camera.counters(),
                  "left": left is not None}}))
'''


@needs_pypylon
def test_two_emulated_cameras_give_one_frame_for_each_software_trigger_and_bad_ones_are_accounted_for(tmp_path):
    (tmp_path / "basler.py").write_text(BASLER[0])
    done = subprocess.run([sys.executable, "-c", EMULATOR, str(tmp_path)], capture_output=True, text=True, timeout=120,
                          check=False, env={**os.environ, "PYLON_CAMEMU": "2", "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    bad = range(BAD_AT - 1, BAD_AT - 1 + BAD)
    for camera in (0, 1):
        frames = [frame[1:] for frame in told["frames"] if frame[0] == camera]
        assert frames == [[id, True, True, None, 0] if camera or id not in bad else [id, False, False, "incomplete", 0]
                          for id in range(PARTS)]
    assert told["shapes"] == [[0, 64, 96, 1, "uint8"], [1, 64, 96, 3, "uint8"]] and not told["left"]
    counters = told["counters"]
    assert counters.pop("frames") == 2 * PARTS and counters.pop("incomplete") == BAD and not any(counters.values())


@needs_pypylon
def test_a_line_inspects_what_the_documented_driver_delivers_and_mixes_no_parts_up(line, cloth_parts, monkeypatch):
    monkeypatch.setenv("PYLON_CAMEMU", "1")
    (line.folder / "basler.py").write_text(BASLER[0])
    grey = [read_image(path) for path in list_images(cloth_parts)]
    height, width = grey[0].shape[:2]
    features = (f'Width = {width}, Height = {height}, TestImageSelector = "Off", ImageFilename = "{cloth_parts}", '
                'ImageFileMode = "On"')
    with_camera(line, f'driver = "basler.py:BaslerCamera"\nwindow_ms = 60\n'
                      f'options = {{ serial = "0815-0000", features = {{ {features} }} }}')
    plc = line.plc(24, rate=8)
    process = line.run("--parts", "24")
    ledger, err = finish(process)
    summary, _ = finish(plc)
    rows = line.rows()
    assert process.returncode == 0, err
    reconcile(ledger, summary, rows)
    untriggered = [row for row in rows if row["cause"] == "camera"]  # on a machine that is too busy
    frames = ledger["frames"]
    assert frames["frames"] + len(untriggered) == 24
    assert frames["incomplete"] == frames["lost"] == frames["disconnects"] == 0
    bundle = load_bundle(line.folder / "bundle")
    threshold = bundle.calibrated_threshold("fp32", "openvino").value
    assert {row["verdict"] for row in rows} >= {"PASS", "REJECT"}
    with Inspector(bundle, threads=1) as inspector:
        expected = [inspector.inspect(image, threshold) for image in grey]
    parts = [row for row in rows if row not in untriggered]
    for number, row in enumerate(parts):  # each exposure shows the next picture
        if row["verdict"] != "UNINSPECTED":
            assert row["image"] == f"Basler 0815-0000: frame {number}"
            assert row["score"] == expected[number % len(grey)].score
