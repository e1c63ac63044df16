"""Is this peer of use to the run? For `commonweights health`, which container engines ask.

The running peer leaves a few facts in its folder every few seconds; whoever asks judges them. Alive is not enough: a
peer that is cut off, leads a swarm of nobody, or whose work is never merged is not healthy.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

FILE_NAME = "health.json"
STALE_SECONDS = 30.0  # facts older than this are of a peer that hangs, or has died
MISSED_ROUNDS = 5  # in a row without a contribution, until something is wrong


@dataclass(frozen=True)
class Facts:
    seen: float  # Unix seconds
    phase: str
    round: int  # the peer's state is after it
    reachable: bool  # whoever leads the run answers
    alone: bool  # this peer leads, and nobody follows
    missed_rounds: int  # since the peer's last merged contribution, or since it came into sync
    paused_for: str  # the owner's reason against training


@dataclass(frozen=True)
class Verdict:
    healthy: bool
    reason: str


def judge(facts: Facts | None, now: float) -> Verdict:
    """`now` in Unix seconds."""
    if facts is None:
        return Verdict(False, "no peer has run here")
    if now - facts.seen > STALE_SECONDS:
        return Verdict(False, f"nothing was heard of the peer for {now - facts.seen:.0f} s")
    if not facts.reachable:
        return Verdict(False, "cut off: nobody who leads the run answers")
    if facts.alone:
        return Verdict(False, "cut off: no other peer answers")
    if facts.paused_for:
        return Verdict(True, f"paused: {facts.paused_for}")
    if facts.phase == "syncing":
        return Verdict(False, "not in sync with the run yet")
    if facts.missed_rounds > MISSED_ROUNDS:
        return Verdict(False, f"in the swarm, but not contributing: {facts.missed_rounds} rounds went on without it")
    return Verdict(True, f"{facts.phase}, in step with the run at round {facts.round}")


def write(folder: Path, facts: Facts) -> None:
    """Replace what was said before. Not durably: it is worth nothing after a restart."""
    temporary = folder / f"{FILE_NAME}.tmp"
    temporary.write_text(json.dumps(asdict(facts)))
    os.replace(temporary, folder / FILE_NAME)


def read(folder: Path) -> Facts | None:
    """What the peer of this folder, or of the folder of a run in it, said last; None if there is nothing to read."""
    files = [folder / FILE_NAME, *folder.glob(f"*/{FILE_NAME}")]
    found = [facts for file in files if (facts := _read(file)) is not None]
    return max(found, key=lambda facts: facts.seen, default=None)


def _read(file: Path) -> Facts | None:
    try:
        return Facts(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return None
