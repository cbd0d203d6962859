"""`lineside run LINE.toml --parts 30 --json` over the mocks, with a driver that fails: failing_line.py LINE.toml NTH
CODE STICKY

The NTH launch of an inference from the first part on gives CODE, and with STICKY so does every call behind it.
"""

from __future__ import annotations

import sys

import lineside
from edge.run.runtime import Line
from tests.mocks import Driver

line, nth, code, sticky = sys.argv[1:]
run = Line.run


def run_failing(self):
    Driver().fail("cuGraphLaunch", int(nth), int(code), bool(int(sticky)))
    return run(self)


Line.run = run_failing
sys.argv = ["lineside", "run", line, "--parts", "30", "--json"]
lineside.main()
