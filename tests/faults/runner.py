"""Brings a schedule upon a world, and keeps watch: who had which record when, what happened, who ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from peer.identity import Identity
from peer.log.chain import Log
from peer.rounds.ranges import Ranges
from protos import log_pb2
from tests.faults.schedule import COORDINATOR, At, Fault, Reaches, Schedule
from tests.faults.world import Left, World, rot

LOOK_SECONDS = 0.05
PATIENCE_SECONDS = 90.0  # without any record: the run has stalled for good
DRAIN_SECONDS = 60.0  # for positions that were leased to the dead to be trained on by the living
WARM_UP_ROUNDS = 4  # undisturbed ones, from which is known how long a round takes here


@dataclass
class Watch:
    """The log in one node's folder, as it grows. `seen`: (seconds, round) whenever the head changed."""

    folder: Path
    head: int = -1
    seen: list[tuple[float, int]] = field(default_factory=list)

    def look(self, now: float) -> bool:
        """Whether the head moved."""
        before = self.head
        while self.head >= 0 and not self._record(self.head).exists():
            self.head -= 1  # rolled back
        while self._record(self.head + 1).exists():
            self.head += 1
        if self.head != before:
            self.seen.append((now, self.head))
        return self.head != before

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
        self._merged, self._merged_until, self._cursor = Ranges(), -1, 0

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
                if time.monotonic() >= end:
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
                missing -= {name for name in missing if self._key(name) in _signers(coordinator._record(looked_at))}
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
        """Everything that was leased before the last fault is merged; looked at once a second, for a while."""
        now = time.monotonic()
        if not self.happened.events or now - self._moved > PATIENCE_SECONDS:
            return True
        if now < self._look_at:
            return False
        self._look_at = now + 1.0
        self._drain_until = self._drain_until or now + DRAIN_SECONDS
        return now > self._drain_until or not self._outstanding()

    def _outstanding(self) -> Ranges:
        """As `outstanding`, without the cost of checking signatures in the middle of a run."""
        watch = max(self.happened.watches.values(), key=lambda watch: watch.head)
        given_out = newest_at(self.happened, self.happened.events[-1][0])
        for round_ in range(self._merged_until + 1, watch.head + 1):
            record = _open(watch._record(round_))
            self._merged |= Ranges.of(
                (it.start, it.stop)
                for item in record.accepted
                for it in log_pb2.Contribution.FromString(item.contribution.body).consumed
            )
            if round_ <= given_out:
                self._cursor = max(self._cursor, record.data_cursor)
        self._merged_until = watch.head
        return Ranges.of([(0, self._cursor)]) - self._merged

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


def outstanding(log: Log, happened: Happened) -> Ranges:
    """Positions that were given out before the last fault and are not merged."""
    given_out = newest_at(happened, happened.events[-1][0] if happened.events else 0.0)
    cursor = max(entry.record.data_cursor for entry in log.entries[: given_out + 1])
    return Ranges.of([(0, cursor)]) - log.accounts.accepted


def newest_at(happened: Happened, moment: float) -> int:
    """The newest round that anybody knew of."""
    seen = [round_ for watch in happened.watches.values() for when, round_ in watch.seen if when <= moment]
    return max(seen, default=0)


def _order(fault: Fault) -> tuple[float, int]:
    return (fault.when.seconds, 0) if isinstance(fault.when, At) else (0.0, fault.when.round)


def _signers(record: Path) -> set[bytes]:
    """Whose contributions were merged in this record."""
    return {item.contribution.signer for item in _open(record).accepted}


def _open(record: Path) -> log_pb2.Record:
    """Unchecked: what is judged is judged from the whole log, at the end."""
    return log_pb2.Record.FromString(log_pb2.Signed.FromString(record.read_bytes()).body)


def gaps(watch: Watch) -> Iterator[tuple[float, float, int]]:
    """(when, seconds since the record before, round) of every record that came to a node."""
    for (before, _), (when, round_) in pairwise(watch.seen):
        yield when, when - before, round_
