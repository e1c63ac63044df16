"""Defaults of the outer step that depend on the codec."""

from __future__ import annotations

import json
from typing import Any

from configs.load import parse
from configs.rungs import RUNGS
from configs.schema import CODEC_PATTERN, RunSpec
from peer.codecs import CODECS

MINIMAL: dict[str, Any] = {
    "run": {"name": "x"},
    "model": {},
    "data": {"source": {"kind": "text", "path": "."}, "tokenizer": {"kind": "bytes"}, "sequence_length": 8},
    "train": {"batch_sequences": 1, "learning_rate": 1e-3},
    "round": {"target_tokens": 8},
}


def test_every_codec_has_a_rung() -> None:
    """The codecs that exist, those that a config may name and those with defaults are the same ten."""
    assert set(RUNGS) == set(CODECS)
    assert all(CODEC_PATTERN.match(name) for name in RUNGS)


def test_what_is_left_out_suits_the_codec() -> None:
    """Learning rate, momentum and keep_unsent come from the codec's rung, also for the codec that is the default."""
    for name, rung in RUNGS.items():
        spec = parse({**MINIMAL, "codec": {"name": name}}, "test")
        assert (spec.outer.learning_rate, spec.outer.momentum, spec.codec.keep_unsent) == rung
    spec = parse(MINIMAL, "test")
    assert (spec.outer.learning_rate, spec.outer.momentum, spec.codec.keep_unsent) == RUNGS[spec.codec.name]


def test_what_is_given_is_kept() -> None:
    """A value of the config wins, and a learning rate alone does not get the momentum that was tuned for another."""
    spec = parse({**MINIMAL, "codec": {"name": "sign", "keep_unsent": 0.25}, "outer": {"learning_rate": 1.5}}, "test")
    assert (spec.outer.learning_rate, spec.outer.momentum, spec.codec.keep_unsent) == (1.5, 0.0, 0.25)
    spec = parse({**MINIMAL, "outer": {"nesterov": False}}, "test")
    assert (spec.outer.momentum, spec.outer.nesterov) == (RUNGS[spec.codec.name].momentum, False)


def test_the_resolved_values_travel() -> None:
    """The canonical JSON holds the values, so that a later release with other defaults reads the same run."""
    spec = parse({**MINIMAL, "codec": {"name": "sparse/32"}}, "test")
    written = json.loads(spec.canonical_json())
    assert written["outer"]["learning_rate"] == RUNGS["sparse/32"].learning_rate
    assert RunSpec.from_json(spec.canonical_json()) == spec
