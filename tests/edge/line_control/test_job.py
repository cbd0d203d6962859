"""The job of a line control process survives its JSON, and a tape's first entry."""

from __future__ import annotations

import json
from pathlib import Path

from edge.line_control.job import ControlJob
from edge.line_control.parts import BeltTiming
from edge.plc.frames.section import FramesSection
from edge.plc.lines.section import LinesSection

JOB = ControlJob({"kind": "frames", "port": "/dev/ttyUSB0", "baud": 115200}, FramesSection.link,
                 BeltTiming(0.6, 0.1, counts=600), pulse_ms=20, parts=7, run_id="0123456789abcdef", restarted=True,
                 belt_file=Path("/line/felt.belt"), listener=3, supervisor=4, tape=5)


def test_a_process_gets_the_job_that_it_was_given():
    assert ControlJob.from_json(JOB.to_json()) == JOB


def test_a_tape_recorded_before_there_was_a_job_can_be_replayed():
    """The entry as every version has written it."""
    entry = {"plc": {"kind": "lines", "port": "/dev/ttyS0"},
             "timing": {"travel": 0.6, "lead": 0.1, "stop_on": ["late"]}, "parts": 0,
             "pulse_ms": 20, "session": "0123456789abcdef", "again": False}
    job = ControlJob.from_tape(entry, LinesSection.link, Path("belt"))
    assert (job.plc, job.link, job.parts, job.pulse_ms, job.run_id,
            job.restarted) == (entry["plc"], LinesSection.link, 0, 20, "0123456789abcdef", False)
    assert job.timing.travel == 0.6 and job.timing.stop_on == ("late",)


def test_a_tape_begins_with_the_names_that_older_versions_read():
    assert set(json.loads(json.dumps(JOB.tape_entry()))) == {"plc", "timing", "parts", "pulse_ms", "session", "again"}
