"""What is trained in `training.py`: a llama of ten million parameters on the sources of Python's standard library, by
four peers of unequal speed. Data, first weights and held-out rows are prepared once, for all methods."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import torch

from benchmarks.home_links.methods import TEXT
from configs import RunSpec
from configs.load import load
from coordinator.genesis import initial_state
from coordinator.prepare import prepare
from peer.data.order import order_key
from peer.data.reader import ShardReader
from peer.training.tasks import build_model, load_task
from peer.training.trainer import Trainer

SPEEDS = (4, 2, 1, 1)
LINKS = (20.0, 20.0, 20.0, 20.0)  # Mbit/s, each direction
ROWS = 4  # of a step
LENGTH = 128  # tokens of a row
SLOWEST_STEP_SECONDS = 1.5  # of ROWS rows, on a device of speed 1
WARMUP_ROWS = 192  # of all peers together; then the learning rate is constant
TRAINING_ROWS = 16_384  # for the alternatives, which know no leases
HELD_OUT_ROWS = 128

ROWS_PER_SECOND = sum(SPEEDS) * ROWS / SLOWEST_STEP_SECONDS  # of all devices, when none waits


def config(
    learning_rate: float,
    round_seconds: float = 8.0,
    codec: str = "lowbit2",
    outer: tuple[float, float] = (1.0, 0.0),
    overlap: bool = True,
    resets_momentum: bool = True,
    keep_unsent: float = 0.5,
) -> str:
    """The run spec. A round is called to its close after `round_seconds` of everybody's compute."""
    return f"""
[run]
name = "real training"
tokens = {10**12}
[model.config]
hidden_size = 512
intermediate_size = 1382
num_hidden_layers = 3
num_attention_heads = 8
num_key_value_heads = 8
tie_word_embeddings = true
[data]
sequence_length = {LENGTH}
held_out_fraction = 0.02
{TEXT}
[train]
batch_sequences = {ROWS}
learning_rate = {learning_rate}
schedule = "constant"
warmup_tokens = {WARMUP_ROWS * LENGTH}
reset_momentum = {str(resets_momentum).lower()}
precision = "bf16"
[round]
target_tokens = {round(round_seconds * ROWS_PER_SECOND) * LENGTH}
overlap = {str(overlap).lower()}
[codec]
name = "{codec}"
keep_unsent = {keep_unsent}
[outer]
learning_rate = {outer[0]}
momentum = {outer[1]}
[evaluation]
every_rounds = 1000
sequences = 1
sample_tokens = 0
[timing]
heartbeat_seconds = 0.5
first_deadline_seconds = {2 * round_seconds}
"""


class Workload:
    """Files in `folder`: `data` as `prepare` makes it, and for the alternatives config.json, initial.npy, rows.npy."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        (folder / "run.toml").write_text(config(1e-3))
        self.spec: RunSpec = load(folder / "run.toml")
        manifest = prepare(self.spec, folder / "data")
        self._model = build_model(self.spec, manifest.vocab_size, manifest.end_of_text)

        async def read() -> None:
            async with ShardReader(manifest, folder / "data", key=order_key(self.spec.run.seed)) as reader:
                self.held_out = await reader.held_out(HELD_OUT_ROWS)
                np.save(folder / "rows.npy", await reader.rows(range(TRAINING_ROWS)))

        asyncio.run(read())
        self._model.config.save_pretrained(folder)  # type: ignore[operator, union-attr]
        np.save(folder / "initial.npy", initial_state(self.spec, manifest).theta.numpy())
        self.trainer = Trainer(self.spec, load_task(self.spec.model.task), self._model, torch.device("cpu"))

    @property
    def parameters(self) -> int:
        return self.trainer.parameters.count

    @property
    def is_bf16(self) -> bool:
        return self.trainer.precision == "bf16"

    def loss(self, weights: Path) -> float:
        """Held-out nats per byte. `weights`: a file with fp32 [parameters]."""
        self.trainer.parameters.write(torch.from_numpy(np.load(weights)))
        return self.trainer.evaluate(np.array_split(self.held_out, len(self.held_out) // 16))
