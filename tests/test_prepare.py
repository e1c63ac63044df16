"""Preparing data: from real files and data sets to shards, the same every time, whole or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from configs import RunSpec, load
from configs.load import parse
from configs.schema import BytesTokenizer
from coordinator.hub import explained
from coordinator.prepare import prepare
from coordinator.vocabulary import write_tokenizer
from peer import prepared
from peer.documents import find_files
from peer.errors import DataError
from peer.manifest import Manifest, Shard, digest_file
from peer.pack import ShardWriter
from peer.prepared import Recipe
from peer.tokenizer import Tokenizer
from tests.texts import copy_stdlib, run_config

CONFIGS = Path(__file__).parent.parent / "configs"


def spec(path: Path | str, **data: Any) -> RunSpec:
    return parse(run_config(path, **data), "test")


def source(kind: str, path: Path, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "path": str(path), **more}


def tokens(folder: Path, shards: list[Shard], manifest: Manifest) -> list[int]:
    return [token for shard in shards for token in np.fromfile(folder / shard.name, manifest.numpy_dtype).tolist()]


def documents(folder: Path, shards: list[Shard]) -> list[str]:
    """The texts between end-of-text tokens; the last may be cut, because the rest of a row is dropped."""
    manifest = Manifest.load(folder)
    found: list[list[int]] = [[]]
    for token in tokens(folder, shards, manifest):
        if token == manifest.end_of_text:
            found.append([])
        else:
            found[-1].append(token)
    tokenizer = Tokenizer.load(folder / "tokenizer")
    return [tokenizer.decode(ids) for ids in found]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data sets that a test loads leave nothing in the user's cache."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return copy_stdlib(tmp_path / "text")


# --- what comes out


def test_the_same_input_gives_the_same_bytes(text: Path, tmp_path: Path) -> None:
    """Prepared twice, in different folders from different copies, a source gives equal manifests and equal shards."""
    copy = shutil.copytree(text, tmp_path / "moved")
    bpe = {"tokenizer": {"kind": "bpe", "vocab_size": 600}}
    one = prepare(spec(text, **bpe), tmp_path / "one")
    source_text = str(text)
    two = prepare(spec(copy, **bpe), tmp_path / "two")
    assert two.to_json().replace(str(copy).encode(), source_text.encode()) == one.to_json()
    assert (tmp_path / "one" / "manifest.json").read_bytes() == one.to_json()
    for entry in one.files():
        assert (tmp_path / "one" / entry.name).read_bytes() == (tmp_path / "two" / entry.name).read_bytes()


def test_the_manifest_names_every_file_with_its_hash(text: Path, tmp_path: Path) -> None:
    """Sizes and both hashes are those of the files, and no file is there that it does not name."""
    manifest = prepare(spec(text), tmp_path / "data")
    for entry in manifest.files():
        path = tmp_path / "data" / entry.name
        assert (path.stat().st_size, *digest_file(path)) == (entry.bytes, entry.sha256, entry.blake3)
    there = {
        path.relative_to(tmp_path / "data").as_posix() for path in (tmp_path / "data").rglob("*") if path.is_file()
    }
    assert there - {entry.name for entry in manifest.files()} == {"manifest.json", "prepared.json", ".lock"}


def test_every_document_is_in_the_data_once(text: Path, tmp_path: Path) -> None:
    """Training and held-out rows together hold every file's text, apart from the two dropped ends."""
    manifest = prepare(spec(text), tmp_path / "data")
    found = [*documents(tmp_path / "data", manifest.shards), *documents(tmp_path / "data", manifest.held_out)]
    expected = {path.read_text() for path in text.rglob("*.py")}
    assert manifest.documents == len(expected)
    assert len(expected - set(found)) <= 2
    assert sum(map(len, expected)) - sum(map(len, found)) < 2 * manifest.sequence_length


