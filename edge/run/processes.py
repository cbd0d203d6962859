"""How the supervisor starts the two processes of a line."""

from __future__ import annotations

import subprocess
import sys

from edge.line_control.job import ControlJob
from edge.line_control.start import start_control


class Processes:
    """Starts them as `lineside run` does. A simulation hands the supervisor one that starts them with faults."""

    def control(self, job: ControlJob) -> subprocess.Popen[bytes]:
        """Start line control."""
        return start_control(job)

    def runtime(self, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        """Start the runtime: this process's own command once more. The environment tells it that it is the runtime."""
        return subprocess.Popen([sys.executable, *sys.orig_argv[1:]], env=environment)
