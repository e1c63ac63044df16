"""Which rung of the codec ladder a peer takes: the richest that its uplink hides behind a round. Pure.

Every peer decides for itself (rung.py measures); any rung between the run's (`codec.name`) and its sparsest
(`codec.down_to`) is merged like any other, so nothing has to be agreed upon.

Down it goes in one step, to where the upload fits. Up it goes one rung at a time, and only when there is room to spare:
a sparse rung leaves much in the error feedback, and a contribution that brings all of it at once would be clipped.
"""

from __future__ import annotations

from collections.abc import Sequence

from configs.rungs import payload_bytes
from peer.terminal.quantities import duration, link_rate

ROUND_SHARE = 0.25  # of a round's length that an upload may take: everybody else's download begins with its end
DEADLINE_SHARE = 0.5  # of the time that a closing round waits: links are not as fast as they were a round ago
CLIMB_SHARE = 0.6  # of both, on a richer rung than the present one, so that no link goes up and down for ever
DOWN_MEASUREMENTS = 2  # in a row that were too slow: one bad minute is not a slow link
UP_MEASUREMENTS = 4  # in a row that were fast enough


def patience_seconds(round_seconds: float, deadline_seconds: float) -> float:
    """What an upload may take to be hidden, and in time."""
    return min(ROUND_SHARE * round_seconds, DEADLINE_SHARE * deadline_seconds)


def choose(
    ladder: Sequence[str],
    parameters: int,
    uploads_bytes_per_second: Sequence[float],
    patience: float,
    present: str,
) -> str:
    """The rung for the next contribution.

    Args:
        ladder: codecs, the richest first; `present` is one of them.
        parameters: of the model.
        uploads_bytes_per_second: as the last contributions measured them, the newest last; none: nothing moves.
        patience: seconds that an upload may take.
    """
    if not uploads_bytes_per_second:
        return present

    def share(rung: str, upload: float) -> float:
        return payload_bytes(rung, parameters) / upload / patience

    at, slowest = ladder.index(present), min(uploads_bytes_per_second[-UP_MEASUREMENTS:])
    if at > 0 and share(ladder[at - 1], slowest) <= CLIMB_SHARE:
        return ladder[at - 1]
    fastest = max(uploads_bytes_per_second[-DOWN_MEASUREMENTS:])
    return next((rung for rung in ladder[at:] if share(rung, fastest) <= 1.0), ladder[-1])


def told(before: str, present: str, parameters: int, upload_bytes_per_second: float, patience: float) -> str:
    """A change of rung, in one line for the owner."""

    def seconds(rung: str) -> float:
        return payload_bytes(rung, parameters) / upload_bytes_per_second

    return (
        f"this uplink hides {'' if seconds(present) <= patience else 'not even '}{present}: at "
        f"{link_rate(upload_bytes_per_second)} a contribution takes {duration(seconds(present))} (as {before} "
        f"{duration(seconds(before))}), rounds leave {duration(patience)} for it"
    )
