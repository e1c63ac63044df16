"""Training over home links, side by side with what people use today: hosts with shaped links, one table.

    python -m benchmarks.home_links --dir runs/home-links --table 3 --alternatives PYTHON   # all of docs/performance.md
    python -m benchmarks.home_links --dir runs/home-links --only "ours, lowbit2" [--links 100,100,100,100] [--steps 32]

Needs root (network namespaces). `--alternatives PYTHON` names the interpreter of an environment with hivemind 1.1.12,
numpy 2.3 and torch, in which the others run; without it only this project does. What has been measured is in
DIR/results.jsonl; the table goes on from there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.home_links import methods
from benchmarks.home_links.cell import Case, Start, measured
from benchmarks.home_links.churn import churned
from benchmarks.home_links.device import STEP_SECONDS
from tests import netns

OTHERS = ("hivemind.Optimizer", "DiLoCo on hivemind", "DDP gloo fp16", "DiLoCo gloo")
UNEQUAL = (1000.0, 100.0, 50.0, 20.0)


def table() -> Iterator[tuple[Case, bool]]:
    """The cases of docs/performance.md, and whether each is measured more than once."""
    four, eight, slow = (100.0,) * 4, (100.0,) * 8, (20.0,)
    for method in ("ours, lowbit2", *OTHERS):
        yield Case(method, four), method.startswith("ours")
    for method in ("ours, lowbit2", *OTHERS):
        yield Case(method, UNEQUAL), method.startswith("ours")
    for method in ("ours, lowbit2", "ours, sparse/16", "ours, sparse/64", "hivemind.Optimizer"):
        yield Case(method, eight), method.startswith("ours")
    for peers in (4, 8):
        yield Case("ours, sparse/16", slow * peers), True
    for method in ("ours, sparse/16", "DiLoCo on hivemind", "DDP gloo fp16", "hivemind.Optimizer"):
        yield Case(method, four, steps=4), method in ("ours, sparse/16", "DiLoCo on hivemind")
    yield Case("ours, sparse/16", four, steps=16, churn=True), True


def starts(alternatives: Path | None) -> dict[str, Start]:
    found = {f"ours, {codec}": methods.ours(codec) for codec in ("lowbit2", "sparse/16", "sparse/64")}
    found["ours, down to sparse/64"] = methods.ours("lowbit2", "sparse/64")
    if alternatives:
        found["hivemind.Optimizer"] = methods.foreign("hivemind_optimizer", alternatives)
        found["DiLoCo on hivemind"] = methods.foreign("hivemind_diloco", alternatives)
        found["DDP gloo fp16"] = methods.foreign("gloo", alternatives, what="ddp")
        found["DiLoCo gloo"] = methods.foreign("gloo", alternatives, what="diloco")
    return found


def show(text: str) -> None:
    print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def run(case: Case, start: Start, directory: Path) -> None:
    """Measure one cell and add it to the results. One that fails leaves its folder; peers keep gigabytes."""
    folder = directory / f"{time.time():.0f}"
    try:
        result = (churned if case.churn else measured)(case, start, folder, show)
    except (RuntimeError, TimeoutError) as error:
        print(f"\n{case.name}: {error}; logs in {folder}", file=sys.stderr)
        return
    with (directory / "results.jsonl").open("a") as file:
        file.write(result.to_json() + "\n")
    if not (directory / "data").exists() and (folder / "coordinator/data").exists():
        shutil.copytree(folder / "coordinator/data", directory / "data")
    shutil.rmtree(folder)
    print(f"\n{case.name}: {result}")


def done(case: Case, directory: Path) -> int:
    """How often this case has been measured."""
    results = directory / "results.jsonl"
    wanted = json.loads(case.to_json())
    lines = results.read_text().splitlines() if results.exists() else []
    return sum(json.loads(line)["case"] == wanted for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dir", type=Path, required=True, help="results.jsonl, which is added to, and the logs of cells that failed"
    )
    parser.add_argument("--alternatives", type=Path, help="python of the environment that the other methods run in")
    parser.add_argument("--table", type=int, help="every case of docs/performance.md, until it was run so often")
    parser.add_argument("--only", action="append", help="a method; may be given several times")
    parser.add_argument("--links", default="100,100,100,100", help="Mbit/s of each peer")
    parser.add_argument("--uplinks", help="Mbit/s up of each peer, where that is less than its link; then uncapped")
    parser.add_argument("--steps", type=int, default=32, help="between two synchronisations")
    parser.add_argument("--seconds", type=float, default=Case.seconds, help="measured per cell")
    parser.add_argument(
        "--million", type=int, choices=list(methods.WIDTHS), default=10, help="parameters, of ours only"
    )
    parser.add_argument("--step-seconds", type=float, default=STEP_SECONDS, help="that a step takes, of ours only")
    parser.add_argument("--churn", action="store_true", help="kill a peer in the middle, and let a new one come")
    arguments = parser.parse_args()
    if reason := netns.missing():
        sys.exit(f"cannot build hosts here: {reason}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an ordered end: hosts and processes go with it
    known = starts(arguments.alternatives)
    if unknown := set(arguments.only or ()) - set(known):
        sys.exit(f"no method is called {', '.join(sorted(unknown))}: choose among {', '.join(known)}")
    wanted = arguments.only or list(known)
    if arguments.table:
        for repeat in range(arguments.table):
            for case, again in table():
                if case.method in wanted and done(case, arguments.dir) <= repeat and (again or not repeat):
                    run(case, known[case.method], arguments.dir)
        return
    links, uplinks = (
        tuple(float(rate) for rate in text.split(","))
        for text in (arguments.links, arguments.uplinks or arguments.links)
    )
    for method in wanted:
        if (arguments.million, arguments.step_seconds) == (10, STEP_SECONDS) or method.startswith("ours"):
            case = Case(
                method, links, arguments.steps, arguments.seconds, arguments.million, uplinks,
                arguments.step_seconds, arguments.churn,
            )  # fmt: skip
            run(case, known[method], arguments.dir)


if __name__ == "__main__":
    main()
