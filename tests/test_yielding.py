"""Merging stands back behind training."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from peer.yielding import stand_back


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
def test_only_the_thread_that_stands_back_is_slowed() -> None:
    """Its priority is below the process's, also when its maker stands back already; nobody else's changes."""

    def priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def one_within_another() -> tuple[int, int]:
        with ThreadPoolExecutor(1, initializer=stand_back) as pool:
            return priority(), pool.submit(priority).result()

    before = priority()
    with ThreadPoolExecutor(1, initializer=stand_back) as pool:
        outer, inner = pool.submit(one_within_another).result()
    assert before < outer == inner or before == 19
    assert priority() == before
