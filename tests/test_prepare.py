"""Preparing data: from real files and data sets to shards, the same every time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.prepare import prepare
from peer.data.documents import find_files
from peer.data.manifest import digest_file
from peer.data.pack import ShardWriter
from tests.texts import copy_stdlib, documents, source
from tests.texts import run_spec as spec


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
