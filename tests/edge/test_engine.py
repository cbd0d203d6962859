"""The OpenVINO engine as a guest in a process that has signals to handle."""

from __future__ import annotations

import signal
import subprocess
import sys

SCRIPT = """
import os, signal, sys
from pathlib import Path
from edge.engines.openvino import OpenVinoEngine

told = []
signal.signal(signal.SIGINT, lambda *_: told.append(True))
first, second = (OpenVinoEngine(Path(sys.argv[1]), (64, 64, 1), precision="fp32", threads=1, slots=1, batch=1) for _ in range(2))
first.close()
del first
second.close()
del second
os.kill(os.getpid(), signal.SIGINT)
sys.exit(0 if told else 3)
"""


def test_a_signal_is_handled_after_engines_ended_in_the_order_they_began(exported):
    done = subprocess.run([sys.executable, "-X", "faulthandler", "-c", SCRIPT, exported / "model" / "fp32.onnx"],
                          capture_output=True, text=True, timeout=100)
    assert done.returncode != -signal.SIGSEGV, "OpenVINO left a signal stack that is unmapped"
    assert done.returncode == 0, done.stderr
