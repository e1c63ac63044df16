"""Brings a schedule upon a world, and keeps watch: who had which record when, what happened, who ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from peer.identity import Identity
from peer.rounds.ranges import Ranges
from protos import log_pb2
from tests.faults.schedule import COORDINATOR, At, Fault, Reaches, Schedule
from tests.faults.world import Left, World, rot

LOOK_SECONDS = 0.05
PATIENCE_SECONDS = 90.0  # without any record: the run has stalled for good
DRAIN_SECONDS = 60.0  # for positions that were leased to the dead to be trained on by the living
LAG_ROUNDS = 3  # by which somebody who follows the run may be behind at any moment
WARM_UP_ROUNDS = 4  # undisturbed ones, from which is known how long a round takes here


@dataclass(frozen=True)
class Seen:
    """A record in a node's folder. `identity` tells one file from another that came in its place."""

    identity: tuple[int, int]
    signer: bytes
    contributors: frozenset[bytes]
    merged: Ranges
    cursor: int


@dataclass
class Watch:
    """The log in one node's folder, as it grows. `seen`: (seconds, round) whenever the head changed."""

    folder: Path
    seen: list[tuple[float, int]] = field(default_factory=list)
    records: list[Seen] = field(default_factory=list)  # by round
    taken_back: Ranges = Ranges()  # positions merged in records that were here and gave way to others

    @property
    def head(self) -> int:
        return len(self.records) - 1

    def look(self, now: float) -> bool:
        """Whether the log changed."""
        before = self.records[-1:]
        while self.records and self._identity(self.head) != self.records[-1].identity:
            self.taken_back |= self.records.pop().merged
        while (record := self._read(self.head + 1)) is not None:
            self.records.append(record)
        changed = self.records[-1:] != before
        if changed:
            self.seen.append((now, self.head))
        return changed

    @property
    def merged(self) -> Ranges:
        """Positions in the log as it is here now."""
        return Ranges.of(pair for record in self.records for pair in record.merged)

    def _identity(self, round_: int) -> tuple[int, int] | None:
        try:
            stat = self._record(round_).stat()
        except FileNotFoundError:
            return None
        return stat.st_ino, stat.st_mtime_ns

    def _read(self, round_: int) -> Seen | None:
        identity = self._identity(round_)
        try:
            return _seen(identity, self._record(round_).read_bytes()) if identity else None
        except FileNotFoundError:  # it gives way to another at this moment
            return None

    def _record(self, round_: int) -> Path:
        return self.folder / "log" / f"{round_:08d}.record"


@dataclass
class Happened:
    """What became of a run under a schedule."""

    began: float = 0.0  # seconds; everybody takes part, and a round's usual time is known
    base_round: int = 0  # the head then
    watches: dict[str, Watch] = field(default_factory=dict)
    events: list[tuple[float, Fault, bool]] = field(default_factory=list)  # when, what, True: begins, False: ends
    ended: dict[str, str] = field(default_factory=dict)  # nodes that ended by themselves
    alive: list[str] = field(default_factory=list)  # peers that ought to be, at the end
    left: dict[str, Left] = field(default_factory=dict)
    seconds: float = 0.0  # from `began` to the end


