"""Run specs: the files that ship are valid and explained; a mistake gets one line that names the key and the cure."""

from __future__ import annotations

import copy
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from configs import RunSpec, SpecError, load
from configs.load import parse
from configs.schema import canonical_json
from coordinator.settings import Settings, load_settings
from peer.errors import ConfigError

FOLDER = Path(__file__).parent.parent / "configs"
SETTINGS = FOLDER / "coordinator.toml"  # of a coordinator, not of a run
FILES = sorted(path for path in FOLDER.glob("*.toml") if path != SETTINGS)

MINIMAL: dict[str, Any] = {
    "run": {"name": "a run"},
    "model": {},
    "data": {
        "source": {"kind": "text", "path": "texts"},
        "tokenizer": {"kind": "bytes"},
        "sequence_length": 64,
    },
    "train": {"batch_sequences": 8, "learning_rate": 1e-3},
    "round": {"target_tokens": 4096},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """MINIMAL with one key set; `...` removes it."""
    raw = copy.deepcopy(MINIMAL)
    *sections, key = path.split(".")
    table = raw
    for section in sections:
        table = table.setdefault(section, {})
    if value is ...:
        del table[key]
    else:
        table[key] = value
    return raw


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_shipped_configs_are_valid(path: Path) -> None:
    """Every run spec in configs/ loads, and comes back the same from the bytes that travel in the genesis record."""
    spec = load(path)
    assert RunSpec.from_json(spec.canonical_json()) == spec


@pytest.mark.parametrize("path", [*FILES, SETTINGS], ids=lambda path: path.name)
def test_every_key_of_a_shipped_config_is_explained(path: Path) -> None:
    """Each key has a comment on its own line or directly above it."""
    lines = path.read_text(encoding="utf-8").splitlines()
    bare = [
        line
        for above, line in zip(["", *lines], lines, strict=False)
        if re.match(r"\s*[\w\"'.]+\s*=", line) and "#" not in line and not above.lstrip().startswith("#")
    ]
    assert not bare, f"{path.name}: say what these keys mean: {bare}"


@pytest.mark.parametrize(("path", "schema"), [(FOLDER / "demo.toml", RunSpec), (SETTINGS, Settings)])
def test_the_reference_shows_every_key(path: Path, schema: type[BaseModel]) -> None:
    """configs/demo.toml, and configs/coordinator.toml, mention each setting that exists, set or commented out."""
    text = path.read_text(encoding="utf-8")

    def names(model: type[BaseModel]) -> set[str]:
        found: set[str] = set()
        for name, field in model.model_fields.items():
            inner = field.annotation
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                found |= names(inner)
            else:
                found.add(name)
        return found

    missing = {name for name in names(schema) if not re.search(rf"\b{name}\b", text)}
    assert not missing, f"{path.name} does not mention {sorted(missing)}"


def test_the_shipped_settings_are_the_defaults() -> None:
    """configs/coordinator.toml loads, and says of itself that its values are the defaults."""
    assert load_settings(SETTINGS, FOLDER) == Settings()


def test_mistakes_in_the_settings_name_the_key(tmp_path: Path) -> None:
    """Of the file in the run's folder or of the one that was given: one line for each mistake, with the cure."""
    (tmp_path / "coordinator.toml").write_text(
        '[checkpoints]\nkeep_lats = 3\nupload = ["/mnt"]\n[trackers]\nuse = ["x"]'
    )
    with pytest.raises(ConfigError) as caught:
        load_settings(None, tmp_path)
    unknown, upload, tracker = sorted(str(caught.value).splitlines(), key=lambda line: "keep_lats" not in line)
    assert "checkpoints.keep_lats" in unknown and "did you mean 'keep_last'" in unknown
    assert "checkpoints.upload" in upload and "unknown tracker 'x'; use tensorboard" in tracker
    with pytest.raises(ConfigError, match="--settings .*no such file"):
        load_settings(tmp_path / "none.toml", tmp_path)
    assert load_settings(None, tmp_path / "elsewhere") == Settings()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("train.learning_rat", 1e-3, "unknown key 'train.learning_rat'; did you mean 'learning_rate'?"),
        ("data.source.pth", "x", "unknown key 'data.source.pth'; did you mean 'path'?"),
        ("outer.zzz", 1, "unknown key 'outer.zzz'; known here: learning_rate, momentum, nesterov"),
        ("run.name", ..., "key 'run.name' is missing"),
        ("data.source.path", ..., "key 'data.source.path' is missing"),
        ("data.source.kind", "csv", "data.source: kind is 'csv'; it must be one of 'text', 'dataset'"),
        ("data.tokenizer.kind", ..., "data.tokenizer: key 'kind' is missing"),
        ("round.target_tokens", 0, "round.target_tokens: Input should be greater than 0"),
        ("run.rounds", "5", "run.rounds: Input should be a valid integer"),
        ("run.rounds", True, "run.rounds: Input should be a valid integer"),
        ("train.learning_rate", float("nan"), "train.learning_rate: "),
        ("codec.name", "sparse/7", "codec.name: unknown codec 'sparse/7'; use fp16, "),
        ("codec.down_to", "sparse/7", "codec.down_to: unknown codec 'sparse/7'; use fp16, "),
        ("codec.down_to", "dense4", "codec.down_to: 'dense4' sends more than codec.name, 'lowbit2'; the ladder goes"),
        (
            "train.micro_batch_sequences",
            9,
            "train.micro_batch_sequences is larger than train.batch_sequences; lower it",
        ),
        ("timing.silence_seconds", 2.0, "timing.silence_seconds must be at least three heartbeats"),
    ],
)
def test_a_mistake_names_the_key_and_the_cure(path: str, value: Any, message: str) -> None:
    """One wrong key gives one line: the file, the key as written there, and what would be right."""
    with pytest.raises(SpecError) as error:
        parse(changed(path, value), source="my.toml")
    assert str(error.value).startswith(f"my.toml: {message}")
    assert "\n" not in str(error.value)


