"""One cell of the table: hosts with shaped links, one method on them, and what came out."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.home_links.device import PARAMETERS, SAMPLES_PER_STEP, STEP_SECONDS
from benchmarks.home_links.gauges import Gauge
from tests.netns import Host, Internet

SERVER_MBIT = 1000.0  # of the host that coordinates or bootstraps


@dataclass(frozen=True)
class Case:
    """`links`: the rate of each peer's home link in Mbit/s, the same up and down unless `uplinks` says otherwise."""

    method: str
    links: tuple[float, ...]
    steps: int = 32  # between two synchronisations
    seconds: float = 50.0  # measured, after the first two synchronisations
    million: int = 10  # parameters
    uplinks: tuple[float, ...] = ()
    step_seconds: float = STEP_SECONDS
    churn: bool = False

    @property
    def compute_seconds(self) -> float:
        return self.steps * self.step_seconds

    @property
    def name(self) -> str:
        rates = "/".join(f"{rate:g}" for rate in sorted(set(self.links), reverse=True))
        up = f" ({min(self.uplinks):g} up)" if min(self.uplinks, default=math.inf) < min(self.links) else ""
        how = f"every {self.steps} steps" + (", churn" if self.churn else "")
        return f"{self.method}, {self.million}M, {len(self.links)} peers, {rates} Mbit/s{up}, {how}"

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass
class Result:
    case: Case
    utilisation: list[float]  # of each peer: compute seconds / wall seconds
    samples_per_second: float  # of all peers together
    update_seconds: float  # median time between two global updates
    exchange_seconds: (
        float  # median time from the call to close to the update in the weights; nan: not to be told apart
    )
    sent_megabytes: float  # mean of the peers, per update, with all headers
    server_sent_megabytes: float  # of the coordinator, per update
    cores: float  # processor seconds per second beside the device's own, mean of the peers
    server_cores: float
    memory_megabytes: float  # mean of the peers' peaks
    updates: int
    merged: list[int]  # of each peer: contributions in them; empty where a method has none
    failures: list[str]

    def to_json(self) -> str:
        return json.dumps(asdict(self))


Start = Callable[[Case, "Hosts", Path], "Running"]


@dataclass
class Hosts:
    server: Host
    peers: list[Host]


@dataclass
class Running:
    """A method at work: the processes and where each peer leaves its notes."""

    processes: list[subprocess.Popen[str]]  # the peers' come last
    notes: list[Path]
    start_peer: Callable[[int, str], tuple[subprocess.Popen[str], Path]] | None = None  # number of its host, name


def measured(case: Case, start: Start, folder: Path, progress: Callable[[str], None]) -> Result:
    """Build the hosts, let the method run, and look at the steady part."""
    with started(case, start, folder) as (hosts, running):
        return _observe(case, hosts, running, progress)


@contextlib.contextmanager
def started(case: Case, start: Start, folder: Path) -> Iterator[tuple[Hosts, Running]]:
    """The method at work on hosts of its own, which are gone afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    with Internet() as net:
        hosts = Hosts(
            net.host("server", SERVER_MBIT, SERVER_MBIT),
            [
                net.host(f"p{number}", up, rate)
                for number, (up, rate) in enumerate(zip(case.uplinks or case.links, case.links, strict=True))
            ],
        )
        running = start(case, hosts, folder)
        try:
            yield hosts, running
        finally:
            end(running)


def _observe(case: Case, hosts: Hosts, running: Running, progress: Callable[[str], None]) -> Result:
    gauges = [Gauge(host) for host in (hosts.server, *hosts.peers)]
    patience = time.monotonic() + 120 + 6 * case.compute_seconds
    while min(updates_in(path) for path in running.notes) < 2:
        check_alive(running)
        if time.monotonic() > patience:
            raise TimeoutError(f"{case.name}: no two updates within {120 + 6 * case.compute_seconds:.0f} s")
        for gauge in gauges:
            gauge.look()
        progress(f"{case.name}: starting")
        time.sleep(0.5)
    began, cpu, sent = (
        time.monotonic(),
        [gauge.cpu_seconds for gauge in gauges],
        [gauge.host.sent_bytes() for gauge in gauges],
    )
    while (passed := time.monotonic() - began) < case.seconds:
        check_alive(running)
        for gauge in gauges:
            gauge.look()
        progress(f"{case.name}: {passed:.0f} of {case.seconds:.0f} s")
        time.sleep(1.0)
    ended = time.monotonic()
    for gauge in gauges:
        gauge.look()
    spent = [(gauge.cpu_seconds - before) / (ended - began) for gauge, before in zip(gauges, cpu, strict=True)]
    moved = [(gauge.host.sent_bytes() - before) / 1e6 for gauge, before in zip(gauges, sent, strict=True)]
    notes = [[note for note in read_notes(path) if began <= note["at"] <= ended] for path in running.notes]
    steps = [sum(note["kind"] == "step" for note in each) for each in notes]
    updates = [[note["at"] for note in each if note["kind"] == "update"] for each in notes]
    merged = [[note["merged"] for note in each if "merged" in note] for each in notes]
    between = [later - earlier for each in updates for earlier, later in itertools.pairwise(each)]
    exchanges = [seconds for each in notes for seconds in exchange_seconds(each)]
    device_cores = sum(note.get("cpu", 0.0) for each in notes for note in each) / (ended - began) / len(notes)
    count = statistics.mean(len(each) for each in updates) or 1
    rounds = (ended - began) / statistics.mean(between) if between else count  # whole ones and parts
    return Result(
        case,
        [case.step_seconds * each / (ended - began) for each in steps],
        sum(steps) * SAMPLES_PER_STEP / (ended - began),
        statistics.median(between) if between else float("nan"),
        statistics.median(exchanges) if exchanges else float("nan"),
        statistics.mean(moved[1:]) / rounds,
        moved[0] / rounds,
        statistics.mean(spent[1:]) - device_cores,
        spent[0],
        statistics.mean(gauge.memory_bytes for gauge in gauges[1:]) / 1e6,
        round(count),
        [figures[-1] - figures[0] for figures in merged if figures],
        sorted({note["text"] for each in notes for note in each if note["kind"] == "event"})[:6],
    )


def exchange_seconds(notes: list[dict[str, Any]]) -> list[float]:
    """From each call to close (or a blocking exchange's begin) to the next update."""
    found, began = [], None
    for note in notes:
        if note["kind"] == "closing":
            began = note["at"]
        elif note["kind"] == "update" and began is not None:
            found.append(note["at"] - began)
            began = None
    return found


def read_notes(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith("}")]


def updates_in(path: Path) -> int:
    return sum(note["kind"] == "update" for note in read_notes(path))


def check_alive(running: Running) -> None:
    """Raises RuntimeError: a process has failed."""
    for process in running.processes:
        if process.poll() not in (None, 0):
            raise RuntimeError(f"a process ended with {process.returncode}: {' '.join(map(str, process.args))}")  # type: ignore[arg-type]


def end(running: Running) -> None:
    """Politely first; what is left goes with the namespaces."""
    for process in running.processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + 12
    for process in running.processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def python() -> str:
    return sys.executable


__all__ = ["PARAMETERS", "Case", "Hosts", "Result", "Running", "measured"]
