"""`LiveCamera` with a scripted, fake driver: ids, clocks, triggers, lost connections. test_gige.py has a real one."""

from __future__ import annotations

import math
import queue
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edge.cameras.live as live
from edge.base.errors import CameraError
from edge.cameras.driver import Grabbed
from edge.cameras.frame_ids import DRIFT, LISTED_LOST, REORDER_WAIT, DeviceClock, FrameIds
from edge.cameras.live import SETTLE_PAUSE, LiveCamera
from edge.part.frame import CameraFrame
from edge.part.verdict import Cause

IMAGE = np.zeros((16, 16, 1), np.uint8)
FOREVER = 20.0  # s


class Script:
    """A driver that grabs what a test puts in: a Grabbed, or an exception."""

    name = "camera S1"
    ids = (1, 65535)

    def __init__(self):
        self.frames: queue.Queue = queue.Queue()
        self.triggers = 0
        self.connects = self.disconnects = 0
        self.refuse: Exception | None = None  # a connection
        self.fail: Exception | None = None  # a trigger

    def connect(self):
        if self.refuse is not None:
            raise self.refuse
        self.connects += 1

    def trigger(self):
        self.triggers += 1
        if self.fail is not None:
            raise self.fail

    def grab(self, timeout):
        try:
            frame = self.frames.get(timeout=min(timeout, 0.01))
        except queue.Empty:
            return None
        if isinstance(frame, Exception):
            raise frame
        return frame

    def statistics(self):
        return {"resent_packets": 3}

    def disconnect(self):
        self.disconnects += 1


@pytest.fixture
def camera(monkeypatch):
    """A live camera over a script, open: make(trigger, window) returns both."""
    monkeypatch.setattr(live, "RECONNECT_EVERY", 0.02)
    opened = []

    def make(trigger="software", window=FOREVER):
        script = Script()
        opened.append(LiveCamera(script, trigger, window))
        opened[-1].open()
        return opened[-1], script

    yield make
    for one in opened:
        one.close()


def next_frame(camera) -> CameraFrame:
    """The next frame; a lost camera is told by an exception, which is passed over."""
    deadline = time.monotonic() + FOREVER
    while time.monotonic() < deadline:
        try:
            if (frame := camera.next(0.1)) is not None:
                return frame
        except CameraError:
            continue
    raise AssertionError("no frame came")


def wait_until(condition) -> None:
    deadline = time.monotonic() + FOREVER
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


# Frame ids

def test_ids_continue_after_the_highest_one():
    ids = FrameIds(1, 65535)
    assert [ids.take(id, 0.0) for id in (65534, 65535, 1, 2)] == [(65534, 0), (65535, 0), (65536, 0), (65537, 0)]


def test_a_camera_that_starts_counting_again_is_noticed_by_its_clock_or_by_ids_that_rise():
    ids = FrameIds(1, 65535)
    ids.take(900, 0.0, 9.0)
    assert ids.take(900, 0.0, 9.0) is None
    with pytest.raises(ValueError, match="started counting again"):
        ids.take(1, 1.0, 10.0)
    ids = FrameIds(1, 65535)
    ids.take(900, 0.0)
    assert [ids.take(id, 1.0) for id in (1, 2)] == [None, None]
    with pytest.raises(ValueError, match="started counting again"):
        ids.take(3, 1.0)


def test_a_clock_that_was_set_is_noticed():
    clock = DeviceClock()
    clock.to_host(100.0, 5.0)
    with pytest.raises(ValueError, match="jumped"):
        clock.to_host(50.0, 6.0)


def test_a_gap_is_reported_with_the_next_frame_and_its_frames_once_they_are_overdue():
    ids = FrameIds(1, 65535)
    ids.take(65533, 0.0)
    assert ids.take(2, 1.0) == (65537, 3)
    assert ids.overdue(1.0 + REORDER_WAIT) == []
    assert ids.overdue(1.01 + REORDER_WAIT) == [65534, 65535, 65536] and ids.overdue(9.0) == []


