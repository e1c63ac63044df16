"""Tables, fits and the picture of docs/performance.md about growth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.growth.maths import CONTRIBUTIONS, Maths
from benchmarks.growth.swarm import FIRST_ROUND, ROUNDS, Swarmed
from benchmarks.tables import table

LARGE = 10_000_000  # parameters, from which on the arithmetic outweighs everything else
MANY = 8  # peers, the same


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """b of the fit y = a x^b, by least squares on the logarithms."""
    x, y = (np.log([point[axis] for point in points]) for axis in (0, 1))
    return float(np.polyfit(x, y, 1)[0])


def maths_table(rows: Sequence[Maths]) -> str:
    heading = ("codec", "parameters", "settle", "encode", "check", "apply", "digest", "together", "processor seconds",
               "peak memory, fp32 copies")  # fmt: skip
    text = f"{CONTRIBUTIONS} contributions, 2 threads, wall seconds.\n\n"
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
        of_codec = [row for row in rows if row.codec == codec and row.parameters >= LARGE]
        if len(of_codec) > 1:
            cpu = exponent([(row.parameters, row.cpu) for row in of_codec])
            text += f"\n`{codec}`: processor time grows as parameters^{cpu:.2f} from 10M on"
            text += f"; a line through its rows gives a peak of {_memory_fit(of_codec)}.\n"
    return text


def _memory_fit(rows: Sequence[Maths]) -> str:
    """Bytes = slope * parameters + constant, in words."""
    slope, constant = np.polyfit([row.parameters for row in rows], [row.copies * 4 * row.parameters for row in rows], 1)
    return f"{slope / 4:.2f} copies and {constant / 1e6:.0f} MB"


def swarm_tables(rows: Sequence[Swarmed]) -> str:
    return "\n".join(
        _swarm_table([row for row in rows if row.codec == codec]) for codec in dict.fromkeys(row.codec for row in rows)
    )


def _swarm_table(rows: Sequence[Swarmed]) -> str:
    heading = ("peers", "close to record, s", "close to applied by all, s", "processor s per peer and round",
               "MB per peer", "MB received per peer and round", "longest stall of the loop, s", "at")  # fmt: skip
    text = f"{rows[0].parameters / 1e6:.1f}M parameters, `{rows[0].codec}` ({rows[0].payload_bytes / 1e3:.0f} KB a"
    text += f" payload), medians of {ROUNDS - FIRST_ROUND + 1} rounds.\n\n"
    text += table(
        heading,
        [
            (
                f"{row.peers}",
                f"{row.to_record:.2f}",
                f"**{row.close_to_applied:.2f}**",
                f"{row.cpu_per_peer_round:.3f}",
                f"{row.memory_per_peer:.0f}",
                f"{row.received_bytes / 1e6:.2f}",
                f"{row.late:.2f}",
                row.blocked_by,
            )
            for row in rows
        ],
    )
    many = [row for row in rows if row.peers >= MANY]
    if len(many) > 1:
        fits = [
            (what, exponent([(row.peers, value(row)) for row in many]))
            for what, value in (
                ("close to applied", lambda row: row.close_to_applied),
                ("processor time of a peer", lambda row: row.cpu_per_peer_round),
                ("bytes that a peer receives", lambda row: row.received_bytes),
            )
        ]
        told = ", ".join(f"{what} as peers^{power:.2f}" for what, power in fits)
        text += f"\nFrom {many[0].peers} peers on: {told}.\n"
    return text


def plot(maths: Sequence[Maths], swarms: Sequence[Swarmed], path: Path) -> None:
    """Time and memory against the model's size, time and bytes against the number of peers; dotted: the fits."""
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "growth"  # the same numbers give the same file
    figure, ((time_by_size, memory_by_size), (time_by_peers, bytes_by_peers)) = plt.subplots(
        2, 2, figsize=(10, 7), constrained_layout=True
    )

    def draw(axes: Any, rows: Sequence[Any], x: str, y: Callable[[Any], float], fit_from: float) -> None:
        for codec in dict.fromkeys(row.codec for row in rows):
            points = sorted((getattr(row, x), y(row)) for row in rows if row.codec == codec)
            (line,) = axes.plot(*zip(*points, strict=True), "o-", label=codec)
            fitted = [point for point in points if point[0] >= fit_from]
            if fit_from and len(fitted) > 1:
                logs = np.log(np.array(fitted))
                power, factor = np.polyfit(logs[:, 0], logs[:, 1], 1)
                xs = np.array([fitted[0][0], fitted[-1][0]])
                axes.plot(xs, np.exp(factor) * xs**power, ":", color=line.get_color())
        axes.set(xscale="log")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)

    draw(time_by_size, maths, "parameters", lambda row: row.cpu, LARGE)
    time_by_size.set(yscale="log", xlabel="parameters", ylabel="a round's maths, processor seconds")
    draw(memory_by_size, maths, "parameters", lambda row: row.copies, 0)
    memory_by_size.set(xlabel="parameters", ylabel="peak memory, fp32 copies of the parameters", ylim=(0, None))
    memory_by_size.axhline(3, color="black", linestyle="--", linewidth=1)
    draw(time_by_peers, swarms, "peers", lambda row: row.close_to_applied, MANY)
    time_by_peers.set(yscale="log", xlabel="peers on one machine", ylabel="from close to applied by all, seconds")
    draw(bytes_by_peers, swarms, "peers", lambda row: row.received_bytes / 1e6, MANY)
    bytes_by_peers.set(yscale="log", xlabel="peers", ylabel="MB received per peer and round")
    figure.savefig(path, metadata={"Date": None})