def test_held_out_documents_are_not_trained_on(tmp_path: Path) -> None:
    """No document is on both sides, not even one that occurs many times; the share is about the one asked for."""
    lines = [{"text": f"Document {number % 900}: " + f"{number % 900} " * 20} for number in range(1800)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    manifest = prepare(spec("", source=source("text", tmp_path / "rows.jsonl")), tmp_path / "data")
    train, held_out = (set(documents(tmp_path / "data", part)[:-1]) for part in (manifest.shards, manifest.held_out))
    assert not train & held_out
    assert manifest.held_out_rows / (manifest.rows + manifest.held_out_rows) == pytest.approx(0.1, abs=0.04)


def test_a_lone_short_file_still_gives_held_out_rows(tmp_path: Path) -> None:
    """One file of 30 kB is cut into pieces; when none of them is drawn, the next best are held out."""
    (tmp_path / "story.txt").write_text("".join(f"Line {n} of a story that goes on.\n" for n in range(900)))
    manifest = prepare(spec(tmp_path / "story.txt", held_out_fraction=0.0001), tmp_path / "data")
    assert 1 <= manifest.held_out_rows <= manifest.rows / 5


@settings(max_examples=30, deadline=None)
@given(data=st.data(), length=st.integers(1, 20), per_shard=st.integers(1, 9))
def test_rows_are_the_tokens_in_order(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, length: int, per_shard: int
) -> None:
    """However the documents are cut, the shards hold the tokens in order, but for less than one row."""
    pieces = data.draw(st.lists(st.lists(st.integers(0, 65_535), max_size=60), max_size=30))
    folder = tmp_path_factory.mktemp("rows")
    writer = ShardWriter(folder, "train", length, per_shard, np.dtype("<u2"))
    for piece in pieces:
        writer.add(np.array(piece, dtype="<u2"))
    writer.finish()
    stream = [token for piece in pieces for token in piece]
    written = [token for shard in writer.shards for token in np.fromfile(folder / shard.name, "<u2").tolist()]
    assert written == stream[: len(stream) // length * length]
    assert all(shard.rows == per_shard for shard in writer.shards[:-1])


# --- tokenizers


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
            *tokens(tmp_path / "data", manifest.shards, manifest),
            *tokens(tmp_path / "data", manifest.held_out, manifest),
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


# --- sources


@pytest.fixture
def rows() -> list[str]:
    return [f"Number {number} is written {'in full ' * (number % 7 + 3)}" for number in range(300)]


def test_every_kind_of_source_gives_the_same_shards(rows: list[str], tmp_path: Path) -> None:
    """JSON lines, Parquet, data sets on disk, streamed or not: the same documents become the same shards."""
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"id": 1, "body": row}) + "\n" for row in rows))
    table = pyarrow.table({"id": list(range(len(rows))), "body": rows})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=50)
    data = datasets.Dataset(table)
    data.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": data, "test": data.select(range(5))}).save_to_disk(str(tmp_path / "splits"))
    (tmp_path / "plain").mkdir()
    shutil.copy(tmp_path / "a.parquet", tmp_path / "plain" / "train-00000.parquet")
    sources = [
        source("text", tmp_path / "a.jsonl", field="body"),
        source("text", tmp_path / "a.parquet", field="body"),
        source("dataset", tmp_path / "saved", field="body"),
        source("dataset", tmp_path / "splits", field="body"),
        source("dataset", tmp_path / "plain", field="body"),
        source("dataset", tmp_path / "plain", field="body", streaming=True),
    ]
    manifests = [prepare(spec("", source=each), tmp_path / f"data-{number}") for number, each in enumerate(sources)]
    assert len({manifest.documents_hash for manifest in manifests}) == 1
    assert len({tuple(shard.blake3 for shard in manifest.shards) for manifest in manifests}) == 1


def test_max_rows_takes_the_first_rows(rows: list[str], tmp_path: Path) -> None:
    """Of a data set only so many rows are read."""
    datasets.Dataset.from_dict({"text": rows}).save_to_disk(str(tmp_path / "saved"))
    manifest = prepare(spec("", source=source("dataset", tmp_path / "saved", max_rows=100)), tmp_path / "data")
    assert manifest.documents == 100