def test_every_mistake_is_reported_at_once() -> None:
    """Two wrong keys give two lines, not two attempts."""
    raw = changed("train.learning_rat", 1e-3)
    raw["round"] = {}
    with pytest.raises(SpecError) as error:
        parse(raw, source="my.toml")
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such config file"), (b"run = [", "not valid TOML"), (b"\xff\xfe", "cannot be read")],
)
def test_a_file_that_is_no_config_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    """A missing, malformed or binary file raises the same error, with the file's name in it."""
    path = tmp_path / "run.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SpecError, match=message) as error:
        load(path)
    assert str(error.value).startswith(str(path))


@given(st.randoms(use_true_random=False))
def test_equal_specs_are_equal_bytes(random: Any) -> None:
    """The order of keys in the file, and defaults written out or left out, do not change the run's identity."""
    spec = parse(MINIMAL, source="minimal")

    def shuffled(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        items = list(value.items())
        random.shuffle(items)
        return {key: shuffled(inner) for key, inner in items}

    written_out = shuffled(json.loads(spec.canonical_json()))
    assert parse(written_out, source="shuffled").canonical_json() == spec.canonical_json()


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(values)
def test_canonical_json_is_a_fixed_point(value: Any) -> None:
    """Reading canonical JSON and writing it again gives the same bytes."""
    text = canonical_json(value)
    assert canonical_json(json.loads(text)) == text


def test_any_change_is_another_run() -> None:
    """Changing any single value of the spec changes its bytes, and so the run's id."""
    base = parse(MINIMAL, source="minimal").canonical_json()
    for path, value in [
        ("run.seed", 1),
        ("train.beta2", 0.99),
        ("model.config.hidden_size", 32),
        ("codec.name", "sign"),
        ("codec.down_to", "sign"),
    ]:
        assert parse(changed(path, value), source="changed").canonical_json() != base


def test_toml_floats_may_be_written_as_integers() -> None:
    """`learning_rate = 1` means 1.0, and is the same run."""
    raw = tomllib.loads("max_seconds = 60")
    spec = parse(changed("round.max_seconds", raw["max_seconds"]), source="x")
    assert spec.canonical_json() == parse(changed("round.max_seconds", 60.0), source="x").canonical_json()
