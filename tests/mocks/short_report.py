"""`lineside doctor --gpu-report DIR --json` over the mocks without the step that takes minutes: short_report.py DIR"""

from __future__ import annotations

import sys

import edge.tools.gpu_report
import lineside

whole = edge.tools.gpu_report.steps
edge.tools.gpu_report.steps = lambda *arguments: {name: command for name, command in whole(*arguments).items()
                                                  if name != "precisions"}
sys.argv = ["lineside", "doctor", "--gpu-report", sys.argv[1], "--json"]
lineside.main()
