"""Whole rounds of real nodes in one process, over the in-memory swarm: log, leases, blobs on disk, codecs, apply. Only
training is pretended.

All nodes share one interpreter. Their heavy work takes turns, as many as there are cores: threads of 64 nodes at once
would mostly wait for the interpreter's lock, which 64 machines do not share.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.stalls import Stalls
from peer.log.replica import Replica
from peer.training.trainer import StepResult, Trainer
from tests.in_memory import Swarm, tiny_spec

ROUNDS = 9
CORES = os.cpu_count() or 1
FIRST_ROUND = 4  # that counts: before it, the pace of the links is still being found, from 2 Mbit/s up


@dataclasses.dataclass(frozen=True)
class Swarmed:
    """Medians of the rounds from `FIRST_ROUND` on, processor time and bytes of all but the first."""

    peers: int
    parameters: int
    codec: str
    close_to_applied: float  # seconds from the call to close until all nodes have applied the record
    to_record: float  # of these, until the record is published
    cpu_per_peer_round: float
    memory_per_peer: float  # megabytes
    payload_bytes: float
    received_bytes: float  # by a peer, for the contributions of one round
    late: float  # the longest that the event loop, which all nodes share here, was blocked, in seconds
    blocked_by: str


async def swarmed(folder: Path, peers: int, codec: str) -> Swarmed:
    spec = tiny_spec(
        run={"rounds": ROUNDS, "seed": 3},
        model={"config": {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 5,
                          "num_attention_heads": 2, "num_key_value_heads": 2}},
        round={"target_tokens": peers * 128 * 4, "inner_steps": 4, "max_seconds": 120, "overlap": False},
        codec={"name": codec},
        snapshots={"every_rounds": 1000},
        evaluation={"every_rounds": 1000, "sequences": 1},
        timing={"heartbeat_seconds": 1.0, "silence_seconds": 60, "first_deadline_seconds": 60},
    )  # fmt: skip
    closed: dict[int, float] = {}
    recorded: dict[int, float] = {}
    applied: dict[int, float] = {}
    memory = _rss_bytes()
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(CORES))  # what goes to threads takes turns too
    async with Swarm(folder, spec) as swarm:
        torch.set_num_threads(1)  # for each of the turns, which are as many as there are cores
        names = [f"peer-{number}" for number in range(peers)]
        for name in names:
            swarm.start(name)
            await swarm.until(lambda name=name: name in swarm.nodes, f"{name} is there", 120)  # type: ignore[misc]
        turns = asyncio.Semaphore(CORES)
        for seed, node in enumerate(swarm.nodes.values()):
            pretend(node.contributor.trainer, seed)
            take_turns(node.replica, turns)
        await swarm.begin(peers)
        leader = swarm.coordinator.leader
        parameters = leader.replica.state.theta.numel()
        cpu = time.process_time()
        stalls = Stalls()
        began, received = 0.0, 0
        while not swarm.lead.done():
            now = time.monotonic()
            head = leader.replica.log.head.round
            for round_ in range(1, head + 1):
                recorded.setdefault(round_, now)
            if leader.state.closing:
                closed.setdefault(leader.state.round, now)
            slowest = min(node.replica.state.round for node in swarm.nodes.values())
            for round_ in range(1, slowest + 1):
                applied.setdefault(round_, now)
            if not began and head >= 1:
                began, cpu = now, time.process_time()
                received = _received_bytes(swarm)
            await asyncio.sleep(0.01)
        cpu = time.process_time() - cpu
        received = _received_bytes(swarm) - received
        await stalls.end()
        payload_bytes = statistics.mean(
            item.payload_bytes for entry in swarm.coordinator.log.entries for _, item in entry.contributions
        )
        await swarm.finish()
    whole = [round_ for round_ in range(FIRST_ROUND, ROUNDS + 1) if round_ in closed and round_ in applied]
    return Swarmed(
        peers,
        parameters,
        codec,
        close_to_applied=statistics.median(applied[round_] - closed[round_] for round_ in whole),
        to_record=statistics.median(recorded[round_] - closed[round_] for round_ in whole),
        cpu_per_peer_round=cpu / (peers * (ROUNDS - 1)),
        memory_per_peer=(_rss_bytes() - memory) / peers / 1e6,
        payload_bytes=payload_bytes,
        received_bytes=received / (peers * (ROUNDS - 1)),
        late=stalls.longest_seconds,
        blocked_by=stalls.worst[0][0] if stalls.worst else "",
    )


def pretend(trainer: Trainer, seed: int) -> None:
    """From now on a step costs no more than moving the weights a little."""
    generator = torch.Generator().manual_seed(seed)
    parameters = list(trainer.model.parameters())
    noise = [torch.randn(each.shape, generator=generator) * 1e-3 for each in parameters]

    def step(batch: Any, tokens_before: int) -> StepResult:
        time.sleep(0.05)
        with torch.no_grad():
            for parameter, each in zip(parameters, noise, strict=True):
                parameter.add_(each)
        return StepResult(3.0, int(batch.size), 0.05, 1.0, 1e-3, False)

    trainer.step = step  # type: ignore[method-assign, assignment]


def take_turns(replica: Replica, turns: asyncio.Semaphore) -> None:
    """From now on its heavy work waits for a turn."""
    compute = replica.compute

    async def in_turn(function: Callable[..., Any], *arguments: object) -> Any:
        async with turns:
            return await compute(function, *arguments)

    replica.compute = in_turn  # type: ignore[method-assign]


def _received_bytes(swarm: Swarm) -> int:
    return sum(node.replica.exchange.bytes_received for node in swarm.nodes.values())


def _rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
