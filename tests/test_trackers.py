"""Figures of a run in the trackers' own files, read back by their own readers; and trackers that fail."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from coordinator import trackers
from coordinator.evaluate import Evaluation, Sample
from coordinator.settings import TrackerSettings
from coordinator.trackers import start_trackers
from peer.errors import UsageError
from tests.in_memory import tiny_spec

RUN_ID = bytes(range(32))


def start(folder: Path, *use: str, **options: dict[str, Any]) -> tuple[trackers.Trackers, list[str]]:
    said: list[str] = []
    settings = TrackerSettings(use=list(use), project="common", options=options)
    return start_trackers(settings, tiny_spec(), RUN_ID, folder, said.append), said


def feed(tracking: trackers.Trackers) -> None:
    for round_ in range(1, 4):
        tracking.log({"loss": 5.0 - round_, "tokens": 1000 * round_, "peers": 3}, round_)
    tracking.evaluated(Evaluation(3, 3000, 2.5, (Sample("def ", "f(x):"),)))
    tracking.close()


def test_tensorboard_has_the_figures(tmp_path: Path) -> None:
    """The event file says what was logged, by round: loss, tokens, held-out loss, perplexity, and the sample."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tracking, said = start(tmp_path, "tensorboard")
    feed(tracking)
    found = reader.EventAccumulator(str(tmp_path / "trackers" / "common"))
    found.Reload()
    assert [(item.step, item.value) for item in found.Scalars("loss")] == [(1, 4.0), (2, 3.0), (3, 2.0)]
    assert [item.value for item in found.Scalars("held_out_loss")] == [2.5]
    assert found.Scalars("perplexity")[0].value == pytest.approx(12.18, abs=0.01)
    assert found.Scalars("tokens")[-1].value == 3000 and said == []
    text = found.Tensors("sample/0/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text == "def f(x):"


def wandb_records(content: bytes) -> Iterator[bytes]:
    """What is in a .wandb file: the log format of LevelDB after seven bytes (blocks of 32 KiB, parts of records)."""
    assert content[:4] == b":W&B"
    position, record = 7, b""
    while position + 7 <= len(content):
        if (1 << 15) - position % (1 << 15) < 7:
            position += (1 << 15) - position % (1 << 15)
            continue
        length, kind = struct.unpack_from("<HB", content, position + 4)
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def test_wandb_offline_has_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B itself in offline mode: its file holds the figures, under the run's id, so that a restart goes on there."""
    pytest.importorskip("wandb")
    records: Any = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 60.0)
    tracking, said = start(tmp_path, "wandb")
    feed(tracking)
    assert said == []
    (path,) = (tmp_path / "trackers").glob("wandb/offline-run-*/run-*.wandb")
    history: list[dict[str, str]] = []
    run_ids = set()
    for data in wandb_records(path.read_bytes()):
        record = records.Record.FromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            history.append({item.key or "/".join(item.nested_key): item.value_json for item in items})
        if record.WhichOneof("record_type") == "run":
            run_ids.add(record.run.run_id)
    assert [float(row["loss"]) for row in history if "loss" in row] == [4.0, 3.0, 2.0]
    assert any(row.get("held_out_loss") == "2.5" for row in history)
    assert run_ids == {RUN_ID.hex()[:32]}


class Broken:
    """Hangs or fails, as told."""

    requires_logging_directory = False
    hang: threading.Event | None = None

    def __init__(self, project: str) -> None:
        pass

    def store_init_configuration(self, values: object) -> None:
        pass

    def log(self, values: object, step: int) -> None:
        if self.hang is not None:
            self.hang.wait(60)
        raise RuntimeError("no route\nto host")

    def finish(self) -> None:
        pass


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> type[Broken]:
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "aim", Broken)
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: ["aim", "tensorboard"])
    return Broken


def test_a_failing_tracker_is_left_alone(broken: type[Broken], tmp_path: Path) -> None:
    """After five failures in a row it gets no more figures, and one line says why; nobody else notices."""
    tracking, said = start(tmp_path, "aim")
    for round_ in range(20):
        tracking.log({"loss": 1.0}, round_)
    tracking.lines[0].thread.join(20)
    assert said == ["aim: no more figures are sent there until the next start: no route"]
    tracking.log({"loss": 1.0}, 21)
    tracking.close()


def test_a_hanging_tracker_holds_nobody_up(
    broken: type[Broken], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of rounds are handed over in no time, memory stays bounded, and closing does not wait for it."""
    monkeypatch.setattr(broken, "hang", threading.Event())
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 0.2)
    tracking, _ = start(tmp_path, "aim")
    begun = time.monotonic()
    for round_ in range(3000):
        tracking.log({"loss": 1.0}, round_)
    tracking.close()
    assert time.monotonic() - begun < 30, "the hang of 60 s was waited for"
    assert tracking.lines[0]._queue.qsize() <= trackers.WAITING_VALUES
    assert broken.hang is not None
    broken.hang.set()


def test_a_missing_tracker_is_named_at_the_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One that is not installed: one line with what to install."""
    monkeypatch.setattr(trackers, "get_available_trackers", list)
    with pytest.raises(UsageError, match="trackers.use: comet_ml is not installed here; run: pip install comet-ml"):
        start(tmp_path, "comet_ml")
