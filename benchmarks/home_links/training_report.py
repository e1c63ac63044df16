"""The table and the plot of real training, for docs/performance.md and docs/training.svg."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.tables import table, write_between_markers

OURS = "ours"
HEADING = (
    "method",
    "synchronisation after",
    "outer step",
    "learning rate",
    "updates",
    "M tokens",
    "share of the devices' time",
    "held-out loss at the end",
    "seconds to {loss:.3f}",
    "ratio",
    "MB sent per peer, in all",
    "steps late",
)
SHARING = {"steps": "steps by speed", "batches": "batches by speed", "equal": "equal steps, all wait for the slowest"}

SHARED = ("DiLoCo on hivemind",)  # the methods whose peers can share the work in several ways

Curve = Sequence[tuple[float, float]]  # (seconds, held-out loss), by time


def seconds_to(curve: Curve, loss: float) -> float:
    """When a curve first is at `loss` or below, between its points in a straight line; infinite if it never is."""
    if curve and curve[0][1] <= loss:
        return curve[0][0]
    for (before, above), (after, below) in itertools.pairwise(curve):
        if below <= loss < above:
            return before + (after - before) * (above - loss) / (above - below)
    return math.inf


def report(results: list[dict[str, Any]], parameters: int, docs: Path | None) -> None:
    """Print the table, and write it and the plot into the folder `docs`."""
    others = [each for each in results if each["setting"]["method"] != OURS]
    if not others:
        for each in results:
            print(label(each), each["curve"][-1])
        return
    best = min(others, key=lambda each: each["curve"][-1][1])
    end, loss = best["curve"][-1]
    text = table(
        tuple(each.format(loss=loss) for each in HEADING), [line(each, end, loss) for each in by_loss(results)]
    )
    seconds = max(each["seconds"] for each in results)
    intro = f"{parameters / 1e6:.2f}M parameters, {seconds:.0f} s of training per run, one run per line."
    text = f"{intro} *Ratio*: of the {end:.0f} s that the best alternative took to its last loss, {loss:.3f}.\n\n{text}"
    print(text)
    if docs is not None:
        write_between_markers(docs / "performance.md", text, "training")
        plot(results, loss, docs / "training.svg")


def by_loss(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(results, key=lambda each: (each["setting"]["method"] != OURS, float(each["curve"][-1][1])))


def line(result: dict[str, Any], end: float, loss: float) -> tuple[str, ...]:
    setting, reached = result["setting"], seconds_to(result["curve"], loss)
    learning_rate, momentum = setting["outer"]
    return (
        label(result),
        f"{setting['round_seconds']:g} s",
        f"{learning_rate:g} / {momentum:g}" if learning_rate else "",
        f"{setting['learning_rate']:g}",
        f"{result['updates']}",
        f"{result['tokens'] / 1e6:.2f}",
        f"{result['utilisation']:.2f}",
        f"{result['curve'][-1][1]:.3f}",
        "never" if math.isinf(reached) else f"{reached:.0f}",
        "" if math.isinf(reached) else f"**{reached / end:.2f}**",
        f"{result['sent_megabytes']:.0f}",
        f"{100 * result['late_steps']:.1f} %",
    )


def label(result: dict[str, Any]) -> str:
    setting = result["setting"]
    if setting["method"] == OURS:
        return f"ours, `{setting['codec']}`" + ("" if setting["overlap"] else ", without overlap")
    if setting["method"] not in SHARED:
        return str(setting["method"])
    return f"{setting['method']}, {SHARING[setting['sharing']]}"


def plot(results: list[dict[str, Any]], loss: float, path: Path) -> None:
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "training"  # the same numbers give the same file
    figure, axes = plt.subplots(figsize=(10, 5), constrained_layout=True)
    for result in by_loss(results):
        setting = result["setting"]
        own = setting["method"] == OURS
        name = f"{label(result)}, every {setting['round_seconds']:g} s".replace("`", "")
        axes.plot(*zip(*result["curve"], strict=True), "-" if own else "--", linewidth=2.5 if own else 1.2, label=name)
    axes.axhline(loss, color="black", linewidth=0.8, linestyle=":")
    axes.set(xlabel="seconds since the first step", ylabel="held-out loss, nats per byte", yscale="log")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.legend(fontsize=7)
    figure.savefig(path, metadata={"Date": None})
