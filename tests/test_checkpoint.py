"""Exported checkpoints, loaded by transformers alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models

from peer.errors import CommonweightsError
from peer.training.checkpoint import PROVENANCE_FILE, export
from peer.training.model_card import MAX_CONTRIBUTORS, Contributor, Provenance, render
from tests.small_models import END_OF_TEXT, LLAMA, VOCAB_SIZE, small_spec, small_trainer, text_rows

PROVENANCE = Provenance(
    run_id="5f3a",
    round=41,
    tokens=123_456,
    state_digest="ab" * 32,
    data="stdlib",
    data_license="PSF-2.0",
    contributors=(Contributor("alice", 100_000), Contributor("bob", 23_456)),
    eval_loss=2.25,
)

# Knows nothing of this project: per folder, the held-out loss of its model and what its tokenizer makes of a text.
FRESH_PROCESS = """
import json, sys
import numpy, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
rows = torch.from_numpy(numpy.load(sys.argv[1]).astype(numpy.int64))
for folder in sys.argv[2:]:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        loss = model(input_ids=rows, labels=rows).loss.item()
        text = tokenizer.decode(model.generate(torch.tensor([[65, 66]]), max_new_tokens=3, do_sample=False)[0])
    print(json.dumps({"loss": loss, "ids": tokenizer("AB").input_ids, "text": text, "dtype": str(model.dtype)}))
"""


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    """A tokenizer whose ids are bytes for printable ASCII, in the files that transformers loads."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    pieces = {chr(i) if 32 < i < 127 else f"<{i}>": i for i in range(VOCAB_SIZE)}
    tokenizer = Tokenizer(models.BPE(vocab=pieces, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": f"<{END_OF_TEXT}>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def export_small(folder: Path, tokenizer_folder: Path, theta: torch.Tensor, **model: Any) -> Path:
    return export(
        folder,
        theta,
        small_spec(model={**LLAMA, **model}),
        vocab_size=VOCAB_SIZE,
        end_of_text=END_OF_TEXT,
        tokenizer_folder=tokenizer_folder,
        provenance=PROVENANCE,
    )


def test_export_has_the_loss_it_had_before(tmp_path: Path, tokenizer_folder: Path) -> None:
    """A process without this project loads model and tokenizer, and measures the same held-out loss (also tied)."""
    held_out = text_rows(8, offset=100)
    np.save(tmp_path / "rows.npy", held_out)
    folders, losses = [], []
    for tied in (False, True):
        trainer = small_trainer(small_spec(model={**LLAMA, "tie_word_embeddings": tied}))
        for step in range(5):
            trainer.step(text_rows(8, offset=8 * step), 0)
        theta = trainer.parameters.read()
        folders.append(export_small(tmp_path / f"tied-{tied}", tokenizer_folder, theta, tie_word_embeddings=tied))
        losses.append(trainer.evaluate([held_out]))
    found = subprocess.run(
        [sys.executable, "-c", FRESH_PROCESS, str(tmp_path / "rows.npy"), *map(str, folders)],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    results = [json.loads(line) for line in found.stdout.splitlines() if line.startswith("{")]
    assert [result["loss"] for result in results] == pytest.approx(losses, rel=1e-5)
    for result in results:
        assert result["ids"] == [65, 66] and result["text"].startswith("AB") and result["dtype"] == "torch.float32"


def test_export_holds_all_that_the_hub_wants(
    tmp_path: Path, tokenizer_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Weights without pickle, configs, tokenizer, card and provenance; nothing temporary, and not a word on screen."""
    trainer = small_trainer()
    folder = export_small(tmp_path / "out" / "model", tokenizer_folder, trainer.parameters.read())
    assert capfd.readouterr() == ("", "")
    names = {file.name for file in folder.iterdir()}
    assert names == {
        "README.md",
        PROVENANCE_FILE,
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    config = json.loads((folder / "config.json").read_text())
    assert config["use_cache"] is True and config["eos_token_id"] == END_OF_TEXT
    record = json.loads((folder / PROVENANCE_FILE).read_text())
    assert record["state_digest"] == PROVENANCE.state_digest and record["spec"]["run"]["name"] == "small"


def test_export_replaces_an_earlier_one(tmp_path: Path, tokenizer_folder: Path) -> None:
    """Exporting again to the same place leaves the new weights, and no file of the old export."""
    trainer = small_trainer()
    folder = export_small(tmp_path / "model", tokenizer_folder, trainer.parameters.read())
    (folder / "stale.bin").write_text("old")
    before = (folder / "model.safetensors").read_bytes()
    export_small(folder, tokenizer_folder, trainer.parameters.read() * 2)
    assert (folder / "model.safetensors").read_bytes() != before
    assert not (folder / "stale.bin").exists()


def test_failed_export_leaves_the_old_one(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When writing fails half-way, the earlier export stands as it was and nothing half-written lies about."""
    theta = small_trainer().parameters.read()
    folder = export_small(tmp_path / "out" / "model", tokenizer_folder, theta)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def full(*arguments: object, **keywords: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("peer.training.checkpoint.render", full)
    with pytest.raises(CommonweightsError, match="No space left on device"):
        export_small(folder, tokenizer_folder, theta * 2)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_card_says_where_the_model_comes_from() -> None:
    """The card has run, round, tokens, loss, data with licence, and each contributor's share, largest first."""
    card = render(small_spec(), PROVENANCE, parameters=1000, vocab_size=VOCAB_SIZE)
    for fact in ("5f3a", "41", "123,456", "2.2500 nats per token", "PSF-2.0", "alice", "81.0%", "ab" * 32):
        assert fact in card
    assert card.index("alice") < card.index("bob")
    assert card.startswith("---\n") and "pipeline_tag: text-generation" in card


def test_names_cannot_write_markup() -> None:
    """Names come from strangers: no markup, table cell, link or front matter of theirs gets into the card."""
    evil = "x|y\n---\n# head <script>alert(1)</script> [a](http://b) `c` **d**\u202e"
    provenance = Provenance("r", 1, 10, "d", evil, evil, (Contributor(evil, 10),))
    spec = small_spec()
    spec = spec.model_copy(
        update={"run": spec.run.model_copy(update={"name": 'a"\n---\nlicense: evil', "description": evil})}
    )
    card = render(spec, provenance, parameters=1, vocab_size=2)
    assert "<script>" not in card and "\n# head" not in card and "[a](" not in card and "\u202e" not in card
    assert "\nlicense: evil" not in card and card.count("\n---\n") == 1
    row = next(line for line in card.splitlines() if "100.0%" in line)
    assert row.replace("\\|", "").count("|") == 4


def test_card_of_a_crowd_stays_short() -> None:
    """Beyond a limit contributors are counted, not listed."""
    crowd = tuple(Contributor(f"peer {i}", 1) for i in range(MAX_CONTRIBUTORS + 5))
    card = render(small_spec(), Provenance("r", 1, 205, "d", "s", "l", crowd), parameters=1, vocab_size=2)
    assert "and 5 more." in card
    assert "not measured" in card
