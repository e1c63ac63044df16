"""`commonweights health`: what container engines ask."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from peer.health import MISSED_ROUNDS, STALE_SECONDS, Facts, judge, read, write
from tests.commands import run

WELL = Facts(1000.0, "training", 7, reachable=True, alone=False, missed_rounds=0, paused_for="")


@pytest.mark.parametrize(
    ("facts", "healthy", "words"),
    [
        (WELL, True, "in step with the run at round 7"),
        (None, False, "no peer has run here"),
        (replace(WELL, seen=1000.0 - STALE_SECONDS - 1), False, "nothing was heard of the peer for 31 s"),
        (replace(WELL, reachable=False), False, "cut off"),
        (replace(WELL, alone=True), False, "cut off"),
        (replace(WELL, phase="syncing"), False, "not in sync"),
        (replace(WELL, missed_rounds=MISSED_ROUNDS), True, "training"),
        (replace(WELL, missed_rounds=MISSED_ROUNDS + 1), False, "not contributing: 6 rounds"),
        (replace(WELL, paused_for="outside the hours", missed_rounds=99), True, "paused: outside the hours"),
        (replace(WELL, paused_for="outside the hours", reachable=False), False, "cut off"),
    ],
)
def test_alive_is_not_enough(facts: Facts | None, healthy: bool, words: str) -> None:
    """In contact with the run and contributing, or paused by its owner: that is healthy, and nothing else."""
    verdict = judge(facts, 1000.0)
    assert verdict.healthy == healthy and words in verdict.reason


def test_the_newest_peer_below_a_folder_is_asked(tmp_path: Path) -> None:
    """The default folder holds a folder per run; a damaged file is none."""
    for name, seen in (("old", 1.0), ("new", 2.0), ("damaged", 3.0)):
        (tmp_path / name).mkdir()
        write(tmp_path / name, replace(WELL, seen=seen))
    (tmp_path / "damaged/health.json").write_text("{")
    assert read(tmp_path) == replace(WELL, seen=2.0) == read(tmp_path / "new")
    assert read(tmp_path / "damaged") is None


def test_the_exit_code_tells(tmp_path: Path) -> None:
    """1 and a reason where no peer runs; the program starts no framework to say so."""
    command = run("health", "--dir", tmp_path, "--json")
    assert command.code == 1
    assert command.json == {"healthy": False, "reason": "no peer has run here"}
