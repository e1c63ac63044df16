"""A run spec, rows of real text and a trainer small enough for tests: two layers of width 32 over bytes."""

from __future__ import annotations

import argparse
import ast
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torch

from configs.schema import RunSpec
from peer.training.tasks import load_task
from peer.training.trainer import Trainer

VOCAB_SIZE = 257
END_OF_TEXT = 256
LLAMA: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def small_spec(
    architecture: str = "llama",
    model: dict[str, Any] | None = None,
    *,
    seed: int = 0,
    sequence_length: int = 32,
    **train: Any,
) -> RunSpec:
    return RunSpec.model_validate(
        {
            "run": {"name": "small", "seed": seed},
            "model": {"architecture": architecture, "config": LLAMA if model is None else model},
            "data": {
                "source": {"kind": "text", "path": "."},
                "tokenizer": {"kind": "bytes"},
                "sequence_length": sequence_length,
            },
            "train": {"batch_sequences": 8, "learning_rate": 0.01, "schedule": "constant", **train},
            "round": {"target_tokens": 1000},
        }
    )


def small_model(spec: RunSpec) -> torch.nn.Module:
    return load_task(spec.model.task).build_model(spec, VOCAB_SIZE, bos_token_id=END_OF_TEXT, eos_token_id=END_OF_TEXT)


def small_trainer(spec: RunSpec | None = None) -> Trainer:
    spec = spec or small_spec()
    return Trainer(spec, load_task(spec.model.task), small_model(spec), torch.device("cpu"))


def text_rows(rows: int, sequence_length: int = 32, *, offset: int = 0) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """Rows [rows, sequence_length] of the bytes of a few modules of the standard library."""
    text = b"".join(Path(inspect.getfile(module)).read_bytes() for module in (ast, argparse, inspect))
    start = offset * sequence_length
    part = np.frombuffer(text, np.uint8)[start : start + rows * sequence_length]
    return part.astype(np.uint16).reshape(rows, sequence_length)
