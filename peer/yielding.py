"""Threads that let others go first: what merges contributions must not take the processor from what trains."""

from __future__ import annotations

import contextlib
import os
import sys
import threading

NICER = 5  # than the process: a third of the processor time where both want all of it


def stand_back() -> None:
    """Lower this thread's priority. To be called in it, first of all; does nothing where threads have none of their
    own (all systems but Linux)."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            process = os.getpriority(os.PRIO_PROCESS, os.getpid())
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(19, process + NICER))
