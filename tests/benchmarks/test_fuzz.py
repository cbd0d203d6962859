"""What the decoders make of garbage; a million strings are for benchmarks/fuzz.py."""

from __future__ import annotations

import pytest

from benchmarks.fuzz import fuzz, line_frame, plc_frame
from edge.plc.wire import Decoder
from simulation.plc.wire import Reader


@pytest.mark.parametrize(("decoder", "make"), [(Decoder, line_frame), (Reader, plc_frame)])
def test_garbage_makes_no_frame_and_loses_none(decoder, make):
    result = fuzz(decoder(), make, 20_000, 1)
    assert result["exceptions"] == result["false_frames"] == result["lost_frames"] == 0 and result["frames"] > 20_000


class Careless(Decoder):
    """Believes what has the right length, and drops all of what has not."""

    def feed(self, data):
        whole = len(data) % 24 == 0
        return [frame for at in range(0, len(data), 24) for frame in Decoder().feed(data[at:at + 24])] if whole else []


def test_a_decoder_that_loses_frames_is_found_out():
    assert fuzz(Careless(), line_frame, 500, 1)["lost_frames"] > 0
