"""What a run trains: a task builds the model and says what its loss is.

Everything else (optimizer, rounds, codecs, log) treats the model as one flat vector, so a new kind of model is one file
here and one line in `load_task`. A task's module is imported when it is asked for: it brings the heavy libraries along.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from configs.schema import RunSpec


class Task(Protocol):
    def build_model(
        self, spec: RunSpec, vocab_size: int, *, bos_token_id: int | None = None, eos_token_id: int | None = None
    ) -> torch.nn.Module:
        """The model in fp32 on the CPU, randomly initialised from `spec.run.seed`.

        Raises:
            ConfigError: `spec.model` does not describe a model; the text names the key.
        """
        ...

    def loss(self, model: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
        """Mean nats per predicted token, a scalar. `rows`: LongTensor [rows, T] on the model's device."""
        ...

    def generate(
        self, model: torch.nn.Module, prompt: Sequence[int], tokens: int, *, seed: int, temperature: float, top_k: int
    ) -> list[int]:
        """At most `tokens` token ids that continue `prompt`, without the prompt. Equal seeds give equal samples."""
        ...


def build_model(spec: RunSpec, vocab_size: int, end_of_text: int) -> torch.nn.Module:
    """The initial model of a run; `end_of_text` begins and ends its documents. See `Task.build_model`."""
    task = load_task(spec.model.task)
    return task.build_model(spec, vocab_size, bos_token_id=end_of_text, eos_token_id=end_of_text)


def load_task(name: str) -> Task:
    """The task of a run spec's `model.task`."""
    assert name == "language_model", f"the run spec admits no task {name!r}"
    from peer.training.tasks.language_model import LanguageModel

    return LanguageModel()
