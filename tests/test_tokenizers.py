"""The run's tokenizer: what `prepare` writes, peers read and transformers loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from coordinator.prepare import prepare
from peer.data.manifest import Manifest
from peer.data.tokenizer import Tokenizer
from peer.errors import DataError
from tests.texts import copy_stdlib, documents, source, tokens_of
from tests.texts import run_spec as spec


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return copy_stdlib(tmp_path / "text")


@pytest.mark.parametrize("kind", [{"kind": "bytes"}, {"kind": "bpe", "vocab_size": 500}], ids=["bytes", "bpe"])
def test_transformers_loads_the_tokenizer_and_agrees(kind: dict[str, Any], text: Path, tmp_path: Path) -> None:
    """AutoTokenizer loads what checkpoints ship, with the same ids, and decodes to the same text."""
    manifest = prepare(spec(text, tokenizer=kind), tmp_path / "data")
    ours, theirs = (
        Tokenizer.load(tmp_path / "data" / "tokenizer"),
        AutoTokenizer.from_pretrained(tmp_path / "data" / "tokenizer"),
    )
    assert (len(theirs), theirs.eos_token_id) == (manifest.vocab_size, manifest.end_of_text)
    for sample in ("def f(x):\n\treturn x  # Grüße, 世界 🌍\r\n", "", " ", "\x00\x7f"):
        ids = ours.encode(sample)
        assert theirs(sample, add_special_tokens=False).input_ids == ids
        assert ours.decode(ids) == theirs.decode(ids) == sample


def test_byte_tokens_are_the_bytes(text: Path, tmp_path: Path) -> None:
    """The byte tokenizer's ids are UTF-8, its end of text is 256."""
    manifest = prepare(spec(text), tmp_path / "data")
    assert Tokenizer.load(tmp_path / "data" / "tokenizer").encode("aß€") == list("aß€".encode())
    assert (manifest.vocab_size, manifest.end_of_text, manifest.dtype) == (257, 256, "uint16")


def test_text_cannot_forge_an_end_of_text(tmp_path: Path) -> None:
    """A document that spells the end-of-text marker does not get the token: it is encoded as plain text."""
    (tmp_path / "a.jsonl").write_text((json.dumps({"text": "before <|endoftext|> after " * 10}) + "\n") * 40)
    for kind in ({"kind": "bytes"}, {"kind": "bpe", "vocab_size": 300}):
        settings_ = {"source": source("text", tmp_path / "a.jsonl"), "tokenizer": kind, "held_out_fraction": 0.4}
        with pytest.raises(DataError, match="do not give one training and one held-out row"):
            prepare(spec("", **settings_), tmp_path / "data")  # copies of one document cannot be split
        (tmp_path / "b.jsonl").write_text(
            "".join(json.dumps({"text": f"{n} <|endoftext|> x " * 10}) + "\n" for n in range(99))
        )
        settings_["source"] = source("text", tmp_path / "b.jsonl")
        manifest = prepare(spec("", **settings_), tmp_path / "data")
        ids = [
            *tokens_of(tmp_path / "data", manifest.shards, manifest),
            *tokens_of(tmp_path / "data", manifest.held_out, manifest),
        ]
        assert ids.count(manifest.end_of_text) <= 99


def test_a_local_pretrained_tokenizer_is_used_and_shipped(text: Path, tmp_path: Path) -> None:
    """A folder with a tokenizer of transformers gives its ids, its end-of-text token and its files."""
    prepare(spec(text, tokenizer={"kind": "bpe", "vocab_size": 400}), tmp_path / "first")
    AutoTokenizer.from_pretrained(tmp_path / "first" / "tokenizer").save_pretrained(tmp_path / "local")
    manifest = prepare(spec(text, tokenizer={"kind": "pretrained", "path": str(tmp_path / "local")}), tmp_path / "data")
    first = Manifest.load(tmp_path / "first")
    assert [shard.blake3 for shard in manifest.shards] == [shard.blake3 for shard in first.shards]
    assert len(AutoTokenizer.from_pretrained(tmp_path / "data" / "tokenizer")) == first.vocab_size


def test_a_large_vocabulary_takes_four_bytes(text: Path, tmp_path: Path) -> None:
    """With more than 65,536 tokens the shards are uint32, and the rows still decode."""
    prepare(spec(text), tmp_path / "first")
    folder = shutil.copytree(tmp_path / "first" / "tokenizer", tmp_path / "large")
    large = json.loads((folder / "tokenizer.json").read_text())
    large["model"]["vocab"] |= {f"extra-{number}": 257 + number for number in range(70_000)}
    (folder / "tokenizer.json").write_text(json.dumps(large))
    manifest = prepare(spec(text, tokenizer={"kind": "pretrained", "path": str(folder)}), tmp_path / "data")
    assert (manifest.dtype, manifest.vocab_size) == ("uint32", 70_257)
    assert documents(tmp_path / "data", manifest.shards)[0] in {path.read_text() for path in text.rglob("*.py")}
