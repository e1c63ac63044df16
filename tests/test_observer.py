"""What happens to the weights beside the rounds: evaluations and checkpoints of the right rounds, never in the way."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from coordinator.evaluate import Evaluation, Evaluator, Sample
from coordinator.names import Names
from coordinator.observer import Observer, observer_of
from coordinator.settings import CheckpointSettings, Settings
from peer.checkpoints.verification import verify_checkpoint
from peer.data.manifest import Manifest
from peer.exchange.blobs import BlobStore
from peer.exchange.exchange import Exchange
from peer.log.replica import Replica
from peer.swarm.memory import MemoryNetwork
from tests.checkpointed import Run


class Observed:
    """A run, a replica of it that applies each new record, and its observer."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.run = Run.make(folder, evaluation={"sample_tokens": 4, "prompts": ["def ", "class "], "sequences": 4})
        swarm = MemoryNetwork().node(self.run.identity)
        exchange = Exchange(swarm, BlobStore(folder / "blobs"))
        self.replica = Replica(folder, self.run.log, self.run.state.copy(), exchange, list)
        self.replica.digest = self.run.state.digest()
        names, chosen = Names(folder / "names.json"), Settings(checkpoints=CheckpointSettings(**settings))
        self.observer: Observer = observer_of(folder, self.replica, self.run.identity, names, chosen)

    async def round(self, **fields: Any) -> None:
        self.run.advance(**fields)
        await self.replica.apply_next()
        self.observer.after_round(self.replica.state.round)

    async def idle(self) -> None:
        if self.observer._under_way is not None:
            await asyncio.wait([self.observer._under_way])

    async def close(self) -> None:
        await self.observer.__aexit__()
        self.replica.close()


async def test_rounds_are_evaluated_and_archived_as_they_are_due(tmp_path: Path) -> None:
    """Every round measured; checkpoints of rounds 2 and 4 and of the end, each with the loss measured for it, and all
    of them what the log says."""
    here = Observed(tmp_path, every_rounds=2, keep_last=9)
    for _ in range(5):
        await here.round()
        await here.idle()
    await here.round(final=True)
    await here.observer.finish()
    assert [item.round for item in here.observer.evaluator.history] == [1, 2, 3, 4, 5]
    assert [item.round for item in here.observer.archive.checkpoints] == [2, 4, 5]
    losses = {item.round: item.loss for item in here.observer.evaluator.history}
    for checkpoint in here.observer.archive.checkpoints:
        assert checkpoint.manifest.eval_loss == losses[checkpoint.round]
        verdict = verify_checkpoint(here.observer.archive.folder_of(checkpoint.round), here.run.log)
        assert verdict.ok, verdict.errors
    await here.close()


async def test_prompts_and_seeds_are_fixed(tmp_path: Path) -> None:
    """Equal weights write the same after each of the run's prompts, whatever the round; perplexity goes with loss."""
    here = Observed(tmp_path)
    for _ in range(2):
        await here.round()
        await here.idle()
    first, second = here.observer.evaluator.history
    assert first.samples == second.samples and first.loss == second.loss
    assert [sample.prompt for sample in first.samples] == ["def ", "class "]
    assert first.perplexity == pytest.approx(2.718281828**first.loss)
    await here.close()


async def test_what_cannot_keep_up_skips(tmp_path: Path) -> None:
    """Rounds that come while one is being measured are not queued; the checkpoint that was due is made up for."""
    here = Observed(tmp_path, every_rounds=3)
    gate = threading.Event()
    measuring = asyncio.create_task(here.observer.evaluator.aside(gate.wait, 60))
    await asyncio.sleep(0)
    await here.round()
    for _ in range(3):
        await here.round()  # while the first is under way
    gate.set()
    assert await measuring
    await here.idle()
    assert [item.round for item in here.observer.evaluator.history] == [1]
    await here.round()
    await here.idle()
    assert [item.round for item in here.observer.archive.checkpoints] == [5]
    await here.close()


async def test_an_abandoned_round_is_marked(tmp_path: Path) -> None:
    """An evaluation of a round that the log lost is kept apart, and the round's next one counts, also after a start."""
    here = Observed(tmp_path, every_rounds=1)
    await here.round()
    await here.idle()
    await here.close()
    (tmp_path / "log" / "00000001.record").unlink()
    again = Observed(tmp_path, every_rounds=1)
    assert again.observer.evaluator.newest is None and again.observer.archive.newest is None
    assert [item.round for item in again.observer.evaluator.abandoned] == [1]
    await again.round(time_seconds=2.0)
    await again.idle()
    assert [item.round for item in again.observer.evaluator.history] == [1]
    assert [item.round for item in again.observer.archive.checkpoints] == [1]
    assert len(again.observer.evaluator.abandoned) == 1
    await again.close()


async def test_a_checkpoint_on_demand(tmp_path: Path) -> None:
    """Of the present state, though none is due; asked again it is the same one."""
    here = Observed(tmp_path, every_rounds=100)
    await here.round()
    made = await here.observer.checkpoint_now()
    assert made.round == 1 and (await here.observer.checkpoint_now()).content == made.content
    await here.close()


async def test_no_evaluation_is_no_reason_to_stop(tmp_path: Path) -> None:
    """Without held-out data a line says so, and the next round is tried again."""
    here = Observed(tmp_path)
    said: list[str] = []
    here.observer.on_event = said.append
    for shard in (tmp_path / "data").rglob("*held*"):
        if shard.is_file():
            shard.write_bytes(b"")
    await here.round()
    await here.idle()
    assert len(said) == 1 and "the run goes on" in said[0]
    assert here.observer.evaluator.history == []
    await here.close()


def test_history_survives_a_torn_line(tmp_path: Path) -> None:
    """A line that a kill cut off, or that is not an evaluation, is left out; the others come back as they were."""
    run = Run.make(tmp_path)
    item = Evaluation(0, 0, 5.0, (Sample("a", "ü\nb"),), run.log.head.hash.hex(), 3.0)
    line = json.dumps({**vars(item), "samples": [vars(sample) for sample in item.samples]})
    (tmp_path / "evaluations.jsonl").write_text(f'{line}\n[]\n{{"round": 1}}\n{line[:40]}')
    evaluator = Evaluator(tmp_path, run.log, Manifest.load(tmp_path / "data"))
    assert evaluator.history == [item]
    evaluator.close()


async def test_what_follows_a_torn_line_is_kept(tmp_path: Path) -> None:
    """The first evaluation after such a kill is there at the next start."""
    (tmp_path / "evaluations.jsonl").write_text('{"round": 1')
    here = Observed(tmp_path)
    await here.round()
    await here.idle()
    await here.close()
    again = Observed(tmp_path)
    assert again.observer.evaluator.history == here.observer.evaluator.history != []
    await again.close()
