"""Settings of the outer step that suit each codec, found by `benchmarks/quality.py` (docs/quality.md has the figures).

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
