"""What a user can get wrong about data: one line each, with the cure."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from configs.load import parse
from coordinator.hub import explained
from coordinator.prepare import prepare
from peer.data.manifest import Manifest
from peer.errors import DataError
from tests.texts import copy_stdlib, run_config
from tests.texts import run_spec as spec

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data sets that a test loads leave nothing in the user's cache."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return copy_stdlib(tmp_path / "text")


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