def test_max_bytes_cuts_the_text(text: Path, tmp_path: Path) -> None:
    """With max_bytes = 20,000 there are 20,000 byte tokens and the ends of text, less what fills no row."""
    manifest = prepare(spec("", source=source("text", text, suffixes=[".py"], max_bytes=20_000)), tmp_path / "data")
    total = (manifest.rows + manifest.held_out_rows) * manifest.sequence_length
    assert 20_000 + manifest.documents - 2 * manifest.sequence_length < total <= 20_000 + manifest.documents


def test_the_standard_library_has_no_tests_and_no_packages_in_it() -> None:
    """{stdlib} means library code: nothing that was installed, no tests and no tables, in sorted order."""
    files = find_files("{stdlib}", [".py"], "text", 0)
    names = [path.relative_to(files.root).as_posix() for path in files.paths]
    assert "argparse.py" in names and "asyncio/tasks.py" in names
    assert not [name for name in names if {"site-packages", "test", "tests", "encodings"} & set(name.split("/"))]
    assert names == sorted(names)


def test_folders_are_searched_and_globs_matched(text: Path) -> None:
    """A folder means all files below it that have the suffix, a glob what it matches, a file itself."""
    assert len(find_files(str(text), [".py"], "text", 0).paths) == 9
    assert len(find_files(str(text / "*.py"), [".txt"], "text", 0).paths) == 5
    assert len(find_files(str(text / "**" / "*.py"), [".txt"], "text", 0).paths) == 9
    assert (
        len(find_files(str(text / "heapq.py"), [".txt"], "text", 0).paths) == 0 + 1
        if (text / "heapq.py").exists()
        else True
    )


def test_odd_bytes_are_survived(tmp_path: Path) -> None:
    """A byte order mark is dropped, what is not UTF-8 and lone surrogates are replaced, blank files left out."""
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "a.txt").write_bytes(b"\xef\xbb\xbfWith a mark. " + b"x" * 500)
    (folder / "b.txt").write_bytes(b"Latin-1: Gr\xfc\xdfe. " + b"y" * 500)
    (folder / "c.txt").write_text(" \n\n")
    (folder / "d.jsonl").write_text(
        json.dumps({"text": "\ud800 alone " + "z" * 500}) + "\n\n" + json.dumps({"text": None}) + "\n"
    )
    source_ = source("text", folder, suffixes=[".txt", ".jsonl"])
    manifest = prepare(spec("", source=source_, sequence_length=8), tmp_path / "data")
    assert manifest.documents == 3
    found = [*documents(tmp_path / "data", manifest.shards), *documents(tmp_path / "data", manifest.held_out)]
    assert any(document.startswith("With a mark.") for document in found)
    assert any(document.startswith("Latin-1: Gr\ufffd\ufffde") for document in found)
    assert any(document.startswith("? alone") for document in found)


def test_a_large_text_is_read_in_pieces(tmp_path: Path) -> None:
    """A file of 5 MB becomes documents of at most 16 kB that together are the file."""
    line = "Some words of a long, long book that nobody wants to hold in memory.\n"
    (tmp_path / "book.txt").write_text(line * 70_000)
    pieces = list(find_files(str(tmp_path / "book.txt"), [], "text", 0).documents())
    assert max(map(len, pieces)) <= 16_384
    assert "".join(pieces) == line * 70_000
    assert all(piece.endswith("\n") for piece in pieces)


# --- again, and interrupted


