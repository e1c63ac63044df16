"""Runs the p2p daemon so that it dies with the process that started it, even if that one is killed with SIGKILL.

Started as a script (`python -I -S launcher.py OWNER_PID PROGRAM ARGUMENT...`), it becomes the program itself: no
second process stays. Linux tells the kernel (PR_SET_PDEATHSIG, which survives exec; it fires when the owner's *thread*
that started us ends, which is the thread of the event loop). Elsewhere a small child looks for the owner once a second.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time

_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 1.0


def main(arguments: list[str]) -> None:
    owner, program = int(arguments[0]), arguments[1:]
    if not _ask_the_kernel():
        _watch(owner)
    if os.getppid() != owner:  # it died before we asked
        sys.exit(1)
    os.execv(program[0], program)


def _ask_the_kernel() -> bool:
    if sys.platform != "linux" or os.environ.get("COMMONWEIGHTS_WATCH_DAEMON"):
        return False
    try:
        import ctypes

        return bool(ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0)
    except (ImportError, OSError, AttributeError):
        return False


def _watch(owner: int) -> None:
    daemon = os.getpid()
    if os.fork():
        return
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # the owner reads our output until its end
        os.dup2(null, descriptor)
    with contextlib.suppress(ProcessLookupError):
        while os.getppid() == daemon:
            os.kill(owner, 0)
            time.sleep(_POLL_SECONDS)
        os._exit(0)
    with contextlib.suppress(ProcessLookupError):
        os.kill(daemon, signal.SIGKILL)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
