"""The real model that the alternatives train: the run's own first weights and rows, AdamW, a device of a given pace.

The same arithmetic as a peer of this project does: precision, clipping, which parameters decay, warm-up. Imports
nothing of the project: the alternatives run in an environment of their own.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.home_links.device import Notes
from benchmarks.home_links.pace import Gate, Paced
from benchmarks.home_links.weights import Keeper


class ClippedAdamW(torch.optim.AdamW):
    """AdamW that clips by the gradient's norm first, for whoever hands gradients to an optimizer of others."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        gradients = [each for group in self.param_groups for each in group["params"] if each.grad is not None]
        torch.nn.utils.clip_grad_norm_(gradients, 1.0)
        super().step(closure)


class Student:
    """One peer's model and device.

    Of the plan: `workload` (folder), `rows` (of a step of this peer), `step_seconds`, `share` (of all rows, this
    peer's), `learning_rate`, `warmup_rows` (of all peers together), `micro_batch`.
    """

    def __init__(self, plan: dict[str, Any], notes: Notes) -> None:
        self._plan, self._notes = plan, notes
        workload = Path(plan["workload"])
        self.model: torch.nn.Module = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(workload)).float()
        self.parameters = list(self.model.parameters())
        self.samples = plan["rows"]
        self.load(np.load(workload / "initial.npy"))
        self._rows = np.load(workload / "rows.npy", mmap_mode="r")[plan["rank"] :: plan["peers"]]
        self._taken = 0
        self._paced = Paced(Gate(Path(plan["gate"]), str(plan["rank"]), plan["peers"]), notes)
        self._keeper = Keeper(Path(plan["weights"])) if plan["rank"] == 0 else None
        self._optimizer: ClippedAdamW | None = None
        self._bf16 = plan["bf16"]

    def groups(self) -> list[dict[str, Any]]:
        """The parameters as an optimizer wants them: only matrices decay."""
        return [
            {"params": [each for each in self.parameters if each.ndim >= 2], "weight_decay": 0.1},
            {"params": [each for each in self.parameters if each.ndim < 2], "weight_decay": 0.0},
        ]

    def optimizer(self, groups: Iterable[Any]) -> ClippedAdamW:
        return ClippedAdamW(groups, lr=self._plan["learning_rate"], betas=(0.9, 0.95), fused=True)

    def warm(self, rows: float) -> float:
        """The share of the learning rate after so many rows of all peers."""
        return float(min(1.0, (rows + self.samples) / max(1.0, self._plan["warmup_rows"])))

    def load(self, vector: np.ndarray[Any, Any]) -> None:
        start = 0
        with torch.no_grad():
            for parameter in self.parameters:
                part = torch.from_numpy(vector[start : start + parameter.numel()])
                parameter.copy_(part.view(parameter.shape))
                start += parameter.numel()

    def train(self) -> None:
        """An inner step."""
        self._paced(self._inner_step, self._plan["step_seconds"], self.samples)

    def differentiate(self) -> None:
        """Forward and backward of a step's rows: the gradient of their mean loss is added to the parameters'."""
        self._paced(self._backward, self._plan["step_seconds"], self.samples)

    def updated(self, round_: int, **values: Any) -> None:
        """The weights have just become global ones."""
        self._notes.add("update", round=round_, **values)
        if self._keeper is not None and self._keeper.is_due():
            self._keeper.keep(torch.cat([each.detach().reshape(-1) for each in self.parameters]).numpy())

    def _inner_step(self) -> None:
        if self._optimizer is None:
            self._optimizer = self.optimizer(self.groups())
        rate = self._plan["learning_rate"] * self.warm(self._taken / self._plan["share"])
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._backward()
        self._optimizer.step()
        self._optimizer.zero_grad()

    def _backward(self) -> None:
        rows = self._rows[np.arange(self._taken, self._taken + self.samples) % len(self._rows)]
        self._taken += self.samples
        batch = torch.from_numpy(rows.astype(np.int64))
        for piece in batch.split(self._plan["micro_batch"]):
            with torch.autocast("cpu", torch.bfloat16, enabled=self._bf16):
                logits = self.model(input_ids=piece, use_cache=False).logits
            flat = logits[:, :-1].float().reshape(-1, logits.shape[-1])
            loss = functional.cross_entropy(flat, piece[:, 1:].reshape(-1))
            (loss * (len(piece) / len(batch))).backward()