def test_a_second_call_reuses_the_result(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is tokenised again when neither the files nor the settings changed."""
    first = prepare(spec(text), tmp_path / "data")
    monkeypatch.setattr(prepared, "_pack", None)  # would fail if it were called
    assert prepare(spec(text), tmp_path / "data") == first


@pytest.mark.parametrize("change", ["file", "new file", "settings", "damage", "loss"])
def test_a_change_is_noticed(change: str, text: Path, tmp_path: Path) -> None:
    """A changed or new file, other settings, a shard that rotted or is gone: all is prepared again, and right."""
    before = prepare(spec(text), tmp_path / "data")
    settings_: dict[str, Any] = {}
    if change == "file":
        (text / "bisect.py").write_text("x = 1\n" * 1000)
    elif change == "new file":
        (text / "new.py").write_text("y = 2\n" * 1000)
    elif change == "settings":
        settings_ = {"sequence_length": 32}
    elif change == "damage":
        path = tmp_path / "data" / before.shards[0].name
        path.write_bytes(bytes(path.stat().st_size))
    else:
        (tmp_path / "data" / before.shards[0].name).unlink()
    after = prepare(spec(text, **settings_), tmp_path / "data")
    assert after == prepare(spec(text, **settings_), tmp_path / "fresh")
    assert (after == before) == (change in ("damage", "loss"))
    for entry in after.files():
        assert digest_file(tmp_path / "data" / entry.name) == (entry.sha256, entry.blake3)


class Killed(BaseException):
    """Stands for the end of the process: nothing of ours may catch it."""


def recipe(rows: list[str], passes: list[int], asked: list[int], **more: Any) -> Recipe:
    """A recipe on `rows`. Reading n dies at document passes[n]; `asked` collects how many documents each skipped."""

    def documents(skipped: int) -> Iterator[str]:
        asked.append(skipped)
        dies_after = passes.pop(0) if passes else len(rows)
        for number in range(skipped, len(rows)):
            if number >= dies_after:
                raise Killed
            yield rows[number]

    return Recipe(
        fingerprint="the same",
        documents=documents,
        write_tokenizer=lambda folder: write_tokenizer(BytesTokenizer(kind="bytes"), folder, lambda: iter(())),
        tokenizer_kind="bytes",
        source={},
        license="unknown",
        sequence_length=64,
        shard_sequences=10,
        **{"held_out_fraction": 0.1, "checkpoint_seconds": 0, **more},
    )


@pytest.mark.parametrize("checkpoint_seconds", [0, 1e9], ids=["with checkpoints", "before the first checkpoint"])
def test_an_interrupted_preparation_goes_on(
    checkpoint_seconds: float, rows: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed several times, preparing ends with the bytes of an undisturbed one; never is half taken for whole."""
    monkeypatch.setattr("peer.pack._BATCH_DOCUMENTS", 7)
    asked: list[int] = []
    expected = prepared.build(tmp_path / "expected", recipe(rows, [], []))
    for dies_after in (60, 130, 255):
        with pytest.raises(Killed):
            prepared.build(tmp_path / "data", recipe(rows, [dies_after], asked, checkpoint_seconds=checkpoint_seconds))
        with pytest.raises(DataError, match="no prepared data here"):
            Manifest.load(tmp_path / "data")
    assert prepared.build(tmp_path / "data", recipe(rows, [], asked)) == expected
    assert (asked[-1] > 200) == (checkpoint_seconds == 0)
    for entry in expected.files():
        assert (tmp_path / "data" / entry.name).read_bytes() == (tmp_path / "expected" / entry.name).read_bytes()


@pytest.mark.parametrize("dies_after", [0, 40, 299])
def test_an_interrupted_second_reading_goes_on(
    dies_after: int, rows: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When no document was drawn and the text is read again with another split, the first reading leaves nothing."""
    monkeypatch.setattr("peer.pack._BATCH_DOCUMENTS", 7)
    expected = prepared.build(tmp_path / "expected", recipe(rows, [], [], held_out_fraction=1e-9))
    asked: list[int] = []
    with pytest.raises(Killed):
        prepared.build(tmp_path / "data", recipe(rows, [len(rows), dies_after], asked, held_out_fraction=1e-9))
    assert asked == [0, 0]
    assert prepared.build(tmp_path / "data", recipe(rows, [], [], held_out_fraction=1e-9)) == expected
    for entry in expected.files():
        assert (tmp_path / "data" / entry.name).read_bytes() == (tmp_path / "expected" / entry.name).read_bytes()


@pytest.mark.parametrize("moves", range(5))
def test_dying_while_publishing_is_mended(
    moves: int, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between any two of the moves that publish a build, the next call finishes them."""
    prepare(spec(text, sequence_length=32), tmp_path / "data")
    done = 0
    replace = Path.replace

    def dying(self: Path, target: Path) -> Path:
        nonlocal done
        if self.parent.name == ".partial" and not self.name.endswith(".new"):
            if done == moves:
                raise Killed
            done += 1
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", dying)
    if moves < 4:
        with pytest.raises(Killed):
            prepare(spec(text), tmp_path / "data")
        with pytest.raises(DataError, match="no prepared data here"):
            Manifest.load(tmp_path / "data")
    monkeypatch.undo()
    assert prepare(spec(text), tmp_path / "data") == prepare(spec(text), tmp_path / "fresh")
    assert prepared.existing(
        tmp_path / "data", json.loads((tmp_path / "data" / "prepared.json").read_text())["fingerprint"]
    )


def test_two_at_once_do_not_mix(text: Path, tmp_path: Path) -> None:
    """While one process prepares a folder, another is told so."""
    with prepared._locked(tmp_path / "data"), pytest.raises(DataError, match="another process is preparing"):
        prepare(spec(text), tmp_path / "data")


# --- what a user can get wrong


@pytest.mark.parametrize(
    ("source_", "message"),
    [
        ({"kind": "text", "path": "nowhere/at/all"}, r"data\.source\.path: .*/nowhere/at/all does not exist"),
        ({"kind": "text", "path": "*.nothing"}, r"data\.source\.path: no file matches \*\.nothing"),
        (
            {"kind": "text", "path": "text", "suffixes": [".md"]},
            r"no files ending in \.md in text; set data\.source\.suffixes",
        ),
        (
            {"kind": "text", "path": "a.jsonl", "field": "txt"},
            r"a\.jsonl: line 1: no column 'txt'; .* one of: body, id",
        ),
        ({"kind": "text", "path": "a.jsonl", "field": "id"}, r"line 1: column 'id' holds int, not text"),
        ({"kind": "text", "path": "bad.jsonl"}, r"bad\.jsonl: line 2 is not JSON"),
        ({"kind": "text", "path": "a.parquet", "field": "txt"}, r"a\.parquet: no column 'txt'; .* one of: body"),
        ({"kind": "text", "path": "bad.parquet"}, r"bad\.parquet: not a readable Parquet file"),
        ({"kind": "text", "path": "blank.txt"}, r"no usable text"),
        ({"kind": "text", "path": "short.txt"}, r"too little text"),
        ({"kind": "dataset", "path": "./nowhere"}, r"data\.source\.path: .*/nowhere does not exist"),
        ({"kind": "dataset", "path": "saved"}, r"data\.source: no column 'text'; .* one of: body"),
        (
            {"kind": "dataset", "path": "splits", "split": "dev", "field": "body"},
            r"no split 'dev'; there are: train, test",
        ),
    ],
)
def test_mistakes_get_one_line_with_a_cure(
    source_: dict[str, Any], message: str, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong paths, columns, splits and broken files are named, with what there is instead; nothing half is left."""
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_text('{"body": "x", "id": 3}\n')
    Path("bad.jsonl").write_text('{"text": "x"}\n{"text": \n')
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"]}), "a.parquet")
    Path("bad.parquet").write_bytes(b"PAR1 nothing more")
    Path("blank.txt").write_text("\n \n")
    Path("short.txt").write_text("Hello.\n")
    data = datasets.Dataset.from_dict({"body": ["x"]})
    data.save_to_disk("saved")
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk("splits")
    with pytest.raises(DataError, match=message) as caught:
        prepare(spec("", source=source_), tmp_path / "data")
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="no prepared data here"):
        Manifest.load(tmp_path / "data")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"source": {"kind": "dataset", "path": "HuggingFaceFW/fineweb-edu", "streaming": True}},
            r"data\.source\.path: the Hugging Face Hub cannot be reached to load 'HuggingFaceFW/fineweb-edu'; check .*"
            " run the same command again, or give a local data set folder",
        ),
        (
            {"tokenizer": {"kind": "pretrained", "path": "somebody/something-never-cached"}},
            r"data\.tokenizer\.path: the Hugging Face Hub cannot be reached .* or give a local tokenizer folder",
        ),
    ],
)
def test_without_the_hub_it_says_what_to_do(data: dict[str, Any], message: str, text: Path, tmp_path: Path) -> None:
    """In a process without network (the libraries' offline mode) the error names the key, the name and the way out."""
    program = (
        "import json, sys, pathlib\n"
        "from configs.load import parse\n"
        "from coordinator.prepare import prepare\n"
        "from peer.errors import UnreachableError\n"
        "try:\n"
        "    prepare(parse(json.loads(sys.argv[1]), 'test'), pathlib.Path(sys.argv[2]))\n"
        "except UnreachableError as error:\n"
        "    print(error)\n"
    )
    command = [sys.executable, "-c", program, json.dumps(run_config(text, **data)), str(tmp_path / "data")]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")}
    done = subprocess.run(command, env=offline, capture_output=True, text=True, check=True, cwd=CONFIGS.parent)
    assert re.fullmatch(message + r".*\n", done.stdout)


@pytest.mark.parametrize(
    ("kind", "says", "message"),
    [
        ("DatasetNotFoundError", "Dataset 'a/b' doesn't exist on the Hub", "neither a local folder nor on the"),
        (
            "RepositoryNotFoundError",
            "404 Client Error",
            "neither a local folder nor on the Hugging Face Hub; check its",
        ),
        (
            "OSError",
            "a/b is not a local folder and is not a valid model identifier",
            "neither a local folder nor on the",
        ),
        ("GatedRepoError", "403", "no access to 'a/b'; accept its terms on the Hub and set HF_TOKEN"),
        ("ValueError", "BuilderConfig 'x' not found. Available: ['y']\nmore", r"cannot be loaded: Builder.*\['y'\]$"),
    ],
)
def test_answers_of_the_hub_are_explained(kind: str, says: str, message: str) -> None:
    """What the Hub's libraries raise for missing, gated and misspelt names becomes one line."""
    error = type(kind, (Exception,), {})
    with pytest.raises(DataError, match=message) as caught, explained("data.source.path", "a/b", "a folder"):
        raise error(says)
    assert str(caught.value).startswith("data.source.path: ")


def test_less_than_a_batch_is_refused(text: Path, tmp_path: Path) -> None:
    """When the rows do not fill one batch, the error names both numbers."""
    raw = run_config(text)
    raw["train"]["batch_sequences"] = 100_000
    with pytest.raises(
        DataError, match=r"\d+ rows of 64 tokens are less than one batch \(train.batch_sequences = 100000\)"
    ):
        prepare(parse(raw, "test"), tmp_path / "data")


def test_the_bar_stays_off_pipes_and_off_stdout(
    text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is printed when stderr is no terminal; a bar that is asked for goes to stderr."""
    prepare(spec(text), tmp_path / "one")
    assert capfd.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes the captured stream for a terminal
    prepare(spec(text), tmp_path / "two", progress=True)
    out, err = capfd.readouterr()
    assert out == "" and "preparing data" in err


# --- the run specs that ship


def test_the_volunteer_model_has_150_million_parameters() -> None:
    """configs/volunteer.toml is what its first line says: 151 million parameters with its tokenizer's vocabulary."""
    import torch
    from transformers import AutoModelForCausalLM

    from peer.tasks.language_model import model_config

    run = load(CONFIGS / "volunteer.toml")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(model_config(run, 49_152))
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6) == 151


def test_demo_rounds_need_the_whole_swarm_but_one_peer_alone_is_repeatable() -> None:
    """In configs/demo.toml three equal peers close a round by its tokens, one alone by its steps."""
    run = load(CONFIGS / "demo.toml")
    assert (
        3 * run.round.inner_steps * run.batch_tokens
        > run.round.target_tokens
        > run.round.inner_steps * run.batch_tokens
    )
    assert run.round.target_tokens % (3 * run.batch_tokens) == 0
    assert not run.round.overlap
    assert run.train.decay_tokens == run.run.rounds * run.round.target_tokens
