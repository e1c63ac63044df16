"""What people who watch cost a swarm: 200 of them on the page, its events and its JSON while peers train beside.

    python -m benchmarks.watchers                         200 watchers; about six minutes
    python -m benchmarks.watchers --write docs/page.md    ... and into the documentation

Runs `demo` in a process of its own with two peers that keep both cores busy, and alternates windows without and with
watchers. The watchers run on the same machine: what they use themselves is counted against the swarm too. A watcher
opens the page with all its files, keeps the event stream open, and every ten seconds asks for a section of the JSON and
makes a call of the gRPC API, on a connection of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import uvloop

from benchmarks.tables import table, write_between_markers
from peer.client import RunClient
from peer.errors import CommonweightsError
from peer.ticket import FILE_NAME, Ticket
from protos import coordinator_pb2

ROOT = Path(__file__).parent.parent
FILES = ("page.css", "page.js", "format.js", "panels.js", "charts.js", "waterfall.js", "icon.svg",
         "vendor/uPlot.iife.min.js", "vendor/uPlot.min.css", "vendor/inter-latin.woff2")  # fmt: skip
SECTIONS = ("now", "peers", "losses", "leaderboard", "snapshot")
API_SECONDS = 10.0
OTHERS = "others on the machine"
QUIET_CORES = 0.6  # a window in which other programs used more is measured again
MAX_REPEATS = 8
WARM_UP_SECONDS = 5.0  # of each window: watchers arrive, or are gone


@dataclass
class Seen:
    """Seconds."""

    page: list[float] = field(default_factory=list)  # the page, until its last byte
    files: list[float] = field(default_factory=list)
    api: list[float] = field(default_factory=list)
    grpc: list[float] = field(default_factory=list)
    events: list[float] = field(default_factory=list)  # from the coordinator's clock to the watcher
    received_bytes: int = 0
    failures: int = 0


async def watcher(port: int, ticket: Ticket, seen: Seen, generator: random.Random) -> None:
    """Until cancelled. Arrives within the first seconds, as people do."""
    await asyncio.sleep(generator.random() * WARM_UP_SECONDS * 0.8)
    try:
        seen.page.append(await fetch(port, "/", seen))
        for name in FILES:
            seen.files.append(await fetch(port, f"/static/{name}", seen))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(follow(port, seen))
            tasks.create_task(ask(port, seen, generator))
            tasks.create_task(call(ticket, seen, generator))
    except* (OSError, EOFError, asyncio.IncompleteReadError, CommonweightsError):
        seen.failures += 1


async def ask(port: int, seen: Seen, generator: random.Random) -> None:
    await asyncio.sleep(generator.random() * API_SECONDS)
    while True:
        seen.api.append(await fetch(port, f"/api/{generator.choice(SECTIONS)}", seen))
        await asyncio.sleep(API_SECONDS)


async def call(ticket: Ticket, seen: Seen, generator: random.Random) -> None:
    """Status and the ledger's first page in turn."""
    await asyncio.sleep(generator.random() * API_SECONDS)
    async with RunClient(ticket) as run:
        await run.status()  # makes the connection
        while True:
            started = time.perf_counter()
            if generator.random() < 0.5:
                await run.status()
            else:
                await run.call("GetLedger", coordinator_pb2.GetLedgerRequest())
            seen.grpc.append(time.perf_counter() - started)
            await asyncio.sleep(API_SECONDS)


async def fetch(port: int, path: str, seen: Seen) -> float:
    """Seconds of one request on a connection of its own."""
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n"
    writer.write(request.encode())
    body = await reader.read(-1)
    writer.close()
    seen.received_bytes += len(body)
    seen.failures += not body.startswith(b"HTTP/1.1 200")
    return time.perf_counter() - started


async def follow(port: int, seen: Seen) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    try:
        writer.write(b"GET /api/events HTTP/1.1\r\nHost: x\r\n\r\n")
        while line := await reader.readline():
            seen.received_bytes += len(line)
            if line.startswith(b'data: {"time":'):
                seen.events.append(time.time() - float(line[14 : line.index(b",")]))
    finally:
        writer.close()


async def watch(port: int, ticket: Ticket, watchers: int, seconds: float) -> Seen:
    seen, generator = Seen(), random.Random(0)
    tasks = [
        asyncio.create_task(watcher(port, ticket, seen, random.Random(generator.random()))) for _ in range(watchers)
    ]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return seen


@contextlib.contextmanager
def swarm(folder: Path, port: int, peers: int) -> Iterator[psutil.Process]:
    """A demo without end; its process."""
    config = (ROOT / "configs/demo.toml").read_text().replace("rounds = 13 ", "rounds = 0 ")
    assert tomllib.loads(config)["run"]["rounds"] == 0
    (folder / "endless.toml").write_text(config)
    arguments = ["demo", str(folder / "endless.toml"), "--peers", str(peers), "--dir", str(folder / "run"),
                 "--web-port", str(port)]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "coordinator.cli", *arguments], cwd=ROOT, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        try:
            yield psutil.Process(process.pid)
        finally:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
            process.kill()


def now(port: int) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/now", timeout=10) as answer:
        found = json.load(answer)
    assert isinstance(found, dict)
    return found


