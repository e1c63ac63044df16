"""The table of docs/performance.md, from what the cells left:

python -m benchmarks.home_links.report RESULTS [--write docs/performance.md --plot docs/home-links.svg]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

from benchmarks.home_links.picture import plot
from benchmarks.tables import table, write_between_markers
from configs.rungs import payload_bytes

HEADING = (
    "parameters, peers, Mbit/s",
    "steps between synchronisations",
    "method",
    "runs",
    "compute utilisation, mean (least)",
    "seconds between updates",
    "seconds per exchange",
    "least that its bytes need",
    "MB sent per peer and update",
    "cores per peer",
    "peak MB per peer",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--write", type=Path, help="a Markdown file whose measured part is replaced")
    parser.add_argument("--plot", type=Path, help="an SVG file to draw")
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in arguments.results.read_text().splitlines()]
    cases = by_case(rows)
    text = table(HEADING, [line(runs) for runs in cases if "utilisation" in runs[0]])
    churns = [churn(runs) for runs in cases if "gone_share" in runs[0]]
    text = "\n".join((text, *churns)) + ("\n" if churns else "")
    print(text)
    if arguments.write:
        write_between_markers(arguments.write, text, "links")
    if arguments.plot:
        plot([runs for runs in cases if "utilisation" in runs[0]], arguments.plot)


def by_case(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The runs of each case; cases of equal links and steps together, ours first."""
    cases: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        case = row["case"]
        links = tuple(sorted(case["links"], reverse=True))
        others = not case["method"].startswith("ours")
        key = (case["million"], len(links), links, -case["steps"], case["churn"], others, case["method"])
        cases.setdefault(key, []).append(row)
    return [runs for _, runs in sorted(cases.items(), key=lambda item: item[0])]


def line(runs: list[dict[str, Any]]) -> tuple[str, ...]:
    def middle(key: str) -> float:
        return float(statistics.median(run[key] for run in runs))

    case = runs[0]["case"]
    rates = "/".join(f"{rate:g}" for rate in sorted(set(case["links"]), reverse=True))
    mean = statistics.median(statistics.mean(run["utilisation"]) for run in runs)
    least = statistics.median(min(run["utilisation"]) for run in runs)
    return (
        f"{case['million']}M, {len(case['links'])}, {rates}",
        f"{case['steps']} ({case['steps'] * case['step_seconds']:g} s)",
        case["method"],
        f"{len(runs)}",
        f"**{mean:.3f}** ({least:.3f})",
        seconds(middle("update_seconds")),
        seconds(middle("exchange_seconds")),
        f"{needed_seconds(case, middle('sent_megabytes')):.1f}",
        f"{middle('sent_megabytes'):.1f}",
        f"{middle('cores'):.2f}",
        f"{middle('memory_megabytes'):.0f}",
    )


def seconds(value: float) -> str:
    """Empty for what could not be told."""
    return "" if math.isnan(value) else f"{value:.1f}"


def needed_seconds(case: dict[str, Any], sent_megabytes: float) -> float:
    """What the slowest link needs for the bytes of one update: what it sends, or in our case what it is sent."""
    kind, _, codec = case["method"].partition(", ")
    others = len(case["links"]) - 1
    megabytes = sent_megabytes
    if kind == "ours":
        megabytes = others * payload_bytes(codec.removeprefix("down to "), case["million"] * 10**6) / 1e6
    return float(megabytes * 8 / min(case["links"]))


def churn(runs: list[dict[str, Any]]) -> str:
    def middle(key: str) -> float:
        return float(statistics.median(run[key] for run in runs))

    case, newcomer = runs[0]["case"], sorted(run["newcomer_rounds"] for run in runs)
    gone = f"{middle('gone'):.0f} ({middle('gone_share'):.2f})"
    last = f"{middle('last'):.0f} ({middle('last_share'):.2f})"
    return (
        f"Churn, {case['method']}, {len(case['links'])} peers, a synchronisation every {case['steps']} steps, median of"
        f" {len(runs)}: {middle('before'):.0f} samples/s before, {gone} while one of them is gone, {last} in the last"
        " 20 s; in brackets the share of what those alive did before. Of the rounds that closed after the newcomer's"
        f" first step, its first work is in number {', '.join(map(str, newcomer))}."
    )


if __name__ == "__main__":
    main()
