"""The ladder of codecs, richest first: the outer step that suits each, and how much each sends.

The settings were found by `benchmarks/quality.py` (docs/quality.md), the sizes by `benchmarks/codecs.py`
(docs/codecs.md).

Dense contributions take Nesterov momentum. The sparser a codec, the less a peer moves the weights per round: a larger
step makes up for it, and less momentum, because error feedback already carries what was not sent into later rounds.
"""

from __future__ import annotations

from typing import NamedTuple


class Rung(NamedTuple):
    learning_rate: float  # of the outer step
    momentum: float  # Nesterov's
    keep_unsent: float  # share of the error feedback that stays in the peer's own weights


RUNGS: dict[str, Rung] = {
    "fp16": Rung(0.9, 0.5, 0.0),
    "dense8": Rung(0.9, 0.5, 0.0),
    "dense4": Rung(0.9, 0.5, 0.5),
    "lowbit2": Rung(0.9, 0.5, 0.5),
    "ternary": Rung(0.9, 0.5, 0.5),
    "sign": Rung(0.9, 0.5, 0.5),
    "sparse/8": Rung(1.2, 0.4, 0.5),
    "sparse/16": Rung(1.4, 0.3, 0.5),
    "sparse/32": Rung(2.0, 0.3, 0.5),
    "sparse/64": Rung(3.0, 0.3, 0.3),
}

PAYLOAD_BITS: dict[str, float] = {  # per parameter, all counted; of the sparse ones on pseudo-gradients, within 5 %
    "fp16": 16.0,
    "dense8": 8.063,
    "dense4": 4.063,
    "lowbit2": 2.125,
    "ternary": 1.663,
    "sign": 1.063,
    "sparse/8": 0.813,
    "sparse/16": 0.476,
    "sparse/32": 0.273,
    "sparse/64": 0.155,
}


def rungs_between(richest: str, sparsest: str) -> tuple[str, ...]:
    """The ladder from one rung down to another, both included; empty when the second is the richer one."""
    names = list(RUNGS)
    return tuple(names[names.index(richest) : names.index(sparsest) + 1])


def payload_bytes(codec: str, parameters: int) -> int:
    """What a contribution weighs, about."""
    return round(PAYLOAD_BITS[codec] * parameters / 8)
