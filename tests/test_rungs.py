"""The ladder in the run spec: defaults of the outer step that depend on the codec, sizes, how far down peers may go."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from configs.load import parse
from configs.rungs import PAYLOAD_BITS, RUNGS, payload_bytes
from configs.schema import CODEC_PATTERN, RunSpec, canonical_json
from peer.codecs import CODECS, encode

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


def test_a_run_is_fixed_to_its_codec_unless_it_says_how_far_down_peers_may_go() -> None:
    """Left out, empty or the same: one rung. A spec of before the key existed reads as the same run."""
    for name in RUNGS:
        spec = parse({**MINIMAL, "codec": {"name": name}}, "test")
        assert spec.codec.ladder == (name,)
        for same in ("", name):
            assert parse({**MINIMAL, "codec": {"name": name, "down_to": same}}, "test") == spec
        old = json.loads(spec.canonical_json())
        del old["codec"]["down_to"]
        assert RunSpec.from_json(canonical_json(old)) == spec
    spec = parse({**MINIMAL, "codec": {"name": "sign", "down_to": "sparse/16"}}, "test")
    assert spec.codec.ladder == ("sign", "sparse/8", "sparse/16")
    assert (spec.outer.learning_rate, spec.outer.momentum, spec.codec.keep_unsent) == RUNGS["sign"], "the run's rung's"


@pytest.mark.parametrize("name", RUNGS)
def test_a_rung_sends_what_the_ladder_says(name: str) -> None:
    """Within a tenth for half a million values, and each rung sends less than the one above it."""
    noise = torch.randn(500_000, generator=torch.Generator().manual_seed(1))
    assert len(encode(name, noise)) == pytest.approx(payload_bytes(name, noise.numel()), rel=0.1)
    assert list(PAYLOAD_BITS) == list(RUNGS) and list(PAYLOAD_BITS.values()) == sorted(PAYLOAD_BITS.values())[::-1]


def test_the_resolved_values_travel() -> None:
    """The canonical JSON holds the values, so that a later release with other defaults reads the same run."""
    spec = parse({**MINIMAL, "codec": {"name": "sparse/32"}}, "test")
    written = json.loads(spec.canonical_json())
    assert written["outer"]["learning_rate"] == RUNGS["sparse/32"].learning_rate
    assert RunSpec.from_json(spec.canonical_json()) == spec
