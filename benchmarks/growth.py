"""What a round costs as the model grows, and as the swarm does.

The first part does one round's maths with eight contributions at each size, every size in a process of its own, so that
the peak of its memory is known. The second runs whole rounds of real nodes in one process over the in-memory swarm
(log, leases, blobs on disk, codecs, apply; only training is pretended), from two peers to 64.

    python -m benchmarks.growth --dir runs/growth [--write docs/performance.md]
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.stalls import Stalls
from benchmarks.tables import table, write_between_markers
from peer.codecs import open_payload
from peer.log.aggregate import OuterStep, apply, norm_of
from peer.log.state import State
from peer.rounds.feedback import ErrorFeedback
from peer.training.trainer import StepResult, Trainer
from tests.in_memory import Swarm, tiny_spec

CONTRIBUTIONS = 8
SIZES = (1_000_000, 10_000_000, 100_000_000, 400_000_000)
PEERS = (2, 4, 8, 16, 32, 64)
ROUNDS = 6
MATHS_CODECS = ("lowbit2", "sparse/16", "sparse/64")


@dataclasses.dataclass(frozen=True)
class Maths:
    """Wall seconds of each part, and processor seconds of all; `copies`: peak memory over the start's, in fp32 vectors
    of the model's size."""

    codec: str
    parameters: int
    settle: float  # e <- e + start - local
    encode: float  # and the error feedback without what was sent
    open: float  # check all contributions
    apply: float
    digest: float
    norm: float  # of one contribution; the sequencer alone computes it
    cpu: float
    copies: float

    @property
    def round_seconds(self) -> float:
        return self.settle + self.encode + self.open + self.apply + self.digest


def maths(codec: str, parameters: int) -> Maths:
    """One round's maths, in this process: theta, error feedback, and the local weights as the one working buffer."""
    torch.zeros(1 << 20).add_(1)  # libraries are loaded
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - started

    before_bytes, before_cpu = _peak_bytes(), time.process_time()
    theta = torch.zeros(parameters)
    theta.uniform_(-0.1, 0.1)
    feedback = ErrorFeedback(parameters)
    feedback.buffer.normal_(0, 1e-3)  # its pages exist, as in any round but the first
    local = theta + 0
    for part in local.split(1 << 20):
        part.add_(torch.randn(part.numel()), alpha=1e-3)
    before_cpu = time.process_time()
    with timed("settle"):
        feedback.add(theta, local, 0.5)
    with timed("encode"):
        payload = feedback.encode(codec)
    with timed("open"):
        opened = [open_payload(payload, parameters) for _ in range(CONTRIBUTIONS)]
    with timed("norm"):
        norm = norm_of(opened[0])
    with timed("apply"):
        parts = [(each, 100 + index, norm) for index, each in enumerate(opened)]
        apply(theta, None, parts, OuterStep(1.0))
    with timed("digest"):
        State(1, theta, None).digest()
    cpu = time.process_time() - before_cpu
    return Maths(codec, parameters, **seconds, cpu=cpu, copies=(_peak_bytes() - before_bytes) / (4 * parameters))


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def maths_elsewhere(codec: str, parameters: int) -> Maths:
    command = [sys.executable, "-m", "benchmarks.growth", "--one", codec, str(parameters)]
    out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stdout
    return Maths(**json.loads(out))


