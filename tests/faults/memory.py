"""Faults in the in-memory swarm: everything is real but the wire, the process and its clock. Runs everywhere."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import MappingProxyType

from configs import RunSpec
from peer.errors import CommonweightsError
from peer.identity import PeerId
from peer.node import Node
from tests.faults.phases import observed
from tests.faults.schedule import COORDINATOR, Phase, What
from tests.faults.world import Left
from tests.in_memory import Swarm

LEAVE_SECONDS = 20.0


class MemoryWorld:
    """See `tests.faults.world.World`."""

    cannot: Mapping[What, str] = MappingProxyType({"skew": "nodes in one process have one clock"})

    def __init__(self, swarm: Swarm) -> None:
        self.folder = swarm.folder
        self.swarm = swarm
        self._orders: dict[str, list[tuple[Phase, int, What]]] = {}
        self._reached: Counter[str] = Counter()
        self._ended: dict[str, str] = {}
        self._cut: tuple[str, ...] = ()
        self._killed: list[asyncio.Task[None]] = []

    async def start(self, name: str, *, skew_seconds: float = 0.0) -> None:
        assert not skew_seconds, self.cannot["skew"]
        await asyncio.gather(*self._killed, return_exceptions=True)
        if name == COORDINATOR:
            await self.swarm.start_coordinator()
            return
        self._ended.pop(name, None)
        self.swarm.start(name)
        self.swarm.tasks[name].add_done_callback(functools.partial(self._done, name))

    def begin(self) -> None:
        self.swarm.coordinator.leader.pause(False)

    async def stop(self) -> dict[str, Left]:
        for node in self.swarm.nodes.values():
            node.stop()
        living = {name: self.swarm.nodes[name] for name in self.swarm.tasks if name in self.swarm.nodes}
        async with asyncio.timeout(LEAVE_SECONDS):
            await asyncio.gather(*self.swarm.tasks.values(), return_exceptions=True)
        replicas = {name: node.replica for name, node in living.items() if name not in self._ended}
        return {name: Left(it.state.round, it.digest.hex()) for name, it in replicas.items()}

    def kill(self, name: str) -> None:
        self.swarm.network.kill(self._id(name))  # now, and not when the task gets round to it
        swarm = self.swarm
        killing = swarm.kill_coordinator() if name == COORDINATOR else swarm.kill(name)
        self._killed.append(asyncio.ensure_future(killing))

    def pause(self, name: str, paused: bool) -> None:
        if paused:
            self.swarm.network.freeze(self._id(name))
        else:
            self.swarm.network.heal(self._id(name))

    def slow(self, name: str, mbit: float | None) -> None:
        if mbit is not None:
            self.swarm.network.limit(mbit * 1e6 / 8, self._id(name))
        else:
            self.swarm.network.heal(self._id(name))

    def cut(self, *names: str) -> None:
        if names:
            self._cut = names
            self.swarm.part(*names)
        else:
            self.swarm.network.heal(*map(self._id, self._cut))

    def lie(self, name: str, lies: bool) -> None:
        if lies:
            self.swarm.network.corrupt(self._id(name))
        else:
            self.swarm.network.heal(self._id(name))

    def fill(self, name: str, full: bool) -> None:
        def refuse(content: object) -> bytes:
            raise CommonweightsError("the disk is full; make room and start again, nothing is lost")

        blobs = self.swarm.nodes[name].replica.blobs
        if full:
            blobs.put = refuse  # type: ignore[method-assign]
        else:
            del blobs.put

    def order(self, name: str, phase: Phase, round: int, what: What) -> None:
        self._orders.setdefault(name, []).append((phase, round, what))

    def reached(self, name: str) -> int:
        return self._reached[name]

    def alive(self) -> set[str]:
        return {COORDINATOR, *(name for name, task in self.swarm.tasks.items() if not task.done())}

    def ended(self) -> dict[str, str]:
        return dict(self._ended)

    def observe(self, node: Node, phase: str) -> None:
        name = node.labels.name
        round_ = node.replica.state.round + 1
        for order in self._orders.get(name, []):
            if order[0] == phase and order[1] <= round_:
                self._orders[name].remove(order)
                self._reached[name] += 1
                if order[2] == "kill":
                    self.kill(name)
                elif order[2] == "pause":
                    self.pause(name, True)
                return

    def _id(self, name: str) -> PeerId:
        return self.swarm.ticket.coordinator if name == COORDINATOR else self.swarm.peer_id(name)

    def _done(self, name: str, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._ended[name] = str(error)


@contextlib.asynccontextmanager
async def memory_world(folder: Path, spec: RunSpec) -> AsyncIterator[MemoryWorld]:
    """The coordinator is up, and paused until `begin`."""
    async with Swarm(folder, spec) as swarm:
        world = MemoryWorld(swarm)
        with observed(world.observe):
            yield world
