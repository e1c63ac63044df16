"""When a run will be finished, judged by its log."""

from __future__ import annotations

from peer.log.chain import Log


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
