"""A clock that does not stop while the machine sleeps."""

from __future__ import annotations

import time

_ID = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def awake_seconds() -> float:
    """Seconds since some moment in the past, a suspended machine's included where the system tells (Linux)."""
    return time.clock_gettime(_ID)