def wait_for_round(port: int, round_: int, log: Path) -> None:
    end = time.monotonic() + 180
    while time.monotonic() < end:
        with contextlib.suppress(OSError, KeyError):
            if now(port)["round"] >= round_:
                return
        time.sleep(1)
    raise SystemExit(f"the swarm does not train: {log.read_text()[-500:]}")


def processor_seconds(process: psutil.Process) -> dict[str, float]:
    """By part, of all processes of the demo."""
    found = {"coordinator": sum(process.cpu_times()[:2]), "web server": 0.0, "peers": 0.0}
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            part = "web server" if "coordinator.web" in child.cmdline() else "peers"
            found[part] += sum(child.cpu_times()[:2])
    return found


def busy_seconds() -> float:
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)


def window(
    port: int, ticket: Ticket, process: psutil.Process, watchers: int, seconds: float
) -> tuple[float, dict[str, float], Seen]:
    """Tokens trained on per second, processor seconds per second by part, and what watchers saw."""
    marks: list[tuple[float, int, dict[str, float]]] = []

    async def measured() -> Seen:
        watching = asyncio.create_task(watch(port, ticket, watchers, WARM_UP_SECONDS + seconds))
        for pause in (WARM_UP_SECONDS, seconds - 0.5):
            await asyncio.sleep(pause)
            it = await asyncio.to_thread(now, port)
            marks.append((it["time"], it["tokens"] + it["round_tokens"], processor_seconds(process)))
            used = marks[-1][2]
            used["watchers"] = sum(os.times()[:2])
            used[OTHERS] = busy_seconds() - sum(used.values())
        return await watching

    seen = uvloop.run(measured())
    (start, before, used_before), (end, after, used_after) = marks
    used = {part: (used_after[part] - used_before[part]) / (end - start) for part in used_after}
    return (after - before) / (end - start), used, seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--watchers", type=int, default=200)
    parser.add_argument("--windows", type=int, default=4, help="with watchers; there is one more without")
    parser.add_argument("--seconds", type=float, default=30.0, help="of a window")
    parser.add_argument("--peers", type=int, default=2)
    parser.add_argument("--port", type=int, default=17171)
    parser.add_argument("--write", type=Path, help="a document with markers")
    given = parser.parse_args()
    rates: dict[int, list[float]] = {0: [], given.watchers: []}
    used: dict[int, list[dict[str, float]]] = {0: [], given.watchers: []}
    everything = Seen()
    with tempfile.TemporaryDirectory() as folder, swarm(Path(folder), given.port, given.peers) as process:
        wait_for_round(given.port, 3, Path(folder) / "log")
        ticket = Ticket.parse(str(Path(folder) / "run" / FILE_NAME))
        repeats = MAX_REPEATS
        while (index := len(rates[0]) + len(rates[given.watchers])) < 2 * given.windows + 1:
            watchers = given.watchers * (index % 2)
            rate, cost, seen = window(given.port, ticket, process, watchers, given.seconds)
            if cost[OTHERS] > QUIET_CORES and repeats:
                print(f"     again: other programs used {cost[OTHERS]:.2f} cores")
                repeats -= 1
                continue
            rates[watchers].append(rate)
            used[watchers].append(cost)
            for name, values in vars(seen).items():
                setattr(everything, name, getattr(everything, name) + values)
            print(
                f"{watchers:4} watchers: {rate:8,.0f} tokens/s  " + "  ".join(f"{k} {v:.2f}" for k, v in cost.items())
            )
    text = report(given.watchers, rates, used, everything)
    print(text)
    if given.write is not None:
        write_between_markers(given.write, text)


def report(watchers: int, rates: dict[int, list[float]], used: dict[int, list[dict[str, float]]], seen: Seen) -> str:
    """In Markdown. A window with watchers is compared with the mean of its neighbours without: a run's pace drifts."""
    quiet = [(before + after) / 2 for before, after in pairwise(rates[0])]
    changes = [100 * (rate / usual - 1) for rate, usual in zip(rates[watchers], quiet, strict=True)]
    cores = [
        (part, *(f"{statistics.mean(it[part] for it in used[count]):.2f}" for count in (0, watchers)))
        for part in used[0][0]
    ]
    waits = [
        (name, f"{len(values):,}", *(f"{1000 * quantile(values, share):.0f} ms" for share in (0.5, 0.95, 0.99, 1.0)))
        for name, values in (
            ("page", seen.page),
            ("its files", seen.files),
            ("JSON", seen.api),
            ("gRPC", seen.grpc),
            ("event", seen.events),
        )
    ]
    return (
        f"Training throughput with {watchers} watchers: {statistics.mean(changes):+.1f} % "
        f"({', '.join(f'{change:+.1f}' for change in changes)}; {statistics.mean(rates[0]):,.0f} tokens/s without).\n\n"
        + table(("cores used by", "without", f"with {watchers}"), cores)
        + "\n"
        + table(("what watchers waited for", "times", "median", "95 %", "99 %", "longest"), waits)
        + f"\nThey received {seen.received_bytes / 1e6:,.0f} MB; {seen.failures} requests failed.\n"
    )


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


if __name__ == "__main__":
    main()
