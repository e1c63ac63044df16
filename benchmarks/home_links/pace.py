"""Real steps at the pace of a pretended device: what a step computes is real, how long it takes is said beforehand.

So peers of unequal speed fit on one machine, and every method trains on the very same devices. Imports nothing of the
project: the alternatives run in an environment of their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from benchmarks.home_links.device import Notes

LOOK_SECONDS = 0.01
READY_SECONDS = 180.0

T = TypeVar("T")


def step_end(started: float, computed: float, seconds: float, behind: float) -> tuple[float, float]:
    """When a step ends on the pretended device, and how far behind the device the machine is then.

    The machine may be late with a step (`behind`, seconds) and make up for it with the next ones, by one step at the
    most; time that a peer spent waiting for others is never made up for.

    Args:
        started, computed: when the machine began and finished the step, seconds of one clock.
        seconds: what a step takes on the device.
    """
    due = started - behind + seconds
    return max(due, computed), min(max(0.0, computed - due), seconds)


class Gate:
    """Training begins when everybody is there: no method gains or loses by how its processes start."""

    def __init__(self, folder: Path, name: str, peers: int) -> None:
        self._folder, self._name, self._peers = folder, name, peers

    def wait(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / self._name).touch()
        end = time.monotonic() + READY_SECONDS
        while len(list(self._folder.iterdir())) < self._peers:
            if time.monotonic() > end:
                raise TimeoutError(f"not all of {self._peers} peers are ready after {READY_SECONDS:.0f} s")
            time.sleep(LOOK_SECONDS)


class Paced:
    """Runs the steps of one peer, and notes each with its rows and how far behind its device it ended."""

    def __init__(self, gate: Gate, notes: Notes) -> None:
        self._gate, self._notes = gate, notes
        self._begun, self._behind = False, 0.0

    def __call__(self, work: Callable[[], T], seconds: float, rows: int) -> T:
        if not self._begun:
            self._gate.wait()
            self._notes.add("go")
            self._begun = True
        started, cpu = time.monotonic(), time.thread_time()
        result = work()
        cpu, computed = time.thread_time() - cpu, time.monotonic()
        end, self._behind = step_end(started, computed, seconds, self._behind)
        time.sleep(max(0.0, end - time.monotonic()))
        took = time.monotonic() - started
        self._notes.add("step", rows=rows, seconds=seconds, took=took, behind=self._behind, cpu=round(cpu, 5))
        return result
