"""When a run will be done, from how fast its newest rounds went."""

from __future__ import annotations

import math
from collections.abc import Sequence

ROUNDS = 32  # newer ones say more about who is here now
WINDOW = 4  # rounds whose mean pace is one observation: single rounds scatter more than what is left will


def eta(records: Sequence[tuple[float, int]], left_tokens: int | None, left_rounds: int | None) -> tuple[float, float]:
    """Seconds until `left_tokens` or `left_rounds` are done, whichever is first: median and 90th percentile of the
    paces of the newest rounds; infinity when nothing limits the run or nothing is known.

    Args:
        records: (time in Unix seconds, tokens so far) of consecutive records, oldest first.
    """
    recent = records[-ROUNDS - 1 :]
    window = min(WINDOW, max(1, (len(recent) - 1) // 2))
    pairs = [(recent[i], recent[i + window]) for i in range(len(recent) - window)]
    token_paces = [(end[0] - start[0]) / (end[1] - start[1]) for start, end in pairs if end[1] > start[1]]
    round_paces = [(end[0] - start[0]) / window for start, end in pairs]
    return (
        min(_left(left_tokens, token_paces, 0.5), _left(left_rounds, round_paces, 0.5)),
        min(_left(left_tokens, token_paces, 0.9), _left(left_rounds, round_paces, 0.9)),
    )


def _left(amount: int | None, paces: list[float], share: float) -> float:
    if amount is None or not paces:
        return math.inf
    return max(0.0, amount * sorted(paces)[min(len(paces) - 1, math.ceil(share * len(paces)) - 1)])