@dataclasses.dataclass(frozen=True)
class Swarmed:
    """Of the rounds after the first: medians."""

    peers: int
    parameters: int
    codec: str
    close_to_applied: float  # seconds from the call to close until all nodes have applied the record
    to_record: float  # of these, until the record is published
    cpu_per_peer_round: float
    memory_per_peer: float  # megabytes
    payload_bytes: float
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
        timing={"heartbeat_seconds": 0.5, "silence_seconds": 60, "first_deadline_seconds": 60},
    )  # fmt: skip
    closed: dict[int, float] = {}
    recorded: dict[int, float] = {}
    applied: dict[int, float] = {}
    memory = _rss_bytes()
    async with Swarm(folder, spec) as swarm:
        torch.set_num_threads(2)
        names = [f"peer-{number}" for number in range(peers)]
        for name in names:
            swarm.start(name)
            await swarm.until(lambda name=name: name in swarm.nodes, f"{name} is there", 120)  # type: ignore[misc]
        for seed, node in enumerate(swarm.nodes.values()):
            pretend(node.contributor.trainer, seed)
        await swarm.begin(peers)
        leader = swarm.coordinator.leader
        parameters = leader.replica.state.theta.numel()
        cpu = time.process_time()
        stalls = Stalls()
        began = 0.0
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
            await asyncio.sleep(0.01)
        cpu = time.process_time() - cpu
        await stalls.end()
        payload_bytes = statistics.mean(
            item.payload_bytes for entry in swarm.coordinator.log.entries for _, item in entry.contributions
        )
        await swarm.finish()
    whole = [round_ for round_ in range(2, ROUNDS + 1) if round_ in closed and round_ in applied]
    return Swarmed(
        peers,
        parameters,
        codec,
        close_to_applied=statistics.median(applied[round_] - closed[round_] for round_ in whole),
        to_record=statistics.median(recorded[round_] - closed[round_] for round_ in whole),
        cpu_per_peer_round=cpu / (peers * (ROUNDS - 1)),
        memory_per_peer=(_rss_bytes() - memory) / peers / 1e6,
        payload_bytes=payload_bytes,
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


def _rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """b of the fit y = a x^b, by least squares on the logarithms."""
    x, y = (np.log([point[axis] for point in points]) for axis in (0, 1))
    return float(np.polyfit(x, y, 1)[0])


def maths_table(rows: list[Maths]) -> str:
    heading = ("codec", "parameters", "settle", "encode", "check", "apply", "digest", "together", "processor seconds",
               "peak memory, fp32 copies")  # fmt: skip
    text = f"{CONTRIBUTIONS} contributions, {torch.get_num_threads()} threads, wall seconds.\n\n"
    text += table(
        heading,
        [
            (
                f"`{row.codec}`",
                f"{row.parameters / 1e6:.0f}M",
                *(f"{part:.3f}" for part in (row.settle, row.encode, row.open, row.apply, row.digest)),
                f"**{row.round_seconds:.2f}**",
                f"{row.cpu:.2f}",
                f"{row.copies:.2f}",
            )
            for row in rows
        ],
    )
    for codec in dict.fromkeys(row.codec for row in rows):
        points = [(row.parameters, row.cpu) for row in rows if row.codec == codec and row.parameters >= 10_000_000]
        if len(points) > 1:
            text += f"\n`{codec}`: processor time grows as parameters^{exponent(points):.2f} from 10M on.\n"
    return text


def swarm_table(rows: list[Swarmed]) -> str:
    heading = ("peers", "close to record, s", "close to applied by all, s", "processor s per peer and round",
               "MB per peer", "payload, KB", "longest stall of the loop, s", "at")  # fmt: skip
    text = f"{rows[0].parameters / 1e6:.1f}M parameters, `{rows[0].codec}`, medians of {ROUNDS - 1} rounds.\n\n"
    text += table(
        heading,
        [
            (
                f"{row.peers}",
                f"{row.to_record:.2f}",
                f"**{row.close_to_applied:.2f}**",
                f"{row.cpu_per_peer_round:.3f}",
                f"{row.memory_per_peer:.0f}",
                f"{row.payload_bytes / 1e3:.0f}",
                f"{row.late:.2f}",
                row.blocked_by,
            )
            for row in rows
        ],
    )
    if len(rows) > 2:
        power = exponent([(row.peers, row.close_to_applied) for row in rows[-4:]])
        text += f"\nFrom close to applied grows as peers^{power:.2f} over the last {len(rows[-4:])} rows.\n"
    return text


def show(text: str, name: str, document: Path | None) -> None:
    print(text)
    if document:
        write_between_markers(document, text, name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path("runs/growth"))
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="parameters; empty: none")
    parser.add_argument("--peers", default=",".join(map(str, PEERS)), help="empty: none")
    parser.add_argument("--codec", default="lowbit2", help="of the second part")
    parser.add_argument("--write", type=Path, help="a Markdown file whose measured parts are replaced")
    parser.add_argument("--one", nargs=2, metavar=("CODEC", "PARAMETERS"), help="one size in this process, as JSON")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(dataclasses.asdict(maths(arguments.one[0], int(arguments.one[1])))))
        return
    sizes, peers = ([int(each) for each in text.split(",") if each] for text in (arguments.sizes, arguments.peers))
    rows = []
    for size in sizes:
        for codec in MATHS_CODECS:
            rows.append(maths_elsewhere(codec, size))
            print(rows[-1], file=sys.stderr, flush=True)
    if rows:
        show(maths_table(sorted(rows, key=lambda row: MATHS_CODECS.index(row.codec))), "maths", arguments.write)
    counts = []
    for count in peers:
        folder = arguments.dir / f"{count}-peers"
        shutil.rmtree(folder, ignore_errors=True)
        counts.append(asyncio.run(swarmed(folder, count, arguments.codec)))
        shutil.rmtree(folder, ignore_errors=True)
        print(counts[-1], file=sys.stderr, flush=True)
    if counts:
        show(swarm_table(counts), "peers", arguments.write)


if __name__ == "__main__":
    main()
