"""Looking at the global weights: held-out loss, a sample, and checkpoints that other software loads.

Runs beside the rounds in its own thread on its own copy of the model; when it cannot keep up it skips rounds, never
delays them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from configs import RunSpec
from peer.data.manifest import Manifest
from peer.data.order import order_key
from peer.data.reader import Rows, ShardReader
from peer.data.tokenizer import Tokenizer
from peer.errors import CommonweightsError
from peer.identity import PeerId
from peer.log.replica import Replica
from peer.training.checkpoint import export
from peer.training.model_card import Contributor, Provenance
from peer.training.tasks import build_model, load_task
from peer.training.trainer import Trainer

logger = logging.getLogger(__name__)

DEFAULT_PROMPT = "\n"


@dataclass(frozen=True)
class Evaluation:
    round: int
    tokens: int
    loss: float  # held-out, nats per token
    prompt: str = ""
    sample: str = ""


class Evaluator:
    """Evaluates and exports what the coordinator's replica holds. History is kept in `folder`/evaluations.jsonl."""

    def __init__(self, folder: Path, replica: Replica, manifest: Manifest, name_of: Callable[[PeerId], str]) -> None:
        self.folder = folder
        self.replica = replica
        self.manifest = manifest
        self.spec: RunSpec = replica.log.spec
        self.name_of = name_of
        self.on_event: Callable[[str], None] = logger.warning
        self.history = self._load_history()
        self.checkpoint: Path | None = self._newest_checkpoint()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="evaluate")
        self._pending: asyncio.Task[None] | None = None
        self._trainer: Trainer | None = None
        self._rows: Rows | None = None

    @property
    def newest(self) -> Evaluation | None:
        return self.history[-1] if self.history else None

    def after_round(self, round_: int) -> None:
        """Evaluate the state after `round_` in the background if it is due and the last evaluation is done."""
        busy = self._pending is not None and not self._pending.done()
        if round_ % self.spec.evaluation.every_rounds == 0 and not busy:
            self._pending = asyncio.create_task(
                self._quietly(export_too=round_ % self.spec.snapshots.every_rounds == 0)
            )

    async def finish(self, *, with_checkpoint: bool = True) -> None:
        """Bring evaluation and checkpoint up to the present state."""
        if self._pending is not None:
            await asyncio.wait([self._pending])
        round_ = self._trained_rounds()
        due = self.newest is None or self.newest.round != round_
        checkpoint_due = with_checkpoint and self._folder_of(round_) != self.checkpoint
        if due or checkpoint_due:
            await self._evaluate(export_too=checkpoint_due)

    async def close(self) -> None:
        """Give up what is under way; a checkpoint that was begun is completed."""
        if self._pending is not None:
            self._pending.cancel()
            await asyncio.gather(self._pending, return_exceptions=True)
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def _quietly(self, export_too: bool) -> None:
        try:
            await self._evaluate(export_too)
        except (CommonweightsError, OSError) as error:
            self.on_event(f"no evaluation or checkpoint this time, the run goes on: {error}")
        except Exception:
            logger.exception("evaluation failed; the run goes on")

    async def _evaluate(self, export_too: bool) -> None:
        theta = await self.replica.compute(self.replica.state.theta.clone)
        round_, tokens, digest = self._trained_rounds(), self.replica.log.accounts.tokens, self.replica.digest
        if self._rows is None:
            reader = ShardReader(self.manifest, self.folder / "data", key=order_key(self.spec.run.seed))
            self._rows = await reader.held_out(self.spec.evaluation.sequences)
        loop = asyncio.get_running_loop()
        evaluation = await loop.run_in_executor(self._thread, self._measure, theta, round_, tokens, self._rows)
        if self.newest is None or self.newest.round < round_:
            self.history.append(evaluation)
            with (self.folder / "evaluations.jsonl").open("a") as file:
                file.write(json.dumps(asdict(evaluation)) + "\n")
        if export_too:
            provenance = self._provenance(round_, tokens, digest, evaluation.loss)
            self.checkpoint = await loop.run_in_executor(self._thread, self._export, theta, round_, provenance)

    def _measure(self, theta: torch.Tensor, round_: int, tokens: int, rows: Rows) -> Evaluation:
        trainer = self._model()
        trainer.parameters.write(theta)
        batch = self.spec.train.batch_sequences
        loss = trainer.evaluate(rows[start : start + batch] for start in range(0, len(rows), batch))
        prompt, sample = "", ""
        if self.spec.evaluation.sample_tokens:
            tokenizer = Tokenizer.load(self.folder / "data" / "tokenizer")
            prompt = (self.spec.evaluation.prompts or [DEFAULT_PROMPT])[0]
            ids = trainer.generate(tokenizer.encode(prompt), self.spec.evaluation.sample_tokens, seed=round_)
            sample = tokenizer.decode(ids)
        return Evaluation(round_, tokens, loss, prompt, sample)

    def _export(self, theta: torch.Tensor, round_: int, provenance: Provenance) -> Path:
        target = export(
            self._folder_of(round_),
            theta,
            self.spec,
            vocab_size=self.manifest.vocab_size,
            end_of_text=self.manifest.end_of_text,
            tokenizer_folder=self.folder / "data" / "tokenizer",
            provenance=provenance,
        )
        for old in sorted(target.parent.glob("round-*"))[: -self.spec.snapshots.keep]:
            shutil.rmtree(old)
        return target

    def _provenance(self, round_: int, tokens: int, digest: bytes, loss: float) -> Provenance:
        credit = self.replica.log.accounts.credit
        return Provenance(
            run_id=self.replica.log.run_id.hex(),
            round=round_,
            tokens=tokens,
            state_digest=digest.hex(),
            data=str(self.manifest.source.get("path", "")),
            data_license=self.manifest.license,
            contributors=[
                Contributor(self.name_of(PeerId(key)), amount)
                for key, amount in sorted(credit.items(), key=lambda item: -item[1])
            ],
            eval_loss=loss,
        )

    def _model(self) -> Trainer:
        if self._trainer is None:
            model = build_model(self.spec, self.manifest.vocab_size, self.manifest.end_of_text)
            self._trainer = Trainer(self.spec, load_task(self.spec.model.task), model, torch.device("cpu"))
        return self._trainer

    def _trained_rounds(self) -> int:
        """The round that made the present state: the final record changes nothing."""
        entry = self.replica.log.entries[self.replica.state.round]
        return entry.round - entry.record.final

    def _folder_of(self, round_: int) -> Path:
        return self.folder / "checkpoints" / f"round-{round_:06d}"

    def _newest_checkpoint(self) -> Path | None:
        found = sorted((self.folder / "checkpoints").glob("round-*"))
        return found[-1] if found else None

    def _load_history(self) -> list[Evaluation]:
        try:
            lines = (self.folder / "evaluations.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return []
        history = []
        for line in lines:
            try:
                history.append(Evaluation(**json.loads(line)))
            except (ValueError, TypeError):
                continue  # cut off by a kill
        return history
