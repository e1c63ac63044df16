"""What must hold whatever happened: read from the folders that the nodes left, and from what they said at the end.

- Nobody ended who was not killed (nor had a full disk, or a wrong clock, and said so), and everybody alive left
  politely.
- Whoever led meanwhile, at the end the coordinator leads.
- One chain: every node's log is a prefix of the longest one, and every state is the one that the chain names.
- The log replays to the same bits, and credit is its fold (`verify`).
- Every position of the data order that was given out before the last fault, or merged on any side of a cut, is merged
  exactly once in the end.
- No record came later than its deadline beyond a round's usual time, for anybody who was not struck itself.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from peer.log.chain import Log
from peer.log.verify import verify
from peer.rounds.ranges import Ranges
from tests.faults.runner import Happened, Watch, gaps, outstanding
from tests.faults.schedule import COORDINATOR, Schedule

BREATH_SECONDS = 2.0  # by which a busy machine may be late; two cores for all nodes together
RECOVERY_SECONDS = 12.0  # after a fault is over, until its victim is expected to have each record in time again
TAKEOVER_SILENCES = 3.0  # until somebody leads in place of a coordinator that cannot be reached, at the latest


@dataclass
class Judgement:
    """Figures, and in `wrong` everything that should not have happened."""

    rounds: int = 0  # since everybody took part
    seconds: float = 0.0
    tokens: int = 0
    contributions: int = 0
    usual_seconds: float = 0.0  # median time between records before the first fault
    worst_seconds: float = 0.0  # the longest time between records, for somebody who was not struck
    worst_deadlines: float = 0.0  # by how many deadlines the latest record was later than usual
    late_rounds: int = 0  # whose record came more than one deadline later than usual, for whatever reason
    stalls: int = 0  # the same for two deadlines
    twice: int = 0  # positions merged more than once
    lost: int = 0  # positions that were given out before the last fault, or merged by somebody, and are not in the log
    failed: int = 0  # nodes that ended by themselves, or did not leave politely
    wrong: list[str] = field(default_factory=list)


def judge(folder: Path, schedule: Schedule, happened: Happened, breath_seconds: float = BREATH_SECONDS) -> Judgement:
    """Everything but what only the world can see (leaked processes).

    `breath_seconds`: by how much records may be late for reasons of the machine.
    """
    found = Judgement(seconds=happened.seconds)
    _endings(schedule, happened, found)
    names = [name for name in happened.watches if any((folder / name / "log").glob("*.record"))]
    logs = {name: Log.load(folder / name / "log") for name in names}
    log = max(logs.values(), key=lambda log: log.head.round)
    found.wrong += [
        f"{name} has another chain" for name, it in logs.items() if it.head.hash != log.entries[it.head.round].hash
    ]
    if log.head.signed.signer != log.origin.coordinator.public_key:
        found.wrong.append("the coordinator does not lead at the end")
    _states(folder, log, happened, found)
    _positions(log, happened, found)
    _times(log, schedule, happened, found, breath_seconds)
    found.rounds = log.head.round - happened.base_round
    found.tokens = log.accounts.tokens
    found.contributions = sum(len(entry.contributions) for entry in log.entries)
    return found


def _endings(schedule: Schedule, happened: Happened, found: Judgement) -> None:
    excuses = {"fill": "", "skew": "clock"}  # what ends a node by itself, and what its last words speak of then
    excused = {name: excuses[fault.what] for fault in schedule.faults if fault.what in excuses for name in fault.whom}
    for name, words in happened.ended.items():
        if name not in excused or excused[name] not in words:
            found.wrong.append(f"{name} ended: {words}")
    skewed = {name for fault in schedule.faults if fault.what == "skew" for name in fault.whom}
    found.wrong += [f"{name} was not told that its clock is wrong" for name in sorted(skewed - happened.ended.keys())]
    found.wrong += [f"{name} did not leave politely" for name in happened.alive if name not in happened.left]
    found.failed = len(found.wrong)


def _states(folder: Path, log: Log, happened: Happened, found: Judgement) -> None:
    verdict = verify(folder / COORDINATOR)
    found.wrong += verdict.errors
    digests = {entry.round - 1: entry.record.base_digest.hex() for entry in log.entries[1:]}
    digests.setdefault(Log.load(folder / COORDINATOR / "log").head.round, verdict.state_digest)
    for name, left in happened.left.items():
        expected = digests.get(left.head_round, left.state_digest)
        if left.state_digest != expected:
            found.wrong.append(f"{name} has state {left.state_digest[:12]}, round {left.head_round} is {expected[:12]}")


def _positions(log: Log, happened: Happened, found: Judgement) -> None:
    sequences = sum(len(Ranges.from_protos(item.consumed)) for entry in log.entries for _, item in entry.contributions)
    found.twice, found.lost = sequences - len(log.accounts.accepted), len(outstanding(happened, log.accounts.accepted))
    if found.twice:
        found.wrong.append(f"{found.twice} positions were merged twice")
    if found.lost:
        found.wrong.append(
            f"{found.lost} positions were given out before the last fault, or merged and taken back, and lost"
        )


def _times(log: Log, schedule: Schedule, happened: Happened, found: Judgement, breath_seconds: float) -> None:
    timing = log.spec.timing
    deadlines = {entry.round + 1: entry.record.deadline_seconds for entry in log.entries}
    calm = [seconds for watch in happened.watches.values() for when, seconds, _ in gaps(watch) if when < happened.began]
    found.usual_seconds = usual = statistics.median(calm)
    leaderless = any(fault.what == "cut" or COORDINATOR in fault.whom for fault in schedule.faults)
    takeover_seconds = TAKEOVER_SILENCES * timing.silence_seconds if leaderless else 0.0
    allowed = breath_seconds + usual + takeover_seconds  # a busy machine, a round without the dead, a change of leader
    late_rounds, stalls = set(), set()
    for name, watch in happened.watches.items():
        for seconds, round_ in _unstruck(name, watch, happened):
            deadline, late = deadlines.get(round_, 0.0) or timing.first_deadline_seconds, seconds - usual
            found.worst_seconds = max(found.worst_seconds, seconds)
            found.worst_deadlines = max(found.worst_deadlines, late / deadline)
            late_rounds |= {round_} if late > deadline else set()
            stalls |= {round_} if late > 2 * deadline else set()
            if late > deadline + allowed:
                found.wrong.append(f"{name} had round {round_} {late:.1f} s late; its deadline was {deadline:.1f} s")
    found.late_rounds, found.stalls = len(late_rounds), len(stalls)


def _unstruck(name: str, watch: Watch, happened: Happened) -> Iterator[tuple[float, int]]:
    """(seconds since the record before, round) of what came while nothing was done to this node itself."""
    struck = [
        (when, when + (fault.lasting_seconds or 0.0) + RECOVERY_SECONDS)
        for when, fault, begins in happened.events
        if begins and name in fault.whom
    ]
    for when, seconds, round_ in gaps(watch):
        overlaps = any(when > begin and when - seconds < end for begin, end in struck)
        if when > happened.began and not overlaps:
            yield seconds, round_


def commits(watches: dict[str, Watch]) -> list[tuple[float, int]]:
    """(seconds, round): when each round was first known to anybody."""
    first: dict[int, float] = {}
    for watch in watches.values():
        for when, round_ in watch.seen:
            first[round_] = min(when, first.get(round_, when))
    return sorted((when, round_) for round_, when in first.items())