class Performance:
    """One run of a schedule. `progress` is called some twenty times a second."""

    def __init__(
        self, world: World, schedule: Schedule, progress: Callable[[Happened], None] = lambda happened: None
    ) -> None:
        self.world = world
        self.schedule = schedule
        self.happened = Happened()
        self._progress = progress
        self._moved = time.monotonic()  # when any head did
        self._waiting: list[tuple[Fault, int]] = []  # with how many orders its target must have come to
        self._acting: list[tuple[float, Fault]] = []  # with the time when it is over
        self._calm_since = 0  # round
        self._look_at = self._drain_until = 0.0  # seconds

    async def run(self) -> Happened:
        await self._begin()
        for fault in sorted(self.schedule.faults, key=_order):
            self._waiting.append((fault, self._order(fault)))
        while not self._over():
            await self._tick()
            for item in list(self._waiting):
                if self._due(*item):
                    self._waiting.remove(item)
                    await self._strike(item[0])
            for end, fault in list(self._acting):
                if time.monotonic() >= end or (fault.what == "skew" and fault.whom[0] in self.world.ended()):
                    self._acting.remove((end, fault))
                    await self._relieve(fault)
        self.happened.seconds = time.monotonic() - self.happened.began
        self.happened.alive = sorted(self.world.alive() - {COORDINATOR})
        self.happened.left = await self.world.stop()
        return self.happened

    # --- phases of a performance ------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        """Start everybody, and wait until all have contributed and a few undisturbed rounds have passed."""
        for name in (COORDINATOR, *self.schedule.names):
            if name != COORDINATOR:
                await self.world.start(name)
            self.happened.watches[name] = Watch(self.world.folder / name)
        coordinator = self.happened.watches[COORDINATOR]
        self.world.begin()
        missing, looked_at = set(self.schedule.names), 0
        while missing:
            await self._tick()
            while looked_at < coordinator.head:
                looked_at += 1
                missing -= {it for it in missing if self._key(it) in coordinator.records[looked_at].contributors}
        together = coordinator.head
        while coordinator.head < together + WARM_UP_ROUNDS:
            await self._tick()
        self.happened.began = time.monotonic()
        self.happened.base_round = self._calm_since = coordinator.head

    def _over(self) -> bool:
        elapsed = time.monotonic() - self.happened.began
        rounds = self._highest() - self.happened.base_round
        quiet = not self._waiting and not self._acting
        calm = self._highest() - self._calm_since
        schedule = self.schedule
        enough = elapsed >= schedule.seconds and rounds >= schedule.rounds and calm >= schedule.calm_rounds
        return quiet and enough and self._drained()

    def _drained(self) -> bool:
        """The coordinator leads, everybody follows, nothing is `outstanding`; looked at once a second, for a while."""
        now = time.monotonic()
        if not self.happened.events or now - self._moved > PATIENCE_SECONDS:
            return True
        if now < self._look_at:
            return False
        self._look_at = now + 1.0
        self._drain_until = self._drain_until or now + DRAIN_SECONDS
        watch = max(self.happened.watches.values(), key=lambda watch: watch.head)
        following = all(watch.head - self.happened.watches[name].head <= LAG_ROUNDS for name in self.world.alive())
        at_rest = following and watch.records[-1].signer == self._key(COORDINATOR)
        return now > self._drain_until or (at_rest and not outstanding(self.happened, watch.merged))

    async def _tick(self) -> None:
        await asyncio.sleep(LOOK_SECONDS)
        now = time.monotonic()
        moved = [watch.look(now) for watch in self.happened.watches.values()]
        if any(moved):
            self._moved = now
        self.happened.ended.update(self.world.ended())
        self._progress(self.happened)
        assert now - self._moved < PATIENCE_SECONDS, f"no record for {PATIENCE_SECONDS:g} s; {self.happened.ended}"

    # --- one fault --------------------------------------------------------------------------------------------------

    def _order(self, fault: Fault) -> int:
        if isinstance(fault.when, At):
            return 0
        (name,) = fault.whom
        before = sum(name in other.whom and isinstance(other.when, Reaches) for other, _ in self._waiting)
        self.world.order(name, fault.when.phase, self.happened.base_round + fault.when.round, fault.what)
        return before + 1

    def _due(self, fault: Fault, orders: int) -> bool:
        if isinstance(fault.when, At):
            return time.monotonic() >= self.happened.began + fault.when.seconds
        return self.world.reached(fault.whom[0]) >= orders

    async def _strike(self, fault: Fault) -> None:
        self._note(fault, True)
        if fault.lasting_seconds is not None:
            self._acting.append((time.monotonic() + fault.lasting_seconds, fault))
        await self._act(fault, begins=True)

    async def _relieve(self, fault: Fault) -> None:
        self._note(fault, False)
        await self._act(fault, begins=False)

    def _note(self, fault: Fault, begins: bool) -> None:
        self.happened.events.append((time.monotonic(), fault, begins))
        self._calm_since = self._highest()

    async def _act(self, fault: Fault, begins: bool) -> None:
        world = self.world
        ordered = isinstance(fault.when, Reaches) and begins  # then it did it itself
        if fault.what == "cut":
            world.cut(*(fault.whom if begins else ()))
            return
        for name in fault.whom:
            match fault.what:
                case "kill":
                    if begins and not ordered:
                        world.kill(name)
                    elif not begins:
                        await world.start(name)
                case "pause":
                    if not ordered:
                        world.pause(name, begins)
                case "slow":
                    world.slow(name, fault.value if begins else None)
                case "lie":
                    world.lie(name, begins)
                case "rot":
                    if begins:
                        rot(world.folder / name)
                case "fill":
                    world.fill(name, begins)
                    if not begins and name in world.ended():  # as a person would
                        await world.start(name)
                case "skew":
                    world.kill(name)
                    await world.start(name, skew_seconds=fault.value if begins else 0.0)
                case "join":
                    if begins:
                        await world.start(name)
                        self.happened.watches[name] = Watch(world.folder / name)

    def _highest(self) -> int:
        return max(watch.head for watch in self.happened.watches.values())

    def _key(self, name: str) -> bytes:
        path = self.world.folder / name / "identity.key"
        return Identity.load(path).peer_id.public_key if path.exists() else b""


def outstanding(happened: Happened, merged: Ranges) -> Ranges:
    """Positions that are not among `merged` and were given out before the last fault began, or merged by anybody since,
    also in records that had to give way to others.

    Not what whoever takes over leaves out, because it may be leased out of its sight: that comes back too, and is
    trained on in its turn, but so long nobody waits here.
    """
    begun = max((when for when, _, begins in happened.events if begins), default=0.0)
    newest, watches = newest_at(happened, begun), happened.watches.values()
    cursor = max((record.cursor for watch in watches for record in watch.records[: newest + 1]), default=0)
    once_merged = Ranges.of(pair for watch in watches for part in (watch.taken_back, watch.merged) for pair in part)
    return (Ranges.of([(0, cursor)]) | once_merged) - merged


def newest_at(happened: Happened, moment: float) -> int:
    """The newest round that anybody knew of."""
    seen = [round_ for watch in happened.watches.values() for when, round_ in watch.seen if when <= moment]
    return max(seen, default=0)


def _order(fault: Fault) -> tuple[float, int]:
    return (fault.when.seconds, 0) if isinstance(fault.when, At) else (0.0, fault.when.round)


def _seen(identity: tuple[int, int], content: bytes) -> Seen:
    """Unchecked: what is judged is judged from the whole log, at the end."""
    signed = log_pb2.Signed.FromString(content)
    record = log_pb2.Record.FromString(signed.body)
    contributions = [log_pb2.Contribution.FromString(item.contribution.body) for item in record.accepted]
    merged = Ranges.of((it.start, it.stop) for item in contributions for it in item.consumed)
    contributors = frozenset(item.contribution.signer for item in record.accepted)
    return Seen(identity, signed.signer, contributors, merged, record.data_cursor)


def gaps(watch: Watch) -> Iterator[tuple[float, float, int]]:
    """(when, seconds since the record before, round) of every record that came to a node."""
    for (before, _), (when, round_) in pairwise(watch.seen):
        yield when, when - before, round_
