"""One peer is killed in the middle of a run, and a new one comes a little later: what the others and the whole lose."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.home_links.cell import Case, Start, read_notes, started, updates_in
from benchmarks.home_links.device import SAMPLES_PER_STEP

BEFORE_SECONDS = 35.0
GONE_SECONDS = 15.0
AFTER_SECONDS = 45.0
LAST_SECONDS = 20.0


@dataclass
class Churn:
    """Samples per second of all peers, and what share that is of the undisturbed rate of those that are alive."""

    case: Case
    before: float
    gone: float
    last: float
    gone_share: float
    last_share: float
    newcomer_rounds: int  # which of the rounds that closed after its first step has the newcomer's first work

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def churned(case: Case, start: Start, folder: Path, progress: Callable[[str], None]) -> Churn:
    with started(case, start, folder) as (_, running):
        assert running.start_peer is not None, f"{case.method} cannot take in a new peer"
        patience = time.monotonic() + 180
        while min(updates_in(path) for path in running.notes) < 2:
            if time.monotonic() > patience:
                raise TimeoutError("no two updates within 180 s")
            time.sleep(0.5)
        began = time.monotonic()
        _wait(began + BEFORE_SECONDS, f"{case.name}: undisturbed", progress)
        os.killpg(running.processes[-1].pid, signal.SIGKILL)
        killed = time.monotonic()
        _wait(killed + GONE_SECONDS, f"{case.name}: one was killed", progress)
        came = time.monotonic()
        process, notes = running.start_peer(len(case.links) - 1, "newcomer")
        running.processes.append(process)
        _wait(came + AFTER_SECONDS, f"{case.name}: a new one came", progress)
        ended = time.monotonic()
    everybody = [read_notes(path) for path in (*running.notes, notes)]
    full = SAMPLES_PER_STEP / case.step_seconds

    def rate(since: float, until: float) -> float:
        steps = sum(note["kind"] == "step" and since <= note["at"] <= until for each in everybody for note in each)
        return float(steps * SAMPLES_PER_STEP / (until - since))

    before, gone, last = rate(began, killed), rate(killed, came), rate(ended - LAST_SECONDS, ended)
    alive = before * (len(case.links) - 1) / len(case.links)
    merged = first_merged(everybody[-1])
    assert before <= full * len(case.links) * 1.01, "faster than the device allows"
    return Churn(case, before, gone, last, gone / alive, last / before, merged)


def first_merged(notes: list[dict[str, Any]]) -> int:
    """Which of the rounds that were called to their close after the first step has the first own work; -1: none."""
    stepped = next((note["at"] for note in notes if note["kind"] == "step"), math.inf)
    closed = sorted({note["round"] for note in notes if note["kind"] == "closing" and note["at"] > stepped})
    for note in notes:
        if note["kind"] == "update" and note["merged"] > 0:
            round_ = note["round"] - note["merged"] + 1
            return sum(each <= round_ for each in closed)
    return -1


def _wait(until: float, text: str, progress: Callable[[str], None]) -> None:
    while (left := until - time.monotonic()) > 0:
        progress(f"{text}: {left:.0f} s")
        time.sleep(min(1.0, left))
