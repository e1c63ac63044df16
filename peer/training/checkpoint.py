"""Exporting the model in the layout of the Hugging Face Hub.

The folder appears whole or not at all: it is written beside its place and renamed. What makes the run itself resumable
is not this but the snapshot (the state's chunks); an export is for people who use the model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from configs.schema import RunSpec
from peer.errors import CommonweightsError
from peer.training.model_card import Provenance, render
from peer.training.tasks import build_model
from peer.training.trainer import FlatParameters

PROVENANCE_FILE = "commonweights.json"


def export(
    folder: Path,
    theta: torch.Tensor,
    spec: RunSpec,
    *,
    vocab_size: int,
    end_of_text: int,
    tokenizer_folder: Path,
    provenance: Provenance,
) -> Path:
    """Write θ (fp32 [parameters], CPU) as a folder that `AutoModelForCausalLM` and `AutoTokenizer` load.

    Beside weights (safetensors), configs and tokenizer it holds a model card and `commonweights.json` (run spec and
    provenance, for programs). An earlier export of the same name is replaced. Returns `folder`.

    Raises:
        CommonweightsError: the folder cannot be written.
    """
    model = build_model(spec, vocab_size, end_of_text)
    assert isinstance(model, PreTrainedModel)
    parameters = FlatParameters(model)
    parameters.write(theta)
    model.config.use_cache = True  # off in training, wanted by everybody who generates
    if model.generation_config is not None:
        model.generation_config.use_cache = True
    try:
        with _appearing(folder) as partial, _without_progress_bar():
            for file in sorted(tokenizer_folder.iterdir()):
                if file.is_file():
                    shutil.copyfile(file, partial / file.name)
            model.save_pretrained(partial)
            card = render(spec, provenance, parameters=parameters.count, vocab_size=vocab_size)
            (partial / "README.md").write_text(card, encoding="utf-8")
            record = {"spec": spec.model_dump(mode="json"), **dataclasses.asdict(provenance)}
            (partial / PROVENANCE_FILE).write_text(json.dumps(record, indent=2, ensure_ascii=False), encoding="utf-8")
    except OSError as error:
        raise CommonweightsError(f"{folder}: the checkpoint cannot be written: {error}") from error
    return folder


@contextlib.contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A new folder to fill; it takes the place of `folder` when the block ends well, and vanishes when it does not."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    replaced = partial.with_suffix(".replaced")
    try:
        yield partial
        partial.chmod(0o755)  # mkdtemp keeps others out
        for file in partial.iterdir():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        if folder.exists():  # a folder cannot be swapped in one step everywhere; the old one stays beside until then
            os.replace(folder, replaced)
        os.replace(partial, folder)
    except BaseException:
        if replaced.exists() and not folder.exists():
            os.replace(replaced, folder)
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


@contextlib.contextmanager
def _without_progress_bar() -> Iterator[None]:
    """transformers draws one over whatever the console shows, for a single file."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
