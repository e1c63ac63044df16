"""When a run will be finished, and how long its rounds are, judged by its log."""

from __future__ import annotations

import itertools
import statistics

from peer.log.chain import Log

ROUNDS_LOOKED_AT = 8  # for the length of the next one


def eta_seconds(log: Log) -> float:
    """Until the run has all its tokens or rounds, at the pace of the newest records; -1 when that is not known."""
    run, accounts = log.spec.run, log.accounts
    if log.finished:
        return 0.0
    left = []
    if run.tokens and accounts.tokens_per_second > 0:
        left.append((run.tokens - accounts.tokens) / accounts.tokens_per_second)
    if run.rounds and len(accounts.recent) > 1:
        (start, _), (end, _) = accounts.recent[0], accounts.recent[-1]
        left.append((run.rounds - log.head.round) * (end - start) / (len(accounts.recent) - 1))
    return max(0.0, min(left)) if left else -1.0


def round_seconds(log: Log) -> float | None:
    """The median length of the last rounds; None until there were two. What came before the first record is none: the
    swarm gathered."""
    times = [entry.record.time_seconds for entry in log.entries[1:][-1 - ROUNDS_LOOKED_AT :]]
    lengths = [after - before for before, after in itertools.pairwise(times) if after > before]
    return statistics.median(lengths) if len(lengths) > 1 else None
