"""What must hold whatever happened: read from the folders that the nodes left, and from what they said at the end.

- No survivor ended, and every one of them left politely.
- One chain: every node's log is a prefix of the longest one, and every state is the one that the chain names.
- The log replays to the same bits, and credit is its fold (`verify`).
- Every position of the data order up to where the run was at the last fault is merged exactly once.
- No record came later than its deadline beyond a round's usual time.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from pathlib import Path

from peer.log.chain import Log
from peer.log.verify import verify
from peer.rounds.ranges import Ranges
from tests.faults.runner import Happened, Watch, gaps, outstanding
from tests.faults.schedule import COORDINATOR, Schedule

BREATH_SECONDS = 1.5  # by which a busy machine may be late; two cores for all nodes together


@dataclass
class Judgement:
    """Figures, and in `wrong` everything that should not have happened."""

    rounds: int = 0  # since everybody took part
    seconds: float = 0.0
    tokens: int = 0
    usual_seconds: float = 0.0  # median time between records before the first fault
    worst_seconds: float = 0.0  # the longest time between records, as a survivor saw it
    worst_deadlines: float = 0.0  # by how many deadlines the latest record was later than usual
    stalls: int = 0  # records that came more than two deadlines later than usual
    contributions: int = 0
    twice: int = 0  # positions merged more than once
    lost: int = 0  # positions that were leased before the last fault and never merged
    survivors_failed: int = 0
    wrong: list[str] = field(default_factory=list)


def judge(folder: Path, schedule: Schedule, happened: Happened) -> Judgement:
    """Everything but what only the world can see (leaked processes)."""
    found = Judgement(seconds=happened.seconds)
    found.wrong += [f"{name} ended: {words}" for name, words in happened.ended.items() if name in schedule.survivors]
    found.wrong += [f"{name} did not leave politely" for name in schedule.survivors if name not in happened.left]
    found.survivors_failed = len({text.split()[0] for text in found.wrong})
    log = _longest(folder, [COORDINATOR, *happened.watches])
    _chains(folder, log, happened, found)
    _states(folder, log, happened, found)
    _positions(log, happened, found)
    _times(log, schedule, happened, found)
    found.rounds = log.head.round - happened.base_round
    found.tokens = log.accounts.tokens
    found.contributions = sum(len(entry.contributions) for entry in log.entries)
    return found


def _longest(folder: Path, names: list[str]) -> Log:
    logs = [Log.load(folder / name / "log") for name in dict.fromkeys(names) if (folder / name / "log").is_dir()]
    return max(logs, key=lambda log: log.head.round)


def _chains(folder: Path, log: Log, happened: Happened, found: Judgement) -> None:
    for name in happened.watches:
        for path in sorted((folder / name / "log").glob("*.record")):
            if Log.load(path.parent).entries[-1].hash not in {entry.hash for entry in log.entries}:
                found.wrong.append(f"{name} has another chain")
            break
    verdict = verify(folder / COORDINATOR)
    found.wrong += verdict.errors


def _states(folder: Path, log: Log, happened: Happened, found: Judgement) -> None:
    digests = {entry.round - 1: entry.record.base_digest.hex() for entry in log.entries[1:]}
    newest = verify(folder / COORDINATOR)
    if newest.ok:
        digests.setdefault(Log.load(folder / COORDINATOR / "log").head.round, newest.state_digest)
    for name, left in happened.left.items():
        expected = digests.get(left.head_round, left.state_digest)
        if left.state_digest != expected:
            found.wrong.append(f"{name} has state {left.state_digest[:12]}, round {left.head_round} is {expected[:12]}")


def _positions(log: Log, happened: Happened, found: Judgement) -> None:
    sequences = sum(len(Ranges.from_protos(item.consumed)) for entry in log.entries for _, item in entry.contributions)
    found.twice = sequences - len(log.accounts.accepted)
    if found.twice:
        found.wrong.append(f"{found.twice} positions were merged twice")
    found.lost = len(outstanding(log, happened))
    if found.lost:
        found.wrong.append(f"{found.lost} positions were leased before the last fault and never merged")


def _times(log: Log, schedule: Schedule, happened: Happened, found: Judgement) -> None:
    deadlines = {entry.round + 1: entry.record.deadline_seconds for entry in log.entries}
    watches = {name: happened.watches[name] for name in schedule.survivors if name in happened.watches}
    found.usual_seconds = statistics.median(
        seconds for watch in watches.values() for when, seconds, _ in gaps(watch, 0.0) if when <= happened.began
    ) if watches else 0.0  # fmt: skip
    for name, watch in watches.items():
        for _, seconds, round_ in gaps(watch, happened.began):
            deadline = deadlines.get(round_) or schedule_deadline(log)
            late = seconds - found.usual_seconds
            found.worst_seconds = max(found.worst_seconds, seconds)
            found.worst_deadlines = max(found.worst_deadlines, late / deadline)
            found.stalls += late > 2 * deadline + BREATH_SECONDS
            if late > deadline + BREATH_SECONDS:
                found.wrong.append(f"{name} had round {round_} {late:.1f} s late; its deadline was {deadline:.1f} s")


def schedule_deadline(log: Log) -> float:
    return log.spec.timing.first_deadline_seconds


def commits(watches: dict[str, Watch]) -> list[tuple[float, int]]:
    """(seconds, round): when each round was first known to anybody."""
    first: dict[int, float] = {}
    for watch in watches.values():
        for when, round_ in watch.seen:
            first[round_] = min(when, first.get(round_, when))
    return sorted((when, round_) for round_, when in first.items())
