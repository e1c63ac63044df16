"""A place where faults can happen to a coordinator and its peers. Two implementations: memory.py and processes.py.

A node's name is also the name of its folder below `folder`; "coordinator" is one of them. Everything that is judged
afterwards is read from there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from configs import RunSpec
from tests.faults.schedule import Phase, What
from tests.in_memory import tiny_spec


@dataclass(frozen=True)
class Left:
    """What a node said when it left politely."""

    head_round: int
    state_digest: str


class World(Protocol):
    folder: Path

    @property
    def cannot(self) -> Mapping[What, str]:
        """Faults that this world does not have, and why."""

    async def start(self, name: str, *, skew_seconds: float = 0.0) -> None:
        """Start a node from its folder, made if it is not there yet."""

    async def stop(self) -> dict[str, Left]:
        """Ask all that live to leave politely, the coordinator last."""

    def begin(self) -> None:
        """Let the rounds begin, if they wait for that."""

    def kill(self, name: str) -> None: ...

    def pause(self, name: str, paused: bool) -> None: ...

    def slow(self, name: str, mbit: float | None) -> None: ...

    def cut(self, *names: str) -> None:
        """These nodes on one side, all others on the other; nobody: the network is whole again."""

    def lie(self, name: str, lies: bool) -> None: ...

    def fill(self, name: str, full: bool) -> None: ...

    def order(self, name: str, phase: Phase, round: int, what: What) -> None:
        """As soon as the node is in this phase of this round or of a later one: kill or pause it right there; for
        anything else just count (`reached`)."""

    def reached(self, name: str) -> int:
        """How many orders this node has come to."""

    def alive(self) -> set[str]:
        """Nodes that were started and neither killed nor ended."""

    def ended(self) -> dict[str, str]:
        """Nodes that ended without being killed or stopped, with what they said."""


def fault_spec(**changes: dict[str, object]) -> RunSpec:
    """Endless rounds of about a second, closed by tokens: who is missing costs a deadline, not the round."""
    sections: dict[str, dict[str, object]] = {
        "run": {"name": "faults", "seed": 3, "rounds": 0},
        "round": {"target_tokens": 8192, "inner_steps": 0, "max_seconds": 10, "overlap": True},
        "snapshots": {"every_rounds": 5},
        "evaluation": {"every_rounds": 1000, "sequences": 8, "sample_tokens": 0},
        "timing": {"heartbeat_seconds": 0.5, "silence_seconds": 3, "lease_seconds": 5, "first_deadline_seconds": 3},
    }
    for section, values in changes.items():
        sections[section] = {**sections.get(section, {}), **values}
    return tiny_spec(**sections)


def rot(folder: Path) -> None:
    """One bit flips in every blob, in every snapshot's manifest and in the newest record below `folder`."""
    records = sorted((folder / "log").glob("*.record"))[1:][-1:]
    files = [path for part in ("blobs", "snapshots") for path in (folder / part).rglob("*") if path.is_file()]
    for path in (*files, *records):
        with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:  # its owner lives, and may delete it
            before, content = os.fstat(file.fileno()), file.read()
            middle = len(content) // 2
            file.seek(middle)
            file.write(bytes(byte ^ 0x10 for byte in content[middle : middle + 1]))
            file.flush()
            os.utime(file.fileno(), ns=(before.st_atime_ns, before.st_mtime_ns))  # nobody wrote it
