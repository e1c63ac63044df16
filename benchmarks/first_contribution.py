"""From nothing to a first accepted contribution: what a newcomer waits for, and where the time goes.

    python -m benchmarks.first_contribution [--write]

A wheel of this checkout, a home folder with nothing in it (no package cache, no settings), a fresh virtual environment,
and the two commands of docs/volunteer.md: `pip install`, `commonweights join`. The run is the demo's; a coordinator and
a peer of this checkout are at it on the same machine. Makes the table of docs/volunteer.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.tables import table, write_between_markers
from tests.commands import free_port, journal, records, running, until

ROOT = Path(__file__).parent.parent
STEP_SECONDS = 1200.0  # no step takes longer
# What a peer's log file says at the end of each part of `join`.
Line = dict[str, Any]
MOMENTS: tuple[tuple[str, Callable[[Line], bool]], ...] = (
    ("load the program", lambda line: "looking for the swarm" in line["message"]),
    ("find the swarm, fetch its state", lambda line: "in sync at round" in line["message"]),
    ("train, hand in, be merged", lambda line: line.get("rounds_contributed", 0) > 0),
)


class Newcomer:
    """Somebody who has Python, a home folder with nothing in it, and a wheel."""

    def __init__(self, home: Path) -> None:
        self.bin = home / "venv" / "bin"
        ours = ("COMMONWEIGHTS_", "HF_", "XDG_", "PYTHON", "VIRTUAL_ENV")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        self.environment = {**kept, "HOME": str(home), "OMP_NUM_THREADS": "1"}
        self.home = home

    def __call__(self, *command: object) -> tuple[float, str]:
        """Seconds, and stdout."""
        started = time.monotonic()
        done = subprocess.run(
            list(map(str, command)), cwd=self.home, env=self.environment, capture_output=True, text=True,
            timeout=STEP_SECONDS, check=False,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        return time.monotonic() - started, done.stdout


def parts_of_join(lines: list[Line], started: datetime) -> list[tuple[str, float]]:
    """Seconds from each moment to the next, the first from `started`."""
    rows = []
    for what, is_over in MOMENTS:
        over = datetime.fromisoformat(next(line["time"] for line in lines if is_over(line)))
        rows.append((f"`join`: {what}", (over - started).total_seconds()))
        started = over
    return rows


def measure(folder: Path, home: Path) -> list[tuple[str, float]]:
    """(part, seconds), from the wheel to the first credit."""
    wheels = folder / "wheels"
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(wheels), str(ROOT)]
    subprocess.run(build, check=True, timeout=STEP_SECONDS)
    (wheel,) = wheels.glob("*.whl")
    newcomer = Newcomer(home)
    rows = [
        ("`python -m venv`", newcomer(sys.base_prefix + "/bin/python3", "-m", "venv", newcomer.bin.parent)[0]),
        ("`pip install`", newcomer(newcomer.bin / "pip", "install", "-q", wheel)[0]),
    ]
    print(rows, flush=True)
    config = folder / "demo.toml"
    config.write_text((ROOT / "configs/demo.toml").read_text().replace("rounds = 13 ", "rounds = 0 "))
    serve = ("serve", config, "--dir", folder / "run", "--host", "127.0.0.1", "--grpc-port", free_port())
    with running(*serve, "--swarm-port", free_port(), program="coordinator.cli"):
        ticket = folder / "run" / "ticket.txt"
        until(ticket.is_file, "the ticket is written")
        with running("join", ticket, "--dir", folder / "resident", "--always"):
            until(lambda: records(folder / "run") >= 2, "the run is under way", 300)
            started = datetime.now().astimezone()
            _, out = newcomer(newcomer.bin / "commonweights", "join", ticket, "--rounds", "1", "--json")
    report = json.loads(out.splitlines()[-1])
    assert report["rounds_contributed"] >= 1 and report["credit_tokens"] > 0, report
    (peer,) = (home / ".commonweights").glob("*/peer.jsonl")
    return [*rows, *parts_of_join(journal(peer.parent), started)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into docs/volunteer.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as home:
        rows = measure(Path(folder), Path(home))
    joining = sum(seconds for what, seconds in rows if what.startswith("`join`"))
    cells = [(what, f"{seconds:.1f}") for what, seconds in rows]
    cells.append(("**from `join` to the first accepted contribution**", f"**{joining:.0f}**"))
    cells.append(("**from nothing**", f"**{sum(seconds for _, seconds in rows):.0f}**"))
    text = table(("step", "seconds"), cells)
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}\n\n{text}")
    if arguments.write:
        write_between_markers(ROOT / "docs" / "volunteer.md", text, "first")


if __name__ == "__main__":
    main()
