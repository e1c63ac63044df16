"""A whole run in one process: real nodes, leader, log, codecs, trainers and files, over the in-memory swarm."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import torch

from configs import RunSpec
from coordinator.rebuild import rebuild
from coordinator.run import Coordinator
from coordinator.serve import ServeOptions, leading, open_run
from coordinator.settings import Settings
from peer.identity import Identity, PeerId
from peer.join import JoinOptions, assembled
from peer.manners.settings import ALWAYS
from peer.node import Node
from peer.swarm.memory import MemoryNetwork
from peer.ticket import Ticket

DEADLINE_SECONDS = 60.0


def tiny_spec(**changes: dict[str, Any]) -> RunSpec:
    """Two layers of width 16 over the bytes of the json package; a round takes a fraction of a second."""
    sections: dict[str, dict[str, Any]] = {
        "run": {"name": "tiny", "seed": 3, "rounds": 3},
        "model": {
            "architecture": "llama",
            "config": {
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
            },
        },
        "data": {
            "source": {"kind": "text", "path": str(Path(json.__file__).parent), "suffixes": [".py"]},
            "tokenizer": {"kind": "bytes"},
            "sequence_length": 32,
            "shard_sequences": 256,
            "held_out_fraction": 0.05,
        },
        "train": {"batch_sequences": 4, "learning_rate": 0.01, "schedule": "constant"},
        "round": {"target_tokens": 1 << 30, "inner_steps": 4, "max_seconds": 20, "overlap": False},
        "snapshots": {"every_rounds": 2},
        "evaluation": {"sequences": 8, "sample_tokens": 0},
        "timing": {"heartbeat_seconds": 0.1, "silence_seconds": 2, "first_deadline_seconds": 5},
    }
    for section, values in changes.items():
        sections[section] = {**sections.get(section, {}), **values}
    return RunSpec.model_validate(sections)


class Swarm:
    """One coordinator and any number of peers, each with a folder of its own below `folder`."""

    def __init__(self, folder: Path, spec: RunSpec, settings: Settings | None = None) -> None:
        torch.set_num_threads(1)
        self.folder = folder
        self.spec = spec
        self.settings = settings or Settings()
        self.network = MemoryNetwork()
        self.events: list[str] = []
        self.nodes: dict[str, Node] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.coordinator: Coordinator
        self.lead: asyncio.Task[None]
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Swarm:
        await self.start_coordinator(paused=True)
        return self

    async def __aexit__(self, *error: object) -> None:
        for task in (*self.tasks.values(), self.lead):
            task.cancel()
        await asyncio.gather(*self.tasks.values(), self.lead, return_exceptions=True)
        await self._stack.aclose()

    async def start_coordinator(self, paused: bool = False, recover: bool = False) -> None:
        """From its folder; the run is made if it is not there yet, or begun again from the peers (`recover`)."""
        folder = self.folder / "coordinator"
        identity = Identity.load_or_create(folder / "identity.key")
        options = ServeOptions(folder, host="127.0.0.1", paused=paused, settings=self.settings)
        self._stack = contextlib.AsyncExitStack()
        swarm = await self._stack.enter_async_context(self.network.node(identity))
        if recover:
            log = await rebuild(self.spec, folder, identity, swarm, self.events.append)
        else:
            log = await asyncio.to_thread(open_run, self.spec, folder, identity)
        self.coordinator = await self._stack.enter_async_context(
            leading(log, swarm, identity, options, lambda text: self.events.append(f"coordinator: {text}"))
        )
        self.lead = asyncio.create_task(self.coordinator.run())

    async def kill_coordinator(self) -> None:
        """As SIGKILL: nobody hears anything of it any more."""
        self.network.kill(self.coordinator.swarm.peer_id)
        self.lead.cancel()
        await asyncio.gather(self.lead, return_exceptions=True)
        await self._stack.aclose()

    async def kill(self, name: str) -> None:
        self.network.kill(self.peer_id(name))
        task = self.tasks.pop(name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        self.nodes.pop(name, None)

    def part(self, *names: str) -> None:
        """Cut these nodes off from all others; "coordinator" is a name too. `network.heal` undoes it."""
        everybody = {"coordinator": self.coordinator.swarm.peer_id, **{name: self.peer_id(name) for name in self.tasks}}
        for inside in names:
            for outside in everybody.keys() - set(names):
                self.network.cut(everybody[inside], everybody[outside])

    def leaders(self) -> list[str]:
        """Names of the nodes that lead at the moment."""
        nodes = {name: node.leader for name, node in self.nodes.items() if not self.tasks[name].done()}
        if not self.lead.done():
            nodes["coordinator"] = self.coordinator.leader
        return [name for name, leader in nodes.items() if leader.leading]

    @property
    def ticket(self) -> Ticket:
        log = self.coordinator.log
        return Ticket(log.run_id, log.origin.coordinator, (), ("/ip4/127.0.0.1/tcp/1",))

    def start(self, *names: str, **options: Any) -> None:
        for name in names:
            self.tasks[name] = asyncio.create_task(self._live(name, **options))

    async def _live(self, name: str, **options: Any) -> None:
        async with self.joined(name, **options) as node:
            self.nodes[name] = node
            await node.run()

    @contextlib.asynccontextmanager
    async def joined(self, name: str, **changes: Any) -> AsyncIterator[Node]:
        folder = self.folder / name
        identity = Identity.load_or_create(folder / "identity.key")
        options = JoinOptions(folder, name=name, device="cpu", **{"overrides": ALWAYS, **changes})

        def said(text: str) -> None:
            self.events.append(f"{name}: {text}")

        async with self.network.node(identity) as swarm, assembled(swarm, identity, self.ticket, options, said) as node:
            yield node

    def peer_id(self, name: str) -> PeerId:
        return Identity.load(self.folder / name / "identity.key").peer_id

    async def begin(self, members: int) -> None:
        """Open the first round when so many peers are there."""
        await self.until(lambda: len(self.coordinator.leader.state.members) >= members, "peers are there")
        self.coordinator.leader.pause(False)

    async def until(self, condition: Callable[[], bool], what: str, seconds: float = DEADLINE_SECONDS) -> None:
        """Poll until `condition` holds; a task that fails meanwhile fails the test."""
        end = asyncio.get_running_loop().time() + seconds
        while not condition():
            for task in (*self.tasks.values(), self.lead):
                if task.done() and not task.cancelled() and task.exception() is not None:
                    task.result()
            assert asyncio.get_running_loop().time() < end, f"not within {seconds:g} s: {what}; {self.events[-8:]}"
            await asyncio.sleep(0.02)

    async def finish(self) -> None:
        """Wait until the run and every peer have ended."""
        await self.until(lambda: self.lead.done(), "the run is finished")
        await self.until(lambda: all(task.done() for task in self.tasks.values()), "peers have left")

    def head(self) -> int:
        return self.coordinator.log.head.round