def test_an_overtaken_frame_has_its_own_number_and_a_repeated_one_has_none():
    ids = FrameIds(1, 65535)
    assert [ids.take(id, 0.0) for id in (10, 12, 11, 11, 12)] == [(10, 0), (12, 1), (11, -1), None, None]
    assert ids.overdue(9.0) == []


def test_a_camera_that_starts_counting_again_is_reported():
    ids = FrameIds(1, 65535)
    ids.take(5000, 0.0)
    with pytest.raises(ValueError, match="frame id 1 after 5000"):
        ids.take(1, 0.0)


def test_only_the_newest_ids_of_a_long_gap_are_listed():
    ids = FrameIds(0, (1 << 64) - 1)
    ids.take(0, 0.0)
    assert ids.take(1001, 0.0) == (1001, 1000)
    assert ids.overdue(9.0) == list(range(1001 - LISTED_LOST, 1001))


@given(first=st.integers(1, 65535),
       steps=st.lists(st.tuples(st.sampled_from(["comes", "lost", "overtaken", "doubled"])), max_size=200))
def test_each_frame_gets_its_number_whatever_is_lost_doubled_or_overtaken(first, steps):
    ids = FrameIds(1, 65535)
    arrivals, held = [0], None  # frame by frame, one may be overtaken by the next
    lost = []
    for number, (fate,) in enumerate(steps, 1):
        if fate == "overtaken" and held is None:
            held = number
            continue
        if fate != "lost":
            arrivals += [number] * (2 if fate == "doubled" else 1)
        else:
            lost.append(number)
        if held is not None and fate != "lost":
            arrivals.append(held)
            held = None
    newest = max(arrivals)
    seen = set()
    for number in arrivals:
        taken = ids.take((first - 1 + number) % 65535 + 1, 0.0)
        assert (taken is None) == (number in seen)
        assert taken is None or taken[0] == first + number
        seen.add(number)
    missing = [first + number for number in (*lost, *([] if held is None else [held])) if number < newest]
    assert sorted(ids.overdue(9.0)) == sorted(missing)


# Clocks

def test_the_exposure_time_is_the_cameras_and_the_fastest_frame_sets_the_offset():
    clock = DeviceClock()
    assert clock.to_host(5.0, 100.5) == 100.5
    assert clock.to_host(6.0, 101.2) == 101.2  # 0.3 s less on its way
    assert clock.to_host(7.0, 102.9) == pytest.approx(102.2, abs=DRIFT * 2)


def test_a_slow_clock_is_followed():
    clock = DeviceClock()
    for second in range(1000):
        assert abs(clock.to_host(second * (1 - DRIFT / 2), float(second)) - second) < 1e-3


# Triggered by the line

def test_a_trigger_is_passed_on_and_its_frame_comes_with_its_number(camera):
    one, script = camera()
    one.expose(1, 11, None, time.monotonic())
    wait_until(lambda: script.triggers == 1)
    script.frames.put(Grabbed(IMAGE, 65535, 2.5, encoder=7, exposure_us=100.0))
    script.frames.put(Grabbed(IMAGE, 1))
    frame = next_frame(one)
    assert (frame.frame_id, frame.device_time, frame.encoder, frame.exposure_us) == (65535, 2.5, 7, 100.0)
    assert frame.image is IMAGE and frame.complete and frame.exposed and next_frame(one).frame_id == 65536


def test_the_first_frame_of_a_connection_belongs_to_the_only_trigger_however_late_it_comes(camera):
    one, script = camera()
    at = time.monotonic() - 5
    one.expose(1, 11, None, at)
    wait_until(lambda: script.triggers == 1)
    script.frames.put(Grabbed(None, 9, text="its head is missing"))
    frame = next_frame(one)
    assert (frame.trigger, frame.part, frame.host_time, frame.cause) == (1, 11, at, Cause.INCOMPLETE)
    script.frames.put(Grabbed(IMAGE, 10))
    assert next_frame(one).trigger == 0


