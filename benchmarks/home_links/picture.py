"""The picture of docs/performance.md: how busy each method keeps the devices, and what it sends for that."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COLOURS = {  # ours in blue, from rich to sparse; the others apart
    "ours, lowbit2": "#08519c",
    "ours, sparse/16": "#3182bd",
    "ours, sparse/64": "#9ecae1",
    "hivemind.Optimizer": "#e6550d",
    "DiLoCo on hivemind": "#fdae6b",
    "DDP gloo fp16": "#636363",
    "DiLoCo gloo": "#bdbdbd",
}


def plot(cases: Sequence[Sequence[dict[str, Any]]], path: Path) -> None:
    """`cases`: the runs of each line of the table, in its order. Lines that differ in the method alone share a row."""
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "home links"  # the same numbers give the same file
    rows = list(dict.fromkeys(_row(runs) for runs in cases))
    figure, (left, right) = plt.subplots(
        1, 2, sharey=True, figsize=(10, 1.2 + 0.62 * len(rows)), constrained_layout=True
    )
    told = set()
    for runs in cases:
        method = runs[0]["case"]["method"]
        if method not in COLOURS:
            continue
        style: dict[str, Any] = {"color": COLOURS[method], "s": 60, "edgecolors": "black", "linewidths": 0.4}
        style |= {"marker": "o" if method.startswith("ours") else "s", "label": None if method in told else method}
        told.add(method)
        line = rows.index(_row(runs))
        left.scatter(statistics.median(statistics.mean(run["utilisation"]) for run in runs), line, **style)
        right.scatter(statistics.median(run["sent_megabytes"] for run in runs), line, **style)
    left.set(yticks=range(len(rows)), yticklabels=rows, xlim=(0, 1), xlabel="compute utilisation, mean of the peers")
    left.invert_yaxis()
    right.set(xscale="log", xlabel="MB sent per peer and update")
    for axes in (left, right):
        axes.grid(axis="x", alpha=0.3)
    handles = dict(zip(*reversed(left.get_legend_handles_labels()), strict=True))
    shown = [method for method in COLOURS if method in handles]
    figure.legend([handles[each] for each in shown], shown, loc="outside upper center", ncols=4, fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def _row(runs: Sequence[dict[str, Any]]) -> str:
    case = runs[0]["case"]
    rates = "/".join(f"{rate:g}" for rate in sorted(set(case["links"]), reverse=True))
    size = "" if case["million"] == 10 else f", {case['million']}M parameters"
    return f"{len(case['links'])} peers{size}, {rates} Mbit/s,\nevery {case['steps']} steps"
