"""Several frames in flight: the same verdicts as one at a time, in order, even if some fail."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest

from edge.base.errors import EngineError, InputError
from edge.bundle.bundle import load_bundle
from edge.images.files import list_images, read_image
from edge.inspection.inspector import Inspector


def pipelined(inspector, frames, threshold):
    under_way, found = deque(), []
    for frame in frames:
        if not inspector.room:
            found.append(inspector.finish(under_way.popleft(), threshold))
        under_way.append(inspector.start(frame))
    return found + [inspector.finish(job, threshold) for job in under_way]


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("mode", ["latency", "throughput"])
def test_frames_that_overlap_have_the_scores_of_frames_that_do_not(calibrated, cloth, mode, backend):
    bundle = load_bundle(calibrated)
    threshold = bundle.threshold("fp32", "openvino").value
    frames = [read_image(path) for path in list_images(cloth / "test")]
    with Inspector(bundle, backend=backend, threads=2) as single, Inspector(bundle, backend=backend, threads=2,
                                                                            mode=mode) as several:
        assert several.room == {"latency": 2, "throughput": 3}[mode]
        alone = [single.inspect(frame, threshold) for frame in frames]
        together = pipelined(several, frames, threshold)
        assert several.room == {"latency": 2, "throughput": 3}[mode]
    assert [found.score for found in together] == pytest.approx([found.score for found in alone], rel=1e-4)
    for one, other in zip(alone, together, strict=True):
        if abs(one.score - threshold) > 1e-4 * threshold:
            assert one.verdict == other.verdict
        assert other.grey.shape == one.grey.shape and np.allclose(other.grey, one.grey, atol=1e-4 * one.grey.max())


def test_frames_that_are_waited_for_together_have_the_scores_of_frames_that_are_not(calibrated, cloth):
    frames = [read_image(path) for path in list_images(cloth / "test")]
    with Inspector(load_bundle(calibrated), backend="openvino", threads=2, mode="throughput") as inspector:
        alone = [inspector.inspect(frame, None).score for frame in frames]
        assert inspector.warm_up() > 0
        inspector.group(0.010, 0.034)
        assert (inspector.together, inspector.room) == (4, 6)
        under_way, found = deque(), []
        for frame in frames:
            if not inspector.room:
                inspector.wait(under_way[inspector.together - 1])
                found += [inspector.finish(under_way.popleft(), None).score for _ in range(inspector.together)]
            under_way.append(inspector.start(frame))
        found += [inspector.finish(job, None).score for job in under_way]
        assert inspector.room == 6
    assert found == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize(("mode", "interval", "hold", "together"), [
    ("throughput", 0.001, 0.040, 8), ("throughput", 0.030, 0.040, 2), ("throughput", 0.050, 0.040, 1),
    ("throughput", 0.001, 0.0, 1),
    ("latency", 0.001, 0.040, 1), ("single", 0.001, 0.040, 1)])
def test_only_a_fast_network_in_throughput_mode_is_waited_for_together(calibrated, mode, interval, hold, together):
    with Inspector(load_bundle(calibrated), backend="openvino", threads=2, mode=mode) as inspector:
        room = inspector.room
        inspector.group(interval, hold)
        assert inspector.together == together and inspector.room == room + together - 1


def test_what_fails_is_told_of_its_own_frame_and_frees_its_slot(calibrated, cloth, monkeypatch):
    frames = [read_image(path) for path in list_images(cloth / "test" / "good")[:8]]
    with Inspector(load_bundle(calibrated), backend="openvino", mode="latency") as inspector:
        expected = [inspector.inspect(frame, None).score for frame in frames]
        with pytest.raises(InputError):
            inspector.start(frames[0][:20, :20])
        slot = inspector._free[-1]
        wait = slot.wait
        monkeypatch.setattr(slot, "wait", lambda timeout: (_ for _ in ()).throw(EngineError("it failed")))
        first, second = inspector.start(frames[0]), inspector.start(frames[1])
        assert inspector.room == 0
        with pytest.raises(EngineError, match="it failed"):
            inspector.finish(first, None)
        assert inspector.finish(second, None).score == pytest.approx(expected[1], rel=1e-4)
        monkeypatch.setattr(slot, "wait", wait)
        monkeypatch.setattr(slot, "start", lambda n: (_ for _ in ()).throw(EngineError("it did not start")))
        jobs = [inspector.start(frame) for frame in frames[:2]]
        failed = 0
        for job, score in zip(jobs, expected, strict=False):
            try:
                assert inspector.finish(job, None).score == pytest.approx(score, rel=1e-4)
            except EngineError:
                failed += 1
        assert failed >= 1 and inspector.room == 2
        monkeypatch.undo()
        assert [found.score for found in pipelined(inspector, frames, None)] == pytest.approx(expected, rel=1e-4)
