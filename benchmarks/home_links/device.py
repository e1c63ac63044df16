"""The pretended device that every method trains on, and the notes that a peer's program leaves.

A step takes a fixed time during which the processor is free, as while a GPU works; real parameters move a little.
`student.py` has the device that trains for real, with the same methods. Imports nothing of the project: the
alternatives run in an environment of their own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

STEP_SECONDS = 0.25
PARAMETERS = 10_000_000
WIDTH = 1000
SAMPLES_PER_STEP = 8
_NOISE = 1 << 20


class Model(torch.nn.Module):
    """Ten million parameters in ten matrices."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ParameterList(
            torch.nn.Parameter(0.02 * torch.randn(WIDTH, WIDTH)) for _ in range(PARAMETERS // WIDTH**2)
        )


class Device:
    """Pretends steps that take `step_seconds` each in all, with what they do to the gradients or the weights."""

    samples = SAMPLES_PER_STEP

    def __init__(self, model: torch.nn.Module, seed: int, notes: Notes, step_seconds: float = STEP_SECONDS) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.model = model
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._noise = torch.randn(_NOISE, generator=generator)
        self._notes = notes
        self._step_seconds = step_seconds
        self._count = 0

    def train(self) -> None:
        """An inner step: the weights move."""
        self._step(self._drift)

    def differentiate(self) -> None:
        """A backward pass: gradients are added up in the parameters."""
        self._step(self._add_gradients)

    def groups(self) -> list[dict[str, Any]]:
        """The parameters as an optimizer wants them."""
        return [{"params": self._parameters}]

    def optimizer(self, groups: Iterable[Any]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, lr=1e-4)

    def warm(self, rows: float) -> float:
        """The share of the learning rate after so many rows of all peers."""
        return 1.0

    def updated(self, round_: int) -> None:
        """The weights have just become global ones."""
        self._notes.add("update", round=round_)

    def _step(self, work: Callable[[], None]) -> None:
        end, cpu = time.monotonic() + self._step_seconds, time.thread_time()
        work()
        cpu = time.thread_time() - cpu
        time.sleep(max(0.0, end - time.monotonic()))
        self._notes.add("step", cpu=round(cpu, 5))  # the device's own, not to be charged to the exchange

    def _add_gradients(self) -> None:
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            self._add_noise(parameter.grad, 1.0)

    @torch.no_grad()
    def _drift(self) -> None:
        self._count += 1
        for parameter in self._parameters:
            self._add_noise(parameter, 1e-4 * (1 + self._count % 3))

    def _add_noise(self, tensor: torch.Tensor, scale: float) -> None:
        """The same million numbers again and again: the device has no memory of its own to be charged with."""
        for piece in tensor.detach().view(-1).split(_NOISE):
            piece.add_(self._noise[: piece.numel()], alpha=scale)


class Notes:
    """One JSON object a line: what happened when, in seconds of the machine's clock."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)

    def add(self, kind: str, **values: Any) -> None:
        self._file.write(json.dumps({"at": time.monotonic(), "kind": kind, **values}) + "\n")
