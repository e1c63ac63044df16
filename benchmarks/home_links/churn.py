"""One peer is killed in the middle of a run, and a new one comes a little later: what the others and the whole lose."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.home_links.cell import SERVER_MBIT, Case, Hosts, Start, end, read_notes, updates_in
from benchmarks.home_links.device import SAMPLES_PER_STEP, STEP_SECONDS
from tests.netns import Internet

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
    newcomer_rounds: int  # rounds from the newcomer's first step to its first merged contribution, with that one's

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def churned(case: Case, start: Start, folder: Path, progress: Callable[[str], None]) -> Churn:
    folder.mkdir(parents=True, exist_ok=True)
    with Internet() as net:
        hosts = Hosts(
            net.host("server", SERVER_MBIT, SERVER_MBIT),
            [net.host(f"p{number}", rate, rate) for number, rate in enumerate(case.links)],
        )
        running = start(case, hosts, folder)
        assert running.start_peer is not None, f"{case.method} cannot take in a new peer"
        try:
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
        finally:
            end(running)
    everybody = [read_notes(path) for path in (*running.notes, notes)]
    full = SAMPLES_PER_STEP / STEP_SECONDS

    def rate(since: float, until: float) -> float:
        steps = sum(note["kind"] == "step" and since <= note["at"] <= until for each in everybody for note in each)
        return float(steps * SAMPLES_PER_STEP / (until - since))

    before, gone, last = rate(began, killed), rate(killed, came), rate(ended - LAST_SECONDS, ended)
    alive = before * (len(case.links) - 1) / len(case.links)
    first_step = next((note["at"] for note in everybody[-1] if note["kind"] == "step"), ended)
    updates = [note for note in everybody[-1] if note["kind"] == "update" and note["at"] > first_step]
    merged = next((index for index, note in enumerate(updates, 1) if note["merged"] > 0), -1)
    assert before <= full * len(case.links) * 1.01, "faster than the device allows"
    return Churn(case, before, gone, last, gone / alive, last / before, merged)


def _wait(until: float, text: str, progress: Callable[[str], None]) -> None:
    while (left := until - time.monotonic()) > 0:
        progress(f"{text}: {left:.0f} s")
        time.sleep(min(1.0, left))
