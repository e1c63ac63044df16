"""Training over home links, side by side with what people use today: one command, hosts with shaped links, one table.

    python -m benchmarks.home_links --dir runs/home-links [--only ours] [--links 100,100,100,100] [--steps 32]

Needs root (network namespaces). `--alternatives PYTHON` names the interpreter of an environment with hivemind 1.1.12,
numpy 2.3 and torch, in which the others run; without it only this project does.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

from benchmarks.home_links import methods
from benchmarks.home_links.cell import Case, Start, measured
from benchmarks.home_links.churn import churned
from tests import netns


def starts(alternatives: Path | None) -> dict[str, Start]:
    found = {
        "ours": methods.ours("lowbit2"),
        "ours, sparse/64": methods.ours("sparse/64"),
        "ours, down to sparse/64": methods.ours("lowbit2", "sparse/64"),
    }
    if alternatives:
        found["hivemind.Optimizer"] = methods.foreign("hivemind_optimizer", alternatives)
        found["DiLoCo on hivemind"] = methods.foreign("hivemind_diloco", alternatives)
        found["DDP gloo fp16"] = methods.foreign("gloo", alternatives, what="ddp")
        found["DiLoCo gloo"] = methods.foreign("gloo", alternatives, what="diloco")
    return found


def show(text: str) -> None:
    print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True, help="logs and results; results.jsonl is added to")
    parser.add_argument("--alternatives", type=Path, help="python of the environment that the other methods run in")
    parser.add_argument("--only", action="append", help="a method; may be given several times")
    parser.add_argument("--links", default="100,100,100,100", help="Mbit/s of each peer")
    parser.add_argument("--uplinks", help="Mbit/s up of each peer, where that is less than its link; then uncapped")
    parser.add_argument("--steps", type=int, default=32, help="between two synchronisations")
    parser.add_argument("--seconds", type=float, default=70.0, help="measured per cell")
    parser.add_argument(
        "--million", type=int, choices=list(methods.WIDTHS), default=10, help="parameters; the other methods have ten"
    )
    parser.add_argument("--churn", action="store_true", help="kill a peer in the middle, and let a new one come")
    arguments = parser.parse_args()
    if reason := netns.missing():
        sys.exit(f"cannot build hosts here: {reason}")
    links, uplinks = (
        tuple(float(rate) for rate in text.split(","))
        for text in (arguments.links, arguments.uplinks or arguments.links)
    )
    for name, start in starts(arguments.alternatives).items():
        if (arguments.only and name not in arguments.only) or (arguments.million != 10 and "ours" not in name):
            continue
        case = Case(name, links, arguments.steps, arguments.seconds, arguments.million, uplinks)
        folder = arguments.dir / f"{time.time():.0f}"
        try:
            result = (churned if arguments.churn else measured)(case, start, folder, show)
        except (RuntimeError, TimeoutError) as error:
            print(f"\n{case.name}: {error}; logs in {folder}", file=sys.stderr)
            continue
        with (arguments.dir / "results.jsonl").open("a") as file:
            file.write(result.to_json() + "\n")
        if not (arguments.dir / "data").exists() and (folder / "coordinator/data").exists():
            shutil.copytree(folder / "coordinator/data", arguments.dir / "data")
        print(f"\n{case.name}: {result}")


if __name__ == "__main__":
    main()
