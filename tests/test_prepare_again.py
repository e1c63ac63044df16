"""Preparing data again, after changes and interruptions: whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from configs.schema import BytesTokenizer
from coordinator.prepare import prepare
from coordinator.vocabulary import write_tokenizer
from peer.data import prepared
from peer.data.manifest import Manifest, digest_file
from peer.data.prepared import Recipe
from peer.errors import DataError
from tests.texts import copy_stdlib
from tests.texts import run_spec as spec


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return copy_stdlib(tmp_path / "text")


@pytest.fixture
def rows() -> list[str]:
    return [f"Number {number} is written {'in full ' * (number % 7 + 3)}" for number in range(300)]


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
    monkeypatch.setattr("peer.data.pack._BATCH_DOCUMENTS", 7)
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
    monkeypatch.setattr("peer.data.pack._BATCH_DOCUMENTS", 7)
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
