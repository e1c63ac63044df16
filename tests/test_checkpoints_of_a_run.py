"""Checkpoints of runs that really trained: what others load, what comes back of it, and what was told meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from coordinator.settings import CheckpointSettings, Settings, TrackerSettings
from peer.checkpoints.fetch import local_copy
from peer.checkpoints.manifest import Checkpoint, folder_name
from peer.checkpoints.verification import verify_checkpoint
from peer.data.manifest import Manifest
from peer.data.order import order_key
from peer.data.reader import ShardReader
from peer.log.verify import verify
from tests.in_memory import Swarm, tiny_spec
from tests.test_checkpoint import FRESH_PROCESS

pytestmark = pytest.mark.timeout(240)


async def trained(folder: Path, settings: Settings | None = None, **changes: dict[str, object]) -> Swarm:
    """A finished run of one peer and three rounds, with outer momentum."""
    spec = tiny_spec(outer={"learning_rate": 0.7, "momentum": 0.9}, **changes)
    async with Swarm(folder, spec, settings) as swarm:
        swarm.start("peer")
        await swarm.begin(1)
        await swarm.finish()
    return swarm


def fresh_losses(rows: Path, *folders: Path) -> list[float]:
    """As a process without this project measures them."""
    found = subprocess.run(
        [sys.executable, "-c", FRESH_PROCESS, str(rows), *map(str, folders)],
        cwd=rows.parent,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line)["loss"] for line in found.stdout.splitlines() if line.startswith("{")]


@pytest.mark.slow
async def test_a_fresh_process_measures_the_loss_that_was_reported(tmp_path: Path) -> None:
    """transformers alone, in a process without this project, gets the coordinator's held-out loss for each checkpoint,
    from the folder and from its copy elsewhere; all of them are what the log says, and differ."""
    away = f"file://{tmp_path}/away"
    settings = Settings(checkpoints=CheckpointSettings(every_rounds=1, upload=[away]))
    swarm = await trained(tmp_path, settings)
    folder, log = tmp_path / "coordinator", swarm.coordinator.log
    manifest, spec = Manifest.load(folder / "data"), log.spec
    rows = await ShardReader(manifest, folder / "data", key=order_key(spec.run.seed)).held_out(
        spec.evaluation.sequences
    )
    np.save(tmp_path / "rows.npy", np.asarray(rows))
    reported = {item.round: item.loss for item in swarm.coordinator.evaluator.history}
    places = [folder / "checkpoints" / folder_name(round_) for round_ in (1, 2, 3)]
    places.append(tmp_path / "away" / folder_name(3))
    losses = fresh_losses(tmp_path / "rows.npy", *places)
    assert losses == pytest.approx([reported[1], reported[2], reported[3], reported[3]], rel=1e-5)
    assert len({round(loss, 4) for loss in losses}) == 3
    for place in places:
        verdict = verify_checkpoint(place, log)
        assert verdict.ok, verdict.errors
    with local_copy(f"{away}/{folder_name(1)}") as copy:
        assert Checkpoint.load(copy).state_digest == log.entries[2].record.base_digest


@pytest.mark.parametrize("lost", ["snapshots", "snapshots and checkpoints"])
async def test_a_coordinator_without_snapshots_makes_them_again(tmp_path: Path, lost: str) -> None:
    """From its newest checkpoint and a replay, or from the first weights and a replay: the same digest, momentum and
    all, and a folder that verifies."""
    swarm = await trained(tmp_path, Settings(checkpoints=CheckpointSettings(every_rounds=2)))
    folder, digest = tmp_path / "coordinator", swarm.coordinator.replica.digest
    shutil.rmtree(folder / "snapshots")
    if "checkpoints" in lost:
        shutil.rmtree(folder / "checkpoints")
    else:
        shutil.rmtree(folder / "checkpoints" / folder_name(3))  # so that there is something to replay
    again = Swarm(tmp_path, swarm.spec, swarm.settings)
    await again.start_coordinator()
    assert again.coordinator.replica.digest == digest
    said = " ".join(again.events)
    assert ("the state after round 2 is back" in said) == ("checkpoints" not in lost)
    await again.finish()
    await again.__aexit__()
    verdict = verify(folder)
    assert verdict.ok and verdict.state_digest == digest.hex(), verdict.errors


async def test_trackers_hear_of_every_round(tmp_path: Path) -> None:
    """TensorBoard's file of a run that trained: the loss of each round and the held-out losses of the evaluations."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    swarm = await trained(tmp_path, Settings(trackers=TrackerSettings(use=["tensorboard"], project="p")))
    found = reader.EventAccumulator(str(tmp_path / "coordinator" / "trackers" / "p"))
    found.Reload()
    losses = swarm.coordinator.log.accounts.losses
    assert [(item.step, item.value) for item in found.Scalars("loss")] == [
        (round_, pytest.approx(loss, rel=1e-6)) for round_, loss in losses
    ]
    measured = {item.step: item.value for item in found.Scalars("held_out_loss")}
    for item in swarm.coordinator.evaluator.history:
        assert measured[item.round] == pytest.approx(item.loss, rel=1e-6)
    assert found.Scalars("peers")[0].value == 1
