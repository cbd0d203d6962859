"""The pool of map arrays: an array is never reused while somebody holds it, or a view of it."""

from __future__ import annotations

import numpy as np
import pytest

from edge.bundle.bundle import load_bundle
from edge.bundle.rule import smooth
from edge.images.files import list_images, read_image
from edge.images.maps import MOST, MapPool
from edge.inspection.inspector import Inspector


def test_an_array_that_nobody_holds_is_given_out_again():
    pool = MapPool()
    first = pool.take((4, 5))
    assert first.shape == (4, 5) and first.dtype == np.float32
    first.fill(7)
    place = first.ctypes.data
    assert pool.take((4, 5)).ctypes.data != place and pool.take((5, 4)).ctypes.data != place
    del first
    assert pool.take((4, 5)).ctypes.data == place


def test_a_view_or_a_container_keeps_an_array():
    pool = MapPool()
    for holder in (lambda array: array[1:, 2:].T, lambda array: {"raw": array}, lambda array: memoryview(array)):
        held = holder(pool.take((4, 5)))
        taken = [pool.take((4, 5)) for _ in range(3)]
        inside = held["raw"] if isinstance(held, dict) else np.asarray(held)
        assert not any(np.shares_memory(inside, array) for array in taken)
        del held, taken, inside


def test_what_is_kept_for_later_is_bounded_and_stays_with_who_holds_it():
    pool = MapPool()
    held = [pool.take((2, number + 1)) for number in range(MOST + 3)]
    for number, array in enumerate(held):
        array.fill(number)
    assert len(pool._arrays) == MOST
    assert [float(array.max()) for array in held] == list(range(MOST + 3))


@pytest.mark.parametrize("steps", [("mean:5", "threshold"), ("median:5", "threshold", "open:5"), ("threshold",),
                                   ("close:3", "mean:3", "threshold", "erode:3", "dilate:5")])
def test_maps_are_filtered_as_without(steps):
    pool, rng = MapPool(), np.random.default_rng(0)
    for _ in range(3):
        values = rng.random((64, 48), np.float32)
        before = values.copy()
        assert np.array_equal(smooth(values, steps, pool), smooth(values, steps)) and np.array_equal(values, before)


def test_what_is_known_of_a_frame_stays_while_others_are_inspected(calibrated, cloth):
    frames = [read_image(path) for path in list_images(cloth / "test")][:12]
    with Inspector(load_bundle(calibrated), mode="latency") as inspector:
        found = [inspector.inspect(frame, 0.0) for frame in frames]
        kept = [(one.raw.copy(), one.grey.copy(), one.defective.copy()) for one in found]
        for frame in reversed(frames):
            inspector.inspect(frame, 0.0)
    for one, arrays in zip(found, kept, strict=True):
        assert all(np.array_equal(here, there) for here, there in zip((one.raw, one.grey, one.defective), arrays,
                                                                      strict=True))