def test_a_first_frame_that_may_belong_to_two_triggers_is_given_to_neither(camera):
    one, script = camera()
    for trigger in (1, 2):
        one.expose(trigger, 10 + trigger, None, time.monotonic())
    wait_until(lambda: script.triggers == 2)  # the second is given when no frame came for the first
    script.frames.put(Grabbed(IMAGE, 9))
    assert [(frame.trigger, frame.cause, frame.image) for frame in (next_frame(one), next_frame(one))] == [
        (1, Cause.UNMATCHED, None), (2, Cause.UNMATCHED, None)]
    one.expose(3, 13, None, time.monotonic())  # no trigger is given before none of their frames can come any more
    frame = next_frame(one)
    assert (frame.trigger, frame.cause, frame.exposed) == (3, Cause.UNMATCHED, False) and script.triggers == 2
    time.sleep(SETTLE_PAUSE)
    script.frames.put(Grabbed(IMAGE, 10))
    frame = next_frame(one)
    one.expose(4, 14, None, time.monotonic())
    wait_until(lambda: script.triggers == 3)
    script.frames.put(Grabbed(IMAGE, 11))
    again = next_frame(one)
    assert (frame.trigger, again.trigger, again.connection - frame.connection) == (0, 4, 1)


def test_a_trigger_that_is_too_old_is_not_given(camera):
    one, script = camera(window=0.1)
    one.expose(1, 11, None, time.monotonic() - 1)
    frame = next_frame(one)
    assert (frame.trigger, frame.part, frame.cause, frame.exposed) == (1, 11, Cause.CAMERA, False)
    assert script.triggers == 0
    assert "not triggered within 50 ms" in frame.text and one.counters()["untriggered"] == 1


def test_an_incomplete_frame_has_no_image(camera):
    one, script = camera()
    script.frames.put(Grabbed(None, 5, text="3 packets are missing"))
    frame = next_frame(one)
    assert (frame.complete, frame.image, frame.cause) == (False, None, Cause.INCOMPLETE)
    assert "3 packets are missing" in frame.text
    assert math.isnan(frame.host_time) and one.counters()["incomplete"] == 1


def test_a_frame_that_never_came_is_reported(camera):
    one, script = camera()
    script.frames.put(Grabbed(IMAGE, 5))
    script.frames.put(Grabbed(IMAGE, 7))
    frames = [next_frame(one) for _ in range(3)]
    assert [(frame.frame_id, frame.cause) for frame in frames] == [(5, None), (7, None), (6, Cause.INCOMPLETE)]
    assert frames[1].lost == 1 and one.counters()["lost"] == 1


def test_doubled_and_overtaken_frames_are_counted(camera):
    one, script = camera()
    for number in (5, 7, 6, 7):
        script.frames.put(Grabbed(IMAGE, number))
    assert [next_frame(one).frame_id for _ in range(3)] == [5, 7, 6]
    wait_until(lambda: one.counters()["doubled"] == 1)
    assert one.counters()["overtaken"] == 1 and one.counters()["lost"] == 0


# Lost connections

def test_a_lost_camera_is_reported_once_reconnected_and_counted(camera):
    one, script = camera()
    script.refuse = CameraError("still away")
    script.frames.put(CameraError("cable pulled"))
    with pytest.raises(CameraError, match="camera S1 is gone; got cable pulled"):
        while one.next(FOREVER) is None:
            continue
    one.expose(1, 11, 4, time.monotonic())
    frame = next_frame(one)
    assert (frame.trigger, frame.part, frame.cause, frame.exposed, frame.encoder) == (1, 11, Cause.CAMERA, False, 4)
    assert script.triggers == 0 and script.disconnects >= 1
    script.refuse = None
    wait_until(lambda: one.counters()["reconnects"] == 1)
    script.frames.put(Grabbed(IMAGE, 1))
    assert next_frame(one).connection == 1
    counters = one.counters()
    assert counters["disconnects"] == 1 and counters["resent_packets"] == 6  # of both connections


