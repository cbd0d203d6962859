"""Starts a line control process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from edge.line_control.job import ControlJob

MODULE = "edge.line_control.process"
COMMAND = (sys.executable, "-m", MODULE)


def start_control(job: ControlJob, command: Sequence[str] = COMMAND) -> subprocess.Popen[bytes]:
    """Start the process of a job, which inherits the job's descriptors; it prints its ledger as JSON at its end.

    command: what the job is appended to.
    """
    inherited = [job.listener, job.supervisor] + ([] if job.tape is None else [job.tape])
    return subprocess.Popen([*command, job.to_json()], stdout=subprocess.PIPE, pass_fds=inherited)
