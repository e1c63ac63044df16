"""The inner steps of a peer: AdamW on its own device, through accelerate.

A `Trainer` owns the model's copy on the device and the optimizer's moments; the rest of the program sees the model as
one flat fp32 vector (`FlatParameters`), which the outer step rewrites in place under the running optimizer. What
differs between machines stays in here: precision, micro-batch, memory. One thread calls a trainer.

On a CPU with equal thread counts the same calls give the same bits. On GPUs they do not quite: kernels add up in an
order of their own.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate.utils.memory import should_reduce_batch_size

from configs.schema import RunSpec
from peer.errors import CommonweightsError
from peer.training.acceleration import accelerated
from peer.training.hardware import choose_precision
from peer.training.inner_optimizer import allocate_state, build_optimizer, forget_direction, load_state, save_state
from peer.training.ranks import Alone, Team
from peer.training.schedule import learning_rate
from peer.training.tasks import Task

Rows = np.ndarray[Any, Any] | torch.Tensor  # token ids [rows, T], any integer type

# Tokens of a micro-batch on a CPU, where memory cannot be probed without swapping, and larger ones are no faster.
CPU_MICRO_BATCH_TOKENS = 2048
# A larger micro-batch must be so much faster to be worth its memory.
WORTHWHILE_SPEED_UP = 1.05

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class StepResult:
    loss: float  # mean nats per token; not finite when the step was skipped for that
    tokens: int  # consumed, also by a skipped step
    seconds: float
    gradient_norm: float  # before clipping
    learning_rate: float
    skipped: bool  # loss or gradient was not finite: weights and optimizer are as before


class FlatParameters:
    """A model's trainable parameters as one flat vector, in `named_parameters()` order, tied weights once.

    It copies in both directions and keeps no memory of its own. Writing is in place: the optimizer's moments stay
    attached.
    """

    def __init__(self, model: torch.nn.Module, on_write: Callable[[], None] = lambda: None) -> None:
        self._on_write = on_write
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.count = sum(parameter.numel() for parameter in self._parameters)

    def read(self, out: torch.Tensor | None = None) -> torch.Tensor:
        """The weights as fp32 [count] on the CPU; into `out` when given."""
        out = torch.empty(self.count) if out is None else out
        self._check(out)
        with torch.no_grad():
            for parameter, part in self._parts(out):
                part.copy_(parameter)
        return out

    def write(self, vector: torch.Tensor) -> None:
        """Set the weights from fp32 [count]."""
        self._check(vector)
        self._on_write()
        with torch.no_grad():
            for parameter, part in self._parts(vector):
                parameter.copy_(part)

    def change(self, change: Callable[[torch.Tensor, slice], torch.Tensor]) -> None:
        """Rewrite the weights parameter by parameter: no copy of the whole model is made.

        Args:
            change: (a parameter's weights as fp32 on the CPU, its to overwrite; their place in the flat vector) -> the
                new ones.
        """
        start = 0
        with torch.no_grad():
            for parameter in self._parameters:
                weights = torch.empty(parameter.numel())
                weights.view(parameter.shape).copy_(parameter)
                stop = start + parameter.numel()
                parameter.copy_(change(weights, slice(start, stop)).view(parameter.shape))
                start = stop

    def _parts(self, vector: torch.Tensor) -> Iterator[tuple[torch.nn.Parameter, torch.Tensor]]:
        start = 0
        for parameter in self._parameters:
            yield parameter, vector[start : start + parameter.numel()].view(parameter.shape)
            start += parameter.numel()

    def _check(self, vector: torch.Tensor) -> None:
        assert vector.shape == (self.count,) and vector.dtype == torch.float32, (
            f"{vector.dtype} {tuple(vector.shape)} for [{self.count}]"
        )


class _Loss(torch.nn.Module):
    """The loss as a module: accelerate wraps its forward pass, and raises a scalar to fp32 instead of all logits."""

    def __init__(self, task: Task, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        self._task = task

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self._task.loss(self.model, rows)


class Trainer:
    """Trains one model on one device.

    `model` comes from `task.build_model` and is moved to `device`. The optimizer's memory is taken at the first step,
    so a trainer that only evaluates costs no more than the model.
    """

    def __init__(
        self, spec: RunSpec, task: Task, model: torch.nn.Module, device: torch.device, team: Team | None = None
    ) -> None:
        self._team: Team = team or Alone()
        self.spec = spec
        self.task = task
        self.model = model
        self.precision = choose_precision(spec.train.precision, device)
        with _too_large(model, device):
            self.accelerator, self._loss, self._optimizer = accelerated(
                _Loss(task, model), lambda: build_optimizer(model, spec.train), device, self.precision
            )
        self.device = next(model.parameters()).device
        self.parameters = FlatParameters(model, lambda: self._team.touched("weights"))
        self.trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._has_dropout = _has_dropout(model)
        self.micro_batch_sequences = self._initial_micro_batch()  # 0: to be measured
        self.on_fit: Callable[[int], None] = lambda sequences: None  # told of a micro-batch that was found to fit
        self.skipped_steps = 0
        self._recomputes = False  # gradient checkpointing
        self._loss.train()

    def step(self, batch: Rows, tokens_before: int) -> StepResult:
        """One optimizer step on `batch` [rows, T].

        `tokens_before`: the run's tokens so far (in the log, plus own ones since); it sets the learning rate. The batch
        is worked off in micro-batches whose gradients add up to the whole batch's. Running out of device memory halves
        the micro-batch and repeats the step.

        Raises:
            CommonweightsError: even one sequence does not fit into the device's memory.
        """
        started = time.perf_counter()
        rows = self._place(batch)
        rate = learning_rate(self.spec, tokens_before)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        with _too_large(self.model, self.device):
            allocate_state(self._optimizer)
        share = self._team.share(self, rows, tokens_before)
        if self.micro_batch_sequences == 0:
            self.micro_batch_sequences = self._measure_micro_batch(rows)
            self.on_fit(self.micro_batch_sequences)
        with self._reproducible_dropout(tokens_before + self._team.rank):
            own_loss = self._within_memory(lambda: self._accumulate_gradient(share, len(rows)))
        mean_loss = self._team.add_up(self, own_loss)
        raw_norm = self.accelerator.clip_grad_norm_(self.trainable, self.spec.train.clip_norm)
        loss, norm = torch.stack([mean_loss, raw_norm.to(mean_loss)]).tolist()  # the only wait for the device
        skipped = not (math.isfinite(loss) and math.isfinite(norm))
        if skipped:
            self.skipped_steps += 1
            logger.warning("step skipped: loss %s, gradient norm %s (%d so far)", loss, norm, self.skipped_steps)
        self._update(skipped)
        return StepResult(loss, rows.numel(), time.perf_counter() - started, norm, rate, skipped)

    def evaluate(self, batches: Iterable[Rows]) -> float:
        """Mean nats per token over all rows of `batches` (each [rows, T]); no dropout, nothing is changed."""
        total, count = 0.0, 0
        self._loss.eval()
        try:
            with torch.no_grad():
                for batch in batches:
                    rows = self._place(batch)
                    total += self._within_memory(lambda rows=rows: self._summed_loss(rows))  # type: ignore[misc]
                    count += len(rows)
        finally:
            self._loss.train()
        assert count, "nothing to evaluate on"
        return total / count

    def generate(
        self, prompt: Sequence[int], tokens: int, *, seed: int = 0, temperature: float = 0.8, top_k: int = 50
    ) -> list[int]:
        """At most `tokens` ids that continue `prompt` (without it); equal seeds give equal samples."""
        self._loss.eval()
        try:
            return self.task.generate(self.model, prompt, tokens, seed=seed, temperature=temperature, top_k=top_k)
        finally:
            self._loss.train()

    def forget_direction(self) -> None:
        """AdamW's first moment starts anew: the weights were moved by others, and it points elsewhere now."""
        self._team.touched("direction")
        forget_direction(self._optimizer)

    def optimizer_states(self) -> list[dict[str, torch.Tensor]]:
        """AdamW's tensors, by parameter."""
        return [self._optimizer.state[parameter] for parameter in self.trainable]

    def close(self) -> None:
        """End the processes of a team."""
        self._team.close()

    def save_optimizer(self, path: Path) -> None:
        """Keep AdamW's moments (and the loss scale) in a safetensors file."""
        scaler = self.accelerator.scaler
        save_state(path, self.model, self._optimizer, {"loss_scale": scaler.get_scale()} if scaler else {})

    def load_optimizer(self, path: Path) -> bool:
        """Take up what `save_optimizer` kept. False, and a fresh state, when the file is missing or does not fit."""
        self._team.touched("state")
        extra = load_state(path, self.model, self._optimizer)
        scaler = self.accelerator.scaler
        if extra is not None and scaler is not None and extra.get("loss_scale", 0.0) > 0.0:
            scaler.load_state_dict({**scaler.state_dict(), "scale": extra["loss_scale"]})
        return extra is not None

    def _accumulate_gradient(self, rows: torch.Tensor, of_rows: int) -> torch.Tensor:
        """Leaves in the parameters what these rows contribute to the gradient of the mean loss of `of_rows`; returns
        what they contribute to that loss."""
        mean = torch.zeros((), device=self.device)
        for piece in self._pieces(rows):
            loss = self._loss(piece) * (len(piece) / of_rows)
            self.accelerator.backward(loss)
            mean += loss.detach()
        return mean

    def _update(self, skipped: bool) -> None:
        scaler = self.accelerator.scaler
        if scaler is not None:  # it has seen the overflow itself, and answers with a smaller scale instead of a step
            scaler.step(self._optimizer)
            scaler.update()
        elif not skipped:
            self._optimizer.step()
        self._optimizer.zero_grad()

    def _summed_loss(self, rows: torch.Tensor) -> float:
        return sum(float(self._loss(piece)) * len(piece) for piece in self._pieces(rows))

    def _pieces(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Micro-batches of nearly equal size, so that none is a small remainder."""
        if not len(rows):  # a small batch shared among many
            return ()
        limit = self.micro_batch_sequences or len(rows)
        return torch.tensor_split(rows, math.ceil(len(rows) / limit))

    def _place(self, batch: Rows) -> torch.Tensor:
        rows = torch.from_numpy(batch.astype(np.int64)) if isinstance(batch, np.ndarray) else batch.long()
        return rows.to(self.device)

    @contextlib.contextmanager
    def _reproducible_dropout(self, tokens_before: int) -> Iterator[None]:
        """Dropout masks that follow from the run's seed and the token count; the global generators stay as they are."""
        if not self._has_dropout:
            yield
            return
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed((self.spec.run.seed * 0x9E3779B97F4A7C15 + tokens_before) % (1 << 63))
            yield

    def _initial_micro_batch(self) -> int:
        train = self.spec.train
        if train.micro_batch_sequences or self.device.type != "cpu":
            return train.micro_batch_sequences
        return max(1, min(train.batch_sequences, CPU_MICRO_BATCH_TOKENS // self.spec.data.sequence_length))

    def _measure_micro_batch(self, rows: torch.Tensor) -> int:
        """The smallest power of two (or the whole batch) that is about as fast per row as any that fits into memory."""
        whole = max(self.spec.train.batch_sequences, len(rows))
        rows = rows.repeat(math.ceil(whole / len(rows)), 1)[:whole]  # the first batch may be a small rest
        best, best_speed, size = 1, 0.0, 1
        while True:
            self.micro_batch_sequences = size
            try:
                # The first of a shape also plans kernels and takes memory.
                float(self._accumulate_gradient(rows[:size], size))
                started = time.perf_counter()
                float(self._accumulate_gradient(rows[:size], size))
                speed = size / (time.perf_counter() - started)
            except Exception as error:
                if not _is_out_of_memory(error):
                    raise
                logger.debug("micro-batch %d does not fit into memory", size)
                break
            if speed > best_speed * WORTHWHILE_SPEED_UP:
                best, best_speed = size, speed
            if size == len(rows):
                break
            size = min(2 * size, len(rows))
        self._release_memory()
        logger.info("micro-batch: %d of %d sequences", best, len(rows))
        return best

    def _within_memory(self, work: Callable[[], T]) -> T:
        """`work()`, again and with smaller micro-batches while the device runs out of memory."""
        while True:
            try:
                return work()
            except Exception as error:
                if not _is_out_of_memory(error):
                    raise
            # Here, and not in the handler: the error's traceback kept the failed pass's tensors alive.
            self._shrink()

    def _shrink(self) -> None:
        self._release_memory()
        if self.micro_batch_sequences != 1:
            self.micro_batch_sequences = max(1, (self.micro_batch_sequences or self.spec.train.batch_sequences) // 2)
            self.on_fit(self.micro_batch_sequences)
            logger.warning(
                "out of memory on %s: going on with micro-batches of %d", self.device, self.micro_batch_sequences
            )
            return
        if self._recomputes or not getattr(self.model, "supports_gradient_checkpointing", False):
            raise CommonweightsError(
                f"out of memory: {self.device} cannot hold one sequence of {self.spec.data.sequence_length} tokens of"
                " this model; close other programs that use it, or join with --device cpu or a larger GPU"
            )
        _recompute_activations(self.model)
        self._recomputes = True
        logger.warning("out of memory on %s: going on with gradient checkpointing (slower)", self.device)

    def _release_memory(self) -> None:
        self._optimizer.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        elif self.device.type == "mps":
            torch.mps.empty_cache()


@contextlib.contextmanager
def _too_large(model: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """Memory that ran out before the first batch: smaller batches would not help."""
    try:
        yield
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        needed = 16 * sum(parameter.numel() for parameter in model.parameters())  # weight, gradient, two moments
        raise CommonweightsError(
            f"out of memory: this model needs {needed / 2**30:.1f} GB on {device} before the first batch; close other"
            " programs that use it, or join with --device cpu or a larger GPU"
        ) from error


def _recompute_activations(model: Any) -> None:
    """Gradient checkpointing of a transformers model, under its old and its new name."""
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or bool(should_reduce_batch_size(error))


def _has_dropout(model: torch.nn.Module) -> bool:
    """Whether training draws random numbers, by the model's layers or its config (gpt2: attn_pdrop ...)."""
    if any(isinstance(module, torch.nn.modules.dropout._DropoutNd) and module.p > 0 for module in model.modules()):
        return True
    config: Any = getattr(model, "config", None)
    entries = config.to_dict() if config is not None else {}
    return any("drop" in key and isinstance(value, float) and value > 0 for key, value in entries.items())
