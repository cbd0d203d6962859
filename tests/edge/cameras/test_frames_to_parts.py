"""Frames to parts: none is ever given to another part, whatever is lost, doubled, late or overtaken."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.cameras.matching import Matcher
from edge.part.events import Expose
from edge.part.frame import CameraFrame
from edge.part.verdict import Cause

PITCH, COUNTS, LATE = 0.1, 100, 0.01
IMAGE = np.zeros((1, 1, 1), np.uint8)


class Bench:
    """A matcher with a clock of its own."""

    def __init__(self, match, **windows):
        self.now = 0.0
        self.matcher = Matcher(match, now=lambda: self.now, **windows)

    def trigger(self, part, at, encoder=None, trigger=None):
        self.now = max(self.now, at)
        self.matcher.expose(Expose(part, encoder, trigger or part, at))

    def frame(self, id, at, encoder=None, trigger=0):
        self.now = max(self.now, at)
        self.matcher.frame(CameraFrame(trigger, 0, id, at, IMAGE, encoder=encoder))

    def taken(self):
        taken = []
        while (frame := self.matcher.take()) is not None:
            taken.append((frame.frame_id, frame.part))
        return taken

    def lost(self):
        lost = []
        while (unmatched := self.matcher.unmatched()) is not None:
            lost.append(unmatched.part)
        return lost


def by_encoder(window=20):
    return Bench("encoder", window_counts=window, window_s=0.03)


def by_id():
    return Bench("frame-id", window_s=0.03)


def test_a_frame_that_names_its_trigger_passes_unchanged():
    bench = Bench("trigger")
    bench.matcher.frame(replace(CameraFrame(7, 3, 1, 0.0, IMAGE), source="a.png"))
    frame = bench.matcher.take()
    assert (frame.trigger, frame.part, frame.source) == (7, 3, "a.png") and bench.matcher.take() is None


def test_a_frame_gets_the_only_trigger_in_its_window_whichever_comes_first():
    bench = by_encoder()
    bench.trigger(1, 0.0, 1000)
    bench.frame(50, 0.01, 1015)
    assert bench.taken() == [(50, 1)]
    bench.frame(51, 0.11, 1085)
    assert bench.taken() == [] and bench.matcher.holds
    bench.trigger(2, 0.12, 1100)
    assert bench.taken() == [(51, 2)] and not bench.matcher.holds and bench.lost() == []


def test_encoder_counts_wrap():
    bench = by_encoder()
    bench.trigger(1, 0.0, (1 << 31) - 5)
    bench.frame(1, 0.01, -(1 << 31) + 5)
    assert bench.taken() == [(1, 1)]


def test_a_frame_that_may_show_two_parts_leaves_both_unmatched():
    bench = by_encoder()
    bench.trigger(1, 0.0, 1000)
    bench.trigger(2, 0.03, 1030)
    bench.frame(1, 0.031, 1015)
    assert bench.taken() == [] and bench.lost() == [1, 2]


def test_a_later_trigger_can_undo_the_match_of_the_part_before_it():
    bench = by_encoder()
    bench.trigger(1, 0.0, 1000)
    bench.frame(1, 0.01, 1015)
    bench.trigger(2, 0.03, 1030)
    assert bench.taken() == [] and bench.lost() == [1, 2] and bench.matcher.void(1) and bench.matcher.void(2)


def test_two_frames_that_may_show_one_part_leave_it_unmatched():
    bench = by_encoder()
    bench.trigger(1, 0.0, 1000)
    bench.frame(1, 0.01, 1005)
    assert bench.taken() == [(1, 1)]
    bench.frame(2, 0.02, 1010)
    assert bench.taken() == [] and bench.lost() == [1] and bench.matcher.void(1)


def test_a_frame_without_a_part_is_dropped_and_counted():
    for bench in (by_encoder(), by_id()):
        bench.frame(1, 0.0, 1000)
        bench.now = 1.0
        assert bench.taken() == [] and not bench.matcher.holds and bench.matcher.without_part == 1


def test_the_offset_is_learned_from_the_first_frame_and_survives_losses_and_refused_triggers():
    bench = by_id()
    bench.trigger(10, 0.0, trigger=1)
    bench.frame(65_400, 0.01)
    assert bench.taken() == []  # another trigger may still come
    bench.frame(65_402, 0.21)  # 11 was refused, 12 comes over a slow link
    bench.trigger(12, 0.2, trigger=2)
    assert bench.taken() == [(65_400, 10), (65_402, 12)]
    bench.trigger(13, 0.3, trigger=3)
    bench.trigger(14, 0.4, trigger=4)
    bench.frame(65_404, 0.4)
    bench.frame(65_403, 0.3)  # overtaken
    assert bench.taken() == [(65_404, 14), (65_403, 13)] and bench.lost() == []


def test_if_id_and_time_disagree_neither_part_gets_the_frame_and_the_offset_is_learned_again():
    bench = by_id()
    bench.trigger(1, 0.0)
    bench.frame(1, 0.0)
    bench.now = 0.05
    assert bench.taken() == [(1, 1)]
    bench.trigger(2, 0.1)
    bench.trigger(3, 0.2)
    bench.frame(2, 0.2)  # the camera missed a trigger and did not count it
    assert bench.taken() == [] and bench.lost() == [2, 3]
    bench.trigger(4, 0.3)
    bench.frame(3, 0.3)
    assert bench.taken() == [(3, 4)]


def test_an_unknown_id_at_the_time_of_a_part_leaves_that_part_unmatched():
    bench = by_id()
    bench.trigger(1, 0.0)
    bench.frame(1, 0.0)
    bench.trigger(2, 0.1)
    bench.frame(900, 0.1)
    assert bench.taken() == [(1, 1)]
    bench.now = 0.2
    assert bench.taken() == [] and bench.lost() == [2]


FATES = st.sampled_from(["fine", "lost", "doubled", "refused", "late"])


@given(st.lists(st.tuples(FATES, st.integers(-15, 15), st.booleans()), min_size=1, max_size=40),
       st.sampled_from(["encoder", "frame-id"]))
def test_no_frame_is_given_to_another_part(parts, match):
    bench = by_encoder() if match == "encoder" else by_id()
    events = []
    for number, (fate, off, frame_first) in enumerate(parts, 1):
        at, encoder = number * PITCH, number * COUNTS
        if fate != "refused":
            events.append((at + (LATE if frame_first else 0), "trigger", number, at, encoder))
        for delay in {"lost": [], "doubled": [0.001, 0.002], "late": [0.15]}.get(fate, [0.001]):
            events.append((at + delay, "frame", number, at + 0.001, encoder + off))
    taken = []
    for moment, what, number, at, encoder in sorted(events):
        bench.now = moment
        if what == "trigger":
            bench.matcher.expose(Expose(number, encoder, number, at))
        else:
            bench.matcher.frame(CameraFrame(0, 0, 1000 + number, at, IMAGE, encoder=encoder))
        taken += bench.taken()
    assert [(id - 1000, part) for id, part in taken if id - 1000 != part] == []
    assert len(taken) == len({part for _, part in taken})
    bench.now += 1.0
    taken = [*taken, *bench.taken()]
    fine = {n for n, (fate, *_) in enumerate(parts, 1) if fate in ("fine", "doubled", "late")}
    first = next((fate for fate, *_ in parts if fate != "refused"), "refused")
    if match == "encoder" or first in ("fine", "doubled"):
        assert {part for _, part in taken} == fine
    assert {part for _, part in taken} <= fine
    assert bench.lost() == []


@pytest.mark.parametrize("late", [0.005, 0.02, 0.043, 0.055, 0.11])
@pytest.mark.parametrize("pitch", [0.05, 0.06])
def test_slow_frames_of_a_sensor_triggered_camera_never_go_to_another_part(pitch, late):
    bench = Bench("frame-id", window_s=0.01)
    events = [(number * pitch, "trigger", number) for number in range(1, 30)]
    events += [(number * pitch + late, "frame", number) for number in range(1, 30)]
    taken = []
    for at, what, number in sorted(events):
        if what == "trigger":
            bench.trigger(number, at)
        else:
            bench.frame(1000 + number, at)
        taken += bench.taken()
    bench.now += 1.0
    taken += bench.taken()
    assert all(id == 1000 + part for id, part in taken)
    assert bool(taken) == (late <= 0.01)


def test_sensor_triggered_frames_are_matched_only_after_an_isolated_part():
    bench = by_id()
    for number in (1, 2):
        bench.trigger(number, number / 10)
    bench.frame(2, 0.2)  # the first one's was lost
    bench.now = 0.3
    assert bench.taken() == [] and "no other part in the 0.5 s before it" in bench.matcher.remark()
    bench.trigger(9, 1.0)
    bench.frame(9, 1.02)
    bench.now = 1.1
    assert bench.taken() == [(9, 9)]
    bench.trigger(10, 1.2)
    bench.frame(10, 1.24)  # held against the one before it
    assert bench.taken() == [(10, 10)] and bench.lost() == []


# By the triggers that the camera was given

class Triggered:
    """A matcher of a triggered camera, with a clock of its own."""

    def __init__(self):
        self.now, self.at = 0.0, {}
        self.matcher = Matcher("trigger", window_s=0.03, now=lambda: self.now)

    def trigger(self, number, at):
        self.now = self.at[number] = at
        self.matcher.expose(Expose(100 + number, None, number, at))

    def frame(self, id, at, **more):
        self.now = max(self.now, at if at == at else 0.0)
        self.matcher.frame(CameraFrame(0, 0, id, at, IMAGE, **more))

    def first(self, number, id, **more):
        """A frame that knows its trigger, such as the first of a connection."""
        self.matcher.frame(CameraFrame(number, 100 + number, id, self.at[number], IMAGE, **more))

    def skip(self, number, at):
        self.matcher.frame(CameraFrame(number, 100 + number, 0, at, None, cause=Cause.CAMERA, exposed=False))

    def taken(self):
        return [(frame.frame_id, frame.trigger) for frame in iter(self.matcher.take, None)]


def test_frames_are_counted_against_the_triggers_that_the_camera_was_given():
    bench = Triggered()
    bench.trigger(1, 0.0)
    bench.first(1, 500)
    bench.trigger(2, 0.1)
    bench.skip(2, 0.1)
    bench.trigger(3, 0.2)
    bench.frame(501, 0.205)
    assert bench.taken() == [(500, 1), (0, 2), (501, 3)] and bench.matcher.unmatched() is None


def test_a_skipped_trigger_shifts_the_later_ones():
    bench = Triggered()
    bench.trigger(1, 0.0)
    bench.first(1, 500)
    bench.trigger(2, 0.1)
    bench.trigger(3, 0.2)
    bench.skip(2, 0.1)
    bench.frame(501, 0.205)
    assert bench.taken() == [(500, 1), (0, 2), (501, 3)]


def test_a_new_connection_learns_its_offset_again_and_frames_of_the_old_one_are_dropped():
    bench = Triggered()
    bench.trigger(1, 0.0)
    bench.first(1, 500)
    bench.trigger(2, 0.1)  # lost with its camera
    bench.trigger(3, 1.0)
    bench.first(3, 1, connection=1)
    bench.frame(501, 0.105, connection=0)
    bench.trigger(4, 1.1)
    bench.frame(2, 1.105, connection=1)
    assert bench.taken() == [(500, 1), (1, 3), (2, 4)] and bench.matcher.without_part == 1


def test_a_trigger_that_the_camera_ignored_moves_no_frame_to_another_part_even_with_too_wide_a_window():
    bench = Triggered()
    bench.trigger(1, 0.0)
    bench.first(1, 7)
    bench.trigger(2, 0.1)  # ignored, and not counted
    bench.trigger(3, 0.12)
    bench.frame(8, 0.121)
    assert bench.taken() == [(7, 1)]
    assert [bench.matcher.unmatched().part for _ in range(2)] == [102, 103]


def test_a_frame_that_names_its_trigger_sets_the_offset_for_later_ids():
    bench = Triggered()
    for number in (1, 2, 3):
        bench.trigger(number, number / 100)  # all of them within the window of each
    bench.first(1, 7)
    bench.frame(8, 0.025)
    bench.trigger(4, 1.0)  # is lost with its camera
    bench.trigger(5, 1.01)
    bench.first(5, 1, connection=1)
    bench.trigger(6, 1.02)
    bench.frame(2, 1.03, connection=1)
    assert bench.taken() == [(7, 1), (8, 2), (1, 5), (2, 6)] and bench.matcher.unmatched() is None


def test_a_lost_frame_is_matched_by_its_id_without_a_time():
    bench = Triggered()
    for number in (1, 2, 3):
        bench.trigger(number, number / 10)
    bench.first(1, 500)
    bench.frame(502, 0.305)
    bench.frame(501, math.nan)
    assert bench.taken() == [(500, 1), (502, 3), (501, 2)]


def test_a_late_frame_makes_the_camera_settle_and_no_frame_is_matched_by_time_alone():
    bench = Triggered()
    bench.trigger(1, 0.0)
    bench.first(1, 1)
    bench.trigger(2, 0.05)
    bench.trigger(3, 0.1)
    bench.frame(2, 0.093)  # of 2 by its id, 43 ms after it
    bench.trigger(4, 0.15)
    bench.frame(3, 0.152)  # in time for 4, and of 3
    bench.now = 0.5
    assert bench.taken() == [(1, 1)] and bench.matcher.unsettled
    assert {lost.trigger for lost in iter(bench.matcher.unmatched, None)} == {2, 3}
    bench.trigger(5, 1.0)
    bench.skip(5, 1.0)
    bench.trigger(6, 1.5)
    bench.first(6, 5, connection=1)
    bench.trigger(7, 1.6)
    bench.frame(6, 1.605, connection=1)
    assert bench.taken() == [(0, 5), (5, 6), (6, 7)]


def test_triggers_that_were_never_exposed_shift_nothing():
    bench = Triggered()
    bench.trigger(1, 0.0)
    bench.first(1, 500)
    bench.trigger(4, 0.1)  # two part ids came twice
    bench.frame(501, 0.105)
    assert bench.taken() == [(500, 1), (501, 4)]


def test_a_lost_frame_of_a_new_connection_shows_no_part():
    bench = Triggered()
    bench.trigger(1, 0.0)
    bench.frame(7, math.nan, connection=1)
    bench.now = 1.0
    assert bench.taken() == [] and bench.matcher.without_part == 1 and bench.matcher.remark() is None
