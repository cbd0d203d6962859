"""What GigE Vision tests need: Aravis and a network namespace. Without either, a test warns loudly and is skipped."""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings

import pytest

FAKE = "arv-fake-gv-camera-0.8"


def _skip(reason: str) -> None:
    warnings.warn(reason, stacklevel=3)
    pytest.skip(reason)


def need_aravis() -> None:
    """Skip without Aravis, PyGObject and its fake camera."""
    try:
        import gi

        gi.require_version("Aravis", "0.8")
    except (ImportError, ValueError) as error:
        _skip(f"NO ARAVIS: run make setup ({error})")
    if shutil.which(FAKE) is None:
        _skip(f"NO ARAVIS: run make setup ({FAKE} is missing)")


def namespace() -> list[str]:
    """The words before a command that runs in a network namespace of its own. Skips where that is refused."""
    need_aravis()
    for words in (["unshare", "-n"], ["unshare", "-rn"]):
        try:
            tried = subprocess.run([*words, "ip", "link", "set", "lo", "up"], capture_output=True, timeout=20)
            if tried.returncode == 0:
                return words
        except OSError:
            continue
    _skip("NO NETWORK NAMESPACE: this machine refuses `unshare -n`, or has no `ip`")
    sys.exit("not reached")
