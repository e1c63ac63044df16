"""Figures of one performance: on screen while it runs and when it is over, in docs/reliability.md, as a picture."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.tables import write_between_markers
from peer.identity import Identity
from peer.log.chain import Log
from peer.rounds.ranges import Ranges
from tests.faults.judgement import Judgement, commits
from tests.faults.runner import Happened
from tests.faults.schedule import COORDINATOR, Schedule

ARRIVAL_SECONDS = 15.0  # from its start until a new peer is counted as one that could take part

Figures = dict[str, str]


def line(schedule: Schedule, happened: Happened) -> str:
    """Where a performance stands."""
    heads = " ".join(f"{name.removeprefix('peer-')}:{watch.head}" for name, watch in happened.watches.items())
    if not happened.began:
        return f"waiting until everybody takes part   {heads}"
    struck = sum(begins for _, _, begins in happened.events)
    last = f", last: {happened.events[-1][1]}" if happened.events else ""
    return f"{time.monotonic() - happened.began:.0f} s   {struck} of {len(schedule.faults)} faults{last}   {heads}"


def figures(command: str, folder: Path, schedule: Schedule, happened: Happened, found: Judgement) -> Figures:
    """Name of the figure -> value, in words."""
    log = Log.load(folder / COORDINATOR / "log")
    found_here = {
        "peers": str(schedule.peers),
        "faults": ", ".join(_counts(happened)),
        "rounds": f"{found.rounds} in {found.seconds:.0f} s",
        "a round takes, undisturbed": f"{found.usual_seconds:.2f} s",
        "longest time between records": f"{found.worst_seconds:.2f} s",
        "latest record, beyond the usual": f"{found.worst_deadlines:.2f} deadlines",
        "records later than one deadline, than two": f"{found.late_rounds}, {found.stalls} of {found.rounds}",
        "nodes that ended by themselves": str(found.failed),
        "positions merged twice, lost": f"{found.twice}, {found.lost} of {len(log.accounts.accepted):,}",
    }
    if command == "churn":
        found_here |= _of_churn(folder, log, schedule, happened)
    if command in ("coordinator-away", "partition"):
        found_here["records signed by a peer"] = str(_by_peers(log))
        found_here["positions merged in records that gave way"] = _taken_back(folder, log, happened)
    if command == "slow-links":
        found_here["peers taken for gone"] = str(_evictions(folder))
    return found_here


def show(console: Console, figures: Figures, found: Judgement) -> None:
    table = Table(show_header=False)
    for name, value in figures.items():
        table.add_row(name, value)
    console.print(table)
    for text in found.wrong:
        console.print(f"WRONG  {text}", style="red")
    console.print("nothing is wrong" if not found.wrong else f"{len(found.wrong)} things are wrong")


def write(folder: Path, name: str, command: str, figures: Figures) -> None:
    """Between the markers of this command in reliability.md."""
    rows = "".join(f"| {key} | {value} |\n" for key, value in figures.items())
    write_between_markers(folder / "reliability.md", f"`{command}`\n\n| | |\n|---|---|\n{rows}", name)


def plot(path: Path, happened: Happened) -> None:
    """Seconds between records over time, with a mark for every kill."""
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "faults"  # the same numbers give the same file
    times = [(when - happened.began, round_) for when, round_ in commits(happened.watches)]
    figure, (upper, lower) = plt.subplots(2, 1, figsize=(10, 4.5), sharex=True, constrained_layout=True)
    upper.step(*zip(*times, strict=True), where="post", color="black")
    upper.set(ylabel="round")
    gaps = [(after, after - before) for (before, _), (after, _) in pairwise(times)]
    lower.plot(*zip(*gaps, strict=True), ".", markersize=4, color="black")
    lower.set(xlabel="seconds", ylabel="seconds since the\nrecord before", ylim=(0, None))
    for what, colour in (("kill", "tab:red"), ("join", "tab:green")):
        marks = [when - happened.began for when, fault, begins in happened.events if begins and fault.what == what]
        if marks:
            lower.plot(marks, [0] * len(marks), "|", color=colour, markersize=14, clip_on=False, label=f"a {what}")
            upper.plot(marks, [0] * len(marks), "|", color=colour, markersize=14, clip_on=False)
    lower.legend(fontsize=8, loc="upper right")
    figure.savefig(path, metadata={"Date": None})


def _counts(happened: Happened) -> list[str]:
    kinds = [fault.what for _, fault, begins in happened.events if begins]
    return [f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds)]


def _of_churn(folder: Path, log: Log, schedule: Schedule, happened: Happened) -> Figures:
    """Tokens per second under churn against those of the calm minute before, and who took part of those who could."""
    first = happened.events[0][0]
    when = {round_: moment for moment, round_ in commits(happened.watches)}
    tokens = {entry.round: sum(item.tokens for _, item in entry.contributions) for entry in log.entries}
    calm = [round_ for round_, moment in when.items() if happened.began < moment <= first]
    stirred = [round_ for round_, moment in when.items() if first < moment <= happened.began + schedule.seconds]
    spent = {entry.round: sum(item.train_seconds for _, item in entry.contributions) for entry in log.entries}
    calm_seconds, seconds = first - happened.began, happened.began + schedule.seconds - first
    shares = [_share(folder, log, round_, when[round_], happened) for round_ in stirred if round_ <= log.head.round]
    return {
        "tokens per second, calm and under churn": _compared(tokens, calm, calm_seconds, stirred, seconds),
        "seconds of training in the log per second": _compared(spent, calm, calm_seconds, stirred, seconds),
        "of the living peers, contributed to a round": f"{100 * statistics.mean(shares):.0f} %",
    }


def _compared(
    value: Mapping[int, float], calm: list[int], calm_seconds: float, stirred: list[int], seconds: float
) -> str:
    """What these rounds brought per second, before and under churn."""
    before, then = sum(value[it] for it in calm) / calm_seconds, sum(value.get(it, 0) for it in stirred) / seconds
    digits = 0 if before >= 100 else 3
    return f"{before:,.{digits}f}, {then:,.{digits}f} ({100 * then / before:.1f} %)"


def _share(folder: Path, log: Log, round_: int, moment: float, happened: Happened) -> float:
    """Of the peers that lived when this round was published, and were not just coming, those that are in it."""
    dead = {fault.whom[0] for when, fault, _ in happened.events if fault.what == "kill" and when <= moment}
    came = {fault.whom[0]: when for when, fault, _ in happened.events if fault.what == "join"}
    peers = [name for name in happened.watches if name not in (COORDINATOR, *dead)]
    living = [name for name in peers if came.get(name, 0.0) + ARRIVAL_SECONDS <= moment]
    keys = {_key(folder, name) for name in living}
    signers = {signer for signer, _ in log.entries[round_].contributions}
    return len(keys & signers) / len(keys)


def _by_peers(log: Log) -> int:
    own = log.origin.coordinator.public_key
    return sum(entry.signed.signer != own for entry in log.entries)


def _taken_back(folder: Path, log: Log, happened: Happened) -> str:
    """How much of the losing side's work is in the log again, and how much of that to the credit of who lost it."""
    losers = {name: watch.taken_back for name, watch in happened.watches.items() if watch.taken_back}
    keys = {_key(folder, name) for name in losers}
    taken_back = Ranges.of(pair for positions in losers.values() for pair in positions)
    own = [item for entry in log.entries for signer, item in entry.contributions if signer in keys]
    credited = Ranges.of(pair for item in own for pair in Ranges.from_protos(item.consumed))
    again, theirs = taken_back & log.accounts.accepted, taken_back & credited
    return f"{len(taken_back):,}; merged again {len(again):,}, {len(theirs):,} of them by those who lost them"


def _key(folder: Path, name: str) -> bytes:
    return Identity.load(folder / name / "identity.key").peer_id.public_key


def _evictions(folder: Path) -> int:
    said = folder / "control" / f"{COORDINATOR}.err"
    return said.read_text().count("is gone: not heard of") if said.exists() else 0
