"""A run that starts from a model that exists: its weights to the bit, or a refusal that says what does not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from configs import RunSpec
from coordinator.genesis import create, initial_state
from peer.data.manifest import Manifest
from peer.errors import CommonweightsError
from peer.identity import Identity
from peer.training.tasks import build_model
from peer.training.trainer import FlatParameters
from tests.checkpointed import Run
from tests.in_memory import tiny_spec


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    """A run and a checkpoint of it whose weights are not those that its seed draws."""
    run = Run.make(tmp_path_factory.mktemp("before") / "run")
    run.state.theta.add_(torch.randn(run.state.theta.shape, generator=torch.Generator().manual_seed(1)) * 0.01)
    return run, run.make_checkpoint(run.archive())


def spec_from(source: Path | str, **changes: Any) -> RunSpec:
    spec = tiny_spec().model_dump()
    model = {**spec["model"], "initial_weights": str(source), **changes.pop("model", {})}
    return tiny_spec(model=model, **changes)


def test_a_run_starts_from_a_checkpoint(before: tuple[Run, Path], tmp_path: Path) -> None:
    """The genesis of the new run names the digest of exactly the checkpoint's weights, with its tokenizer."""
    run, checkpoint = before
    data = {**tiny_spec().model_dump()["data"], "tokenizer": {"kind": "pretrained", "path": str(checkpoint)}}
    spec = spec_from(checkpoint, data=data)
    log = create(spec, tmp_path, Identity.new())
    assert log.origin.genesis.state_digest == run.state.digest()
    assert log.run_id != run.log.run_id


def foreign(folder: Path, **changes: Any) -> Path:
    """A llama that transformers alone made, in bf16, with rows of padding in its vocabulary."""
    shape = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "vocab_size": 320, "max_position_embeddings": 4096,
    }  # fmt: skip
    model = AutoModelForCausalLM.from_config(LlamaConfig(**{**shape, **changes}))
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def test_somebody_elses_model_is_taken_over(before: tuple[Run, Path], tmp_path: Path) -> None:
    """Another precision and padding rows do not matter: every weight that the run has is the file's, raised to fp32."""
    manifest = Manifest.load(before[0].folder / "data")
    spec = spec_from(foreign(tmp_path / "llama"))
    state = initial_state(spec, manifest)
    model = build_model(spec, manifest.vocab_size, manifest.end_of_text)
    FlatParameters(model).write(state.theta)
    theirs = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "llama").float().named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, theirs[name][: parameter.shape[0]])


def refusal(source: Path | str, manifest: Manifest, **changes: Any) -> str:
    with pytest.raises(CommonweightsError) as caught:
        initial_state(spec_from(source, **changes), manifest)
    assert str(caught.value).startswith("model.initial_weights") and "\n" not in str(caught.value)
    return str(caught.value)


def test_what_does_not_fit_is_refused(before: tuple[Run, Path], tmp_path: Path) -> None:
    """Another value in the config, another architecture, a smaller vocabulary, a missing tensor, no model at all: one
    line with the key and the cure. Nothing is ever started half from random weights."""
    run, checkpoint = before
    manifest = Manifest.load(run.folder / "data")
    assert "rope_theta is 500000.0 there" in refusal(foreign(tmp_path / "a", rope_theta=500000.0), manifest)
    assert "rms_norm_eps is 0.01 there and 1e-06 here" in refusal(foreign(tmp_path / "b", rms_norm_eps=0.01), manifest)
    assert "use its own tokenizer" in refusal(foreign(tmp_path / "c", vocab_size=100), manifest)
    assert 'write model.architecture = "llama"' in refusal(
        checkpoint, manifest, model={"architecture": "gpt2", "config": {"n_embd": 16, "n_layer": 2, "n_head": 2}}
    )
    assert "neither a local folder nor" in refusal(tmp_path / "none", manifest)
    broken = Path(shutil.copytree(checkpoint, tmp_path / "broken"))
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    deeper = {**tiny_spec().model_dump()["model"]["config"], "num_hidden_layers": 3}
    assert "lacks" in refusal(broken, manifest, model={"config": deeper})


def test_a_pickle_is_not_loaded(before: tuple[Run, Path], tmp_path: Path) -> None:
    """A folder with weights as pickle alone is refused, and the pickle not opened."""
    run, checkpoint = before
    folder = Path(shutil.copytree(checkpoint, tmp_path / "pickled"))
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "owned").encode() + b"'\ntR.")
    refusal(folder, Manifest.load(run.folder / "data"))
    assert not (tmp_path / "owned").exists()
