"""`lineside doctor --gpu-report DIR --json` over the mocks without the step that takes minutes: short_report.py DIR"""

from __future__ import annotations

import sys

import edge.gpu_report
import lineside

whole = edge.gpu_report.steps
edge.gpu_report.steps = lambda *arguments: {name: command for name, command in whole(*arguments).items() if name != "precisions"}
sys.argv = ["lineside", "doctor", "--gpu-report", sys.argv[1], "--json"]
lineside.main()
