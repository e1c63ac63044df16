"""Exporting the model in the layout of the Hugging Face Hub.

The folder appears whole or not at all: it is written beside its place and renamed. A kill leaves at most a hidden
folder beside it, which `remove_leftovers` clears away.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from configs.schema import RunSpec
from peer.durable import sync
from peer.errors import CommonweightsError, VerificationError
from peer.training.model_card import Provenance, render
from peer.training.tasks import build_model
from peer.training.trainer import FlatParameters

PROVENANCE_FILE = "commonweights.json"
MOMENTUM_FILE = "resuming/outer_momentum.safetensors"


def export(
    folder: Path,
    theta: torch.Tensor,
    spec: RunSpec,
    *,
    vocab_size: int,
    end_of_text: int,
    tokenizer_folder: Path,
    provenance: Provenance,
    momentum: torch.Tensor | None = None,
    seal: Callable[[Path], None] = lambda folder: None,
) -> Path:
    """Write θ (fp32 [parameters], CPU) as a folder that `AutoModelForCausalLM` and `AutoTokenizer` load.

    Beside weights (safetensors), configs and tokenizer it holds a model card and `commonweights.json` (run spec and
    provenance, for programs), and the outer momentum (fp32 [parameters]) if there is one, to go on training from.
    `seal` is given the folder when all this is in it, before others see it. An earlier export of the same name is
    replaced. Returns `folder`.

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
            if momentum is not None:
                (partial / MOMENTUM_FILE).parent.mkdir()
                save_file({"momentum": momentum}, partial / MOMENTUM_FILE)
            seal(partial)
    except OSError as error:
        raise CommonweightsError(f"{folder}: the checkpoint cannot be written: {error}") from error
    return folder


def read_weights(folder: Path) -> torch.Tensor:
    """θ of an exported folder, fp32 [parameters] on the CPU, in the order of the run's flat vector.

    Raises:
        VerificationError: the folder holds no such model, or not all of one.
    """
    with _without_progress_bar():
        try:
            model, found = AutoModelForCausalLM.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, trust_remote_code=False, output_loading_info=True
            )
        except Exception as error:  # transformers, safetensors and torch raise whatever they like
            raise VerificationError(f"{folder}: the weights do not load: {str(error).splitlines()[0]}") from None
    if found["missing_keys"] or found["unexpected_keys"] or found["mismatched_keys"]:
        raise VerificationError(f"{folder}: the weights are not all of the model that config.json describes")
    return FlatParameters(model.float()).read()


def read_momentum(folder: Path, parameters: int) -> torch.Tensor | None:
    """The outer momentum of an exported folder, fp32 [parameters]; None when it was not kept.

    Raises:
        VerificationError: the file is damaged.
    """
    path = folder / MOMENTUM_FILE
    if not path.is_file():
        return None
    try:
        momentum = load_file(path)["momentum"]
    except Exception as error:  # as above
        raise VerificationError(f"{path}: cannot be read: {error}") from None
    if momentum.shape != (parameters,) or momentum.dtype != torch.float32:
        raise VerificationError(f"{path}: {momentum.dtype} {tuple(momentum.shape)} for [{parameters}]")
    return momentum


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed `export` left in the folder of its exports. No other may be under way."""
    for pattern in (".*.partial", ".*.replaced"):
        for path in folder.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A new folder to fill; it takes the place of `folder` when the block ends well, and vanishes when it does not."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    replaced = partial.with_suffix(".replaced")
    try:
        yield partial
        partial.chmod(0o755)  # mkdtemp keeps others out
        for path in (*partial.rglob("*"), partial):
            sync(path)
        if folder.exists():  # a folder cannot be swapped in one step everywhere; the old one stays beside until then
            os.replace(folder, replaced)
        os.replace(partial, folder)
        sync(folder.parent)
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
