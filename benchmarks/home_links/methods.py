"""How each method is started on the hosts of a cell."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.home_links.cell import Case, Hosts, Running, Start
from tests.netns import Host

ROOT = Path(__file__).resolve().parents[2]
TICKET_SECONDS = 180.0
SEQUENCE_TOKENS = 16
TEXT = """[data.source]
kind = "text"
path = "{stdlib}"
suffixes = [".py"]
max_bytes = 8_000_000
[data.tokenizer]
kind = "bytes"
"""
LEAN = "[outer]\nmomentum = 0.0"  # one vector of the model's size less: eight large peers on one machine
WIDTHS = {10: 320, 40: 640, 100: 1024}  # by millions of parameters, of a llama of eight layers

Settings = Callable[[int, Path], dict[str, object]]  # what a peer is told beside the rest: its rank, the run's folder


def spec(case: Case, codec: str, down_to: str) -> str:
    """The run. A round is called to its close after `steps` steps of every peer's worth."""
    heartbeat = min(1.0, case.compute_seconds / 8)
    width = WIDTHS[case.million]
    target = len(case.links) * case.steps * 8 * SEQUENCE_TOKENS
    return f"""
[run]
name = "home links"
tokens = {10**12}
[model.config]
hidden_size = {width}
intermediate_size = {width * 27 // 10}
num_hidden_layers = 8
num_attention_heads = {width // 64}
num_key_value_heads = {width // 64}
tie_word_embeddings = true
[data]
sequence_length = {SEQUENCE_TOKENS}
{TEXT}
[train]
batch_sequences = 8
learning_rate = 1e-3
precision = "fp32"
[round]
target_tokens = {target}
{"" if case.million == 10 else LEAN}
[codec]
name = "{codec}"
down_to = "{down_to}"
[evaluation]
every_rounds = 1000
sequences = 1
sample_tokens = 0
[timing]
heartbeat_seconds = {heartbeat}
first_deadline_seconds = {max(5.0, 2 * case.compute_seconds)}
"""


def nothing(rank: int, folder: Path) -> dict[str, object]:
    return {}


def ours(codec: str, down_to: str = "") -> Start:
    return swarm(lambda case: spec(case, codec, down_to))


def swarm(config_of: Callable[[Case], str], settings: Settings = nothing) -> Start:
    """A coordinator and peers of this project."""

    def start(case: Case, hosts: Hosts, folder: Path) -> Running:
        config, home = folder / "run.toml", folder / "coordinator"
        config.write_text(config_of(case))
        _share_prepared_data(home)
        command = ["-m", "coordinator.cli", "serve", config, "--dir", home, "--host", hosts.server.address, "--json"]
        processes = [_launch(hosts.server, folder / "coordinator.log", sys.executable, *command)]
        _wait_for(home / "ticket.txt", processes[0])

        def start_peer(number: int, name: str) -> tuple[subprocess.Popen[str], Path]:
            place, host, rate = folder / name, hosts.peers[number], case.links[number]
            plan = {
                "rank": number,
                "peers": len(hosts.peers),
                "ticket": str(home / "ticket.txt"),
                "folder": str(place),
                "upload_mbit": 0.9 * rate,
                "step_seconds": case.step_seconds,
                **settings(number, folder),
            }
            arguments = ["-m", "benchmarks.home_links.ours", json.dumps(plan)]
            return _launch(host, folder / f"{name}.log", sys.executable, *arguments), place / "notes.jsonl"

        peers = [start_peer(number, f"peer-{number}") for number in range(len(case.links))]
        return Running([*processes, *(process for process, _ in peers)], [notes for _, notes in peers], start_peer)

    return start


def foreign(program: str, python: Path, settings: Settings = nothing, **fixed: object) -> Start:
    """A method that runs in an environment of its own, with the first peer's address as its meeting point."""

    def start(case: Case, hosts: Hosts, folder: Path) -> Running:
        processes, notes = [], []
        for number, host in enumerate(hosts.peers):
            notes.append(folder / f"peer-{number}.jsonl")
            plan = {
                "rank": number,
                "peers": len(hosts.peers),
                "addresses": [each.address for each in hosts.peers],
                "steps": case.steps,
                "notes": str(notes[-1]),
                "meeting": str(folder / "meeting.txt"),
                "links": case.links,
                **fixed,
                **settings(number, folder),
            }
            arguments = ["-m", f"benchmarks.home_links.{program}", json.dumps(plan)]
            processes.append(_launch(host, folder / f"peer-{number}.log", python, *arguments))
        return Running(processes, notes)

    return start


def _share_prepared_data(home: Path) -> None:
    """Data is prepared once for all cells."""
    kept = home.parents[1] / "data"
    if kept.exists():
        shutil.copytree(kept, home / "data")


def _launch(host: Host, log: Path, *command: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with log.open("w") as file:
        return host.popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file, stdin=subprocess.DEVNULL)


def _wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + TICKET_SECONDS
    while not path.exists():
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"{path} did not appear: see {path.parents[1] / 'coordinator.log'}")
        time.sleep(0.1)
