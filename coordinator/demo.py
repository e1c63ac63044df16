"""A whole swarm on this machine: a coordinator in this process and N peers in processes of their own.

The peers are started exactly as a volunteer would start them, with nothing but the ticket.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs import RunSpec
from coordinator.run import Coordinator
from coordinator.serve import ServeOptions, coordinating
from coordinator.settings import Settings
from peer.errors import CommonweightsError
from peer.identity import PeerId
from peer.runner import Stop
from peer.training.hardware import choose_threads

GATHER_SECONDS = 90.0  # until the first round starts with whoever is there
GOODBYE_SECONDS = 20.0  # for peers to notice that the run is finished
TERMINATE_SECONDS = 8.0
LOOK_SECONDS = 0.25
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded before the fork, where nothing may be


@dataclass(frozen=True)
class DemoResult:
    coordinator_digest: str
    reports: list[dict[str, Any]]  # what each peer printed as its --json line
    seconds: float
    finished: bool  # False: stopped by the person before the end

    @property
    def digests_equal(self) -> bool:
        return bool(self.reports) and all(report["state_digest"] == self.coordinator_digest for report in self.reports)


async def demo(
    spec: RunSpec,
    folder: Path,
    peers: int,
    stop: Stop,
    show: Callable[[Coordinator], None],
    on_event: Callable[[str], None],
    web_ports: tuple[int, ...],
    settings: Settings,
) -> tuple[Coordinator, DemoResult]:
    """Run the swarm in `folder` until the run is finished or a signal asks to stop; the same folder again goes on.

    Raises:
        CommonweightsError: no peer is left, with what the last one said.
    """
    started = time.monotonic()
    on_event("preparing data and model")
    options = ServeOptions(folder, host="127.0.0.1", web_ports=web_ports, paused=True, settings=settings)
    async with coordinating(spec, options, on_event) as coordinator:
        stopping = asyncio.Event()
        stop.on_request = stopping.set
        assert coordinator.ticket is not None
        if coordinator.page_address:
            on_event(f"the page: {coordinator.page_address}")
        processes = [] if coordinator.log.finished else [
            await _start_peer(str(coordinator.ticket), folder / "peers" / f"peer-{number}", f"peer-{number}", peers)
            for number in range(1, peers + 1)
        ]  # fmt: skip
        lead = asyncio.create_task(coordinator.run())
        ended = asyncio.create_task(stopping.wait())
        watch = asyncio.create_task(_watch(coordinator, processes, show))
        try:
            await asyncio.wait([lead, ended, watch], return_when=asyncio.FIRST_COMPLETED)
            if watch.done():
                watch.result()
            if lead.done():
                lead.result()
                patience = GOODBYE_SECONDS
            else:
                on_event("stopping: peers hand in what they have")
                patience = 0.0
            reports = await _end(processes, patience)
            show(coordinator)
        finally:
            for task in (lead, ended, watch):
                task.cancel()
            await asyncio.gather(lead, ended, watch, return_exceptions=True)
            await _end(processes, 0.0)
        return coordinator, DemoResult(
            coordinator.replica.digest.hex(), reports, time.monotonic() - started, coordinator.log.finished
        )


async def _start_peer(ticket: str, folder: Path, name: str, peers: int) -> asyncio.subprocess.Process:
    """`commonweights join`, with its share of the cores; it ends when this process does, however that dies."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "join.log").open("ab") as log:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "peer.cli", "join", ticket, "--dir", str(folder), "--name", name,
            "--always", "--json",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": str(choose_threads(peers)), "TOKENIZERS_PARALLELISM": "false"},
            start_new_session=True,  # Ctrl-C is for this process, which then tells them
            preexec_fn=_end_with_parent,
        )  # fmt: skip


def _end_with_parent() -> None:
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


async def _watch(
    coordinator: Coordinator, processes: list[asyncio.subprocess.Process], show: Callable[[Coordinator], None]
) -> None:
    """Let the first round begin when everybody is there, draw the screen, and end with an error when nobody is left."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + GATHER_SECONDS
    while True:
        alive = [process for process in processes if process.returncode is None]
        if coordinator.leader.state.paused:
            ready = sum(guest.presence.phase != "syncing" for guest in coordinator.leader.guests.values())
            if ready >= len(alive) > 0 or loop.time() > give_up:
                coordinator.leader.pause(False)
        if processes and not alive and not coordinator.log.finished:
            raise CommonweightsError(f"every peer has ended; the last one said: {_last_words(coordinator.folder)}")
        show(coordinator)
        await asyncio.sleep(LOOK_SECONDS)


def _last_words(folder: Path) -> str:
    logs = sorted((folder / "peers").glob("*/join.log"), key=lambda path: path.stat().st_mtime)
    lines = logs[-1].read_text(errors="replace").strip().splitlines() if logs else []
    return f"{lines[-1]} (more in {logs[-1]})" if lines else "nothing"


async def _end(processes: list[asyncio.subprocess.Process], patience_seconds: float) -> list[dict[str, Any]]:
    """Wait for the peers to end, then ask them to, then make them; what they reported."""
    collecting = [asyncio.create_task(_collect(process)) for process in processes]
    if not collecting:
        return []
    _, pending = await asyncio.wait(collecting, timeout=patience_seconds or 0.01)
    for ending, seconds in ((signal.SIGTERM, TERMINATE_SECONDS), (signal.SIGKILL, 2.0)):
        if not pending:
            break
        for process in processes:
            if process.returncode is None:
                process.send_signal(ending)
        _, pending = await asyncio.wait(pending, timeout=seconds)
    return [report for task in collecting if task.done() and (report := task.result()) is not None]


async def _collect(process: asyncio.subprocess.Process) -> dict[str, Any] | None:
    assert process.stdout is not None
    if process.stdout.at_eof():
        return None
    output = await process.stdout.read()
    await process.wait()
    try:
        report = json.loads(output.splitlines()[-1])
    except (IndexError, ValueError):
        return None
    return report if isinstance(report, dict) else None


def result_json(coordinator: Coordinator, result: DemoResult) -> dict[str, Any]:
    """What `demo --json` prints."""
    log, history = coordinator.log, coordinator.evaluator.history
    names = coordinator.names_book
    trained = {report["peer_id"]: report["tokens"] for report in result.reports}
    return {
        "run_id": log.run_id.hex(),
        "rounds": sum(1 for entry in log.entries if entry.contributions),
        "seconds": round(result.seconds, 1),
        "loss_first": history[0].loss if history else None,
        "loss_last": history[-1].loss if history else None,
        "tokens": log.accounts.tokens,
        "state_digest": result.coordinator_digest,
        "digests_equal": result.digests_equal,
        "peers": [
            {
                "peer_id": str(PeerId(key)),
                "name": names.of(PeerId(key)),
                "tokens": trained.get(str(PeerId(key)), account.credit_tokens),
                "credit_tokens": account.credit_tokens,
            }
            for key, account in sorted(log.accounts.peers.items())
        ],
        "checkpoint": coordinator.checkpoint,
        "log": str(coordinator.folder / "log"),
    }
