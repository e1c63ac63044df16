"""The table of docs/performance.md, from what the cells left: `python -m benchmarks.home_links.report RESULTS`."""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

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
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in arguments.results.read_text().splitlines()]
    text = cells([row for row in rows if "utilisation" in row])
    churns = [row for row in rows if "gone_share" in row]
    if churns:
        text += "\n" + "\n".join(map(churn, churns)) + "\n"
    print(text)
    if arguments.write:
        write_between_markers(arguments.write, text, "links")


def cells(rows: list[dict[str, Any]]) -> str:
    """One line per case, medians of its runs; those of equal links and steps together."""
    cases: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        case = row["case"]
        links = tuple(sorted(case["links"], reverse=True))
        key = (case["million"], len(links), links, -case["steps"], case["method"])
        cases.setdefault(key, []).append(row)
    return table(HEADING, [line(runs) for _, runs in sorted(cases.items(), key=lambda item: item[0][:4])])


def line(runs: list[dict[str, Any]]) -> tuple[str, ...]:
    def middle(key: str) -> float:
        return float(statistics.median(run[key] for run in runs))

    case = runs[0]["case"]
    rates = "/".join(f"{rate:g}" for rate in sorted(set(case["links"]), reverse=True))
    mean = statistics.median(statistics.mean(run["utilisation"]) for run in runs)
    least = statistics.median(min(run["utilisation"]) for run in runs)
    exchange = middle("exchange_seconds")
    return (
        f"{case['million']}M, {len(case['links'])}, {rates}",
        f"{case['steps']} ({case['steps'] * case['step_seconds']:g} s)",
        case["method"],
        f"{len(runs)}",
        f"**{mean:.3f}** ({least:.3f})",
        f"{middle('update_seconds'):.1f}",
        "" if math.isnan(exchange) else f"{exchange:.1f}",
        f"{needed_seconds(case, middle('sent_megabytes')):.1f}",
        f"{middle('sent_megabytes'):.1f}",
        f"{middle('cores'):.2f}",
        f"{middle('memory_megabytes'):.0f}",
    )


def needed_seconds(case: dict[str, Any], sent_megabytes: float) -> float:
    """What the slowest link needs for the bytes of one update: what it sends, or in our case what it is sent."""
    kind, _, codec = case["method"].partition(", ")
    others = len(case["links"]) - 1
    megabytes = sent_megabytes
    if kind == "ours":
        megabytes = others * payload_bytes(codec.removeprefix("down to "), case["million"] * 10**6) / 1e6
    return float(megabytes * 8 / min(case["links"]))


def churn(row: dict[str, Any]) -> str:
    case = row["case"]
    gone, last = f"{row['gone']:.0f} ({row['gone_share']:.2f})", f"{row['last']:.0f} ({row['last_share']:.2f})"
    return (
        f"Churn, {case['method']}, {len(case['links'])} peers, a synchronisation every {case['steps']} steps:"
        f" {row['before']:.0f} samples/s before, {gone} while one of them is gone, {last} in the last 20 s; in brackets"
        " the share of what those alive did before. The newcomer's first work is in round"
        f" {row['newcomer_rounds']} of those that closed after its first step."
    )


if __name__ == "__main__":
    main()
