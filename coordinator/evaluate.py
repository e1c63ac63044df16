"""Looking at the global weights: held-out loss, and what they write after the run's prompts.

Prompts and seeds are the same every time, so that two rounds can be compared. Measuring runs in a thread of its own,
with half of the cores at most and at low priority: on a machine that also trains, training comes first.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from configs import RunSpec
from peer.checkpoints.manifest import names_record
from peer.data.manifest import Manifest
from peer.data.order import order_key
from peer.data.reader import Rows, ShardReader
from peer.data.tokenizer import Tokenizer
from peer.log.chain import Log
from peer.training.tasks import build_model, load_task
from peer.training.trainer import Trainer
from peer.yielding import stand_back

DEFAULT_PROMPT = "\n"

T = TypeVar("T")


@dataclass(frozen=True)
class Sample:
    prompt: str
    text: str  # what the model goes on with


@dataclass(frozen=True)
class Evaluation:
    round: int
    tokens: int  # accepted up to that round
    loss: float  # held-out, nats per token
    samples: tuple[Sample, ...] = ()  # one for each prompt
    record_hash: str = ""  # hex; of the record that gave these weights
    time_seconds: float = 0.0  # Unix

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def prompt(self) -> str:
        return self.samples[0].prompt if self.samples else ""

    @property
    def sample(self) -> str:
        return self.samples[0].text if self.samples else ""

    def counts_in(self, log: Log) -> bool:
        """Whether `log` holds the record that gave these weights; not after it was rolled back behind it."""
        return names_record(log, self.round, bytes.fromhex(self.record_hash))


class Evaluator:
    """Measures weights, and keeps the history of it in `folder`/evaluations.jsonl."""

    def __init__(self, folder: Path, log: Log, manifest: Manifest) -> None:
        self.folder = folder
        self.log = log
        self.manifest = manifest
        self.spec: RunSpec = log.spec
        self.all = _read(folder / "evaluations.jsonl")  # also of rounds that were given up since
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="evaluate", initializer=_step_back)
        self._trainer: Trainer | None = None
        self._rows: Rows | None = None

    @property
    def history(self) -> list[Evaluation]:
        """By round; without those of rounds that the log does not hold any more."""
        counting = {item.round: item for item in self.all if item.counts_in(self.log)}
        return [counting[round_] for round_ in sorted(counting)]

    @property
    def abandoned(self) -> list[Evaluation]:
        """Of rounds that were in the log when they were measured, and then lost to another chain."""
        return [item for item in self.all if not item.counts_in(self.log)]

    @property
    def newest(self) -> Evaluation | None:
        return next((item for item in reversed(self.all) if item.counts_in(self.log)), None)

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def evaluate(self, theta: torch.Tensor, round_: int, tokens: int, record_hash: bytes) -> Evaluation:
        """Measure θ (fp32 [parameters]), the weights after `round_`, and add that to the history.

        Raises:
            DataError, UnreachableError: the held-out rows or the tokenizer cannot be read.
            OSError: the history cannot be written.
        """
        if self._rows is None:
            reader = ShardReader(self.manifest, self.folder / "data", key=order_key(self.spec.run.seed))
            self._rows = await reader.held_out(self.spec.evaluation.sequences)
        threads = torch.get_num_threads()
        loss, samples = await self.aside(self._measure, theta, self._rows)
        torch.set_num_threads(threads)  # what `_step_back` set holds for that thread; threads to come start from here
        evaluation = Evaluation(round_, tokens, loss, samples, record_hash.hex(), time.time())
        self.all.append(evaluation)
        with (self.folder / "evaluations.jsonl").open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps(asdict(evaluation), ensure_ascii=False))  # whatever a kill left before it
        return evaluation

    async def aside(self, work: Callable[..., T], *arguments: object) -> T:
        """Run something heavy that can wait, in the thread for that."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    def _measure(self, theta: torch.Tensor, rows: Rows) -> tuple[float, tuple[Sample, ...]]:
        trainer = self._model()
        trainer.parameters.write(theta)
        batch = self.spec.train.batch_sequences
        loss = trainer.evaluate(rows[start : start + batch] for start in range(0, len(rows), batch))
        return loss, self._samples(trainer)

    def _samples(self, trainer: Trainer) -> tuple[Sample, ...]:
        length = self.spec.evaluation.sample_tokens
        if not length:
            return ()
        tokenizer = Tokenizer.load(self.folder / "data" / "tokenizer")
        prompts: Sequence[str] = self.spec.evaluation.prompts or [DEFAULT_PROMPT]
        return tuple(
            Sample(prompt, tokenizer.decode(trainer.generate(tokenizer.encode(prompt), length, seed=number)))
            for number, prompt in enumerate(prompts, start=self.spec.run.seed)
        )

    def _model(self) -> Trainer:
        if self._trainer is None:
            model = build_model(self.spec, self.manifest.vocab_size, self.manifest.end_of_text)
            self._trainer = Trainer(self.spec, load_task(self.spec.model.task), model, torch.device("cpu"))
        return self._trainer


def _step_back() -> None:
    """Make room for everybody else: called in the thread that measures."""
    stand_back()
    torch.set_num_threads(max(1, torch.get_num_threads() // 2))


def _read(path: Path) -> list[Evaluation]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            found.append(_parsed(json.loads(line)))
        except (ValueError, TypeError, LookupError):
            continue  # cut off by a kill
    return found


def _parsed(raw: dict[str, Any]) -> Evaluation:
    bytes.fromhex(raw["record_hash"])
    return Evaluation(**{**raw, "samples": tuple(Sample(**sample) for sample in raw["samples"])})
