"""Real-time scheduling and locked memory for the process of line control."""

from __future__ import annotations

import ctypes
import gc
import os
import resource

PRIORITY = 50  # SCHED_FIFO; `deploy/lineside@.service` must allow it (LimitRTPRIO)
MCL_CURRENT, MCL_FUTURE = 1, 2
PR_SET_NAME, PR_SET_TIMERSLACK = 15, 29


def become_realtime() -> str:
    """Take a fixed priority, lock the memory, and stop the garbage collector.

    Returns what was refused, or an empty string.
    """
    library = ctypes.CDLL(None, use_errno=True)
    library.prctl(PR_SET_NAME, b"lineside-ctl", 0, 0, 0)
    library.prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)  # ns
    gc.collect()
    gc.freeze()
    gc.disable()
    missing = []
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    except OSError as error:
        missing.append(f"no real-time priority ({error.strerror})")
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] != resource.RLIM_INFINITY and os.geteuid() != 0:
        missing.append("no right to lock its memory")  # under a limit, MCL_FUTURE would make later allocations fail
    elif library.mlockall(MCL_CURRENT | MCL_FUTURE) != 0:
        missing.append(f"its memory is not locked ({os.strerror(ctypes.get_errno())})")
    return " and ".join(missing)