def test_a_trigger_that_fails_begins_a_new_connection(camera):
    one, script = camera()
    script.fail = CameraError("no answer")
    one.expose(1, 11, None, time.monotonic())
    frame = next_frame(one)
    assert (frame.trigger, frame.cause, frame.exposed) == (1, Cause.CAMERA, False) and "no answer" in frame.text
    script.fail = None
    wait_until(lambda: one.counters()["reconnects"] == 1)
    script.frames.put(Grabbed(IMAGE, 1))
    assert next_frame(one).connection == 1


def test_a_camera_that_starts_counting_again_begins_a_new_connection(camera):
    one, script = camera()
    script.frames.put(Grabbed(IMAGE, 30000))
    assert next_frame(one).connection == 0
    script.frames.put(Grabbed(IMAGE, 1))
    wait_until(lambda: script.connects == 2)
    script.frames.put(Grabbed(IMAGE, 2))
    assert next_frame(one).connection == 1


def test_a_closed_camera_keeps_its_counts(camera):
    one, script = camera()
    one.close()
    assert one.counters()["resent_packets"] == 3 and script.disconnects == 1


def test_a_camera_that_cannot_be_opened_is_freed():
    script = Script()
    script.refuse = CameraError("not there")
    with pytest.raises(CameraError, match="not there"):
        LiveCamera(script, "software", 1.0).open()
    assert script.disconnects == 1


# Not triggered by the line

def test_sensor_triggered_frames_are_delivered_unchanged(camera):
    one, script = camera("hardware")
    one.expose(1, 11, None, time.monotonic())
    script.frames.put(Grabbed(IMAGE, 9))
    assert (next_frame(one).trigger, script.triggers) == (0, 0)


def test_the_first_frame_after_a_trigger_is_taken_and_no_other(camera):
    one, script = camera("off")
    script.frames.put(Grabbed(IMAGE, 1))
    wait_until(lambda: one.counters()["unasked"] == 1)
    at = time.monotonic()
    one.expose(3, 33, 4, at)
    script.frames.put(Grabbed(IMAGE, 2))
    script.frames.put(Grabbed(IMAGE, 3))
    frame = next_frame(one)
    assert (frame.trigger, frame.part, frame.encoder, frame.frame_id, frame.host_time) == (3, 33, 4, 2, at)
    wait_until(lambda: one.counters()["unasked"] == 2)


def test_two_parts_that_one_frame_may_show_are_unmatched(camera):
    one, script = camera("off")
    for trigger in (1, 2):
        one.expose(trigger, 10 + trigger, None, time.monotonic())
    script.frames.put(Grabbed(IMAGE, 1))
    frames = [next_frame(one), next_frame(one)]
    assert [(frame.part, frame.cause, frame.image) for frame in frames] == [
        (11, Cause.UNMATCHED, None), (12, Cause.UNMATCHED, None)]


def test_a_part_without_a_frame_is_reported(camera):
    one, _ = camera("off", window=0.05)
    one.expose(1, 11, None, time.monotonic())
    frame = next_frame(one)
    assert (frame.part, frame.cause) == (11, Cause.NO_FRAME) and "no frame within 50 ms" in frame.text


def test_parts_that_wait_for_a_frame_end_when_the_camera_is_lost(camera):
    one, script = camera("off")
    one.expose(1, 11, None, time.monotonic())
    script.frames.put(CameraError("cable pulled"))
    frame = next_frame(one)
    assert (frame.part, frame.cause) == (11, Cause.CAMERA) and "cable pulled" in frame.text
