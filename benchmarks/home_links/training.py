"""Real training over home links: held-out loss against wall time, side by side with what people use today.

    python -m benchmarks.home_links.training --dir runs/training --alternatives PYTHON [--seconds 240] [--write docs]

Four peers of unequal speed (4:2:1:1) on links of 20 Mbit/s, real steps at the pace of pretended devices. Needs root
(network namespaces). `--alternatives` as in `benchmarks.home_links`, with transformers besides. A finished run is kept
in the folder and not done again, so the program may be interrupted; who has the time gives it `--seconds 3600`. All
runs come first, their losses are computed afterwards.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.home_links import methods, training_report
from benchmarks.home_links.cell import Case, Start, check_alive, read_notes, started
from benchmarks.home_links.weights import kept
from benchmarks.home_links.workload import (
    LENGTH,
    LINKS,
    ROWS,
    ROWS_PER_SECOND,
    SLOWEST_STEP_SECONDS,
    SPEEDS,
    WARMUP_ROWS,
    Workload,
    config,
)
from tests import netns

START_SECONDS = 180.0
LATE_SECONDS = 0.02  # a step that ends so long after its device would have

Sharing = Literal["steps", "batches", "equal"]


@dataclass(frozen=True)
class Setting:
    """One run. `sharing`: peers take steps, or rows of a step, in proportion to their speed; or the same of both."""

    method: str
    learning_rate: float
    round_seconds: float  # of compute between two synchronisations
    outer: tuple[float, float] = (0.0, 0.0)  # learning rate and momentum of the outer step; (0, 0): there is none
    sharing: Sharing = "steps"
    codec: str = ""
    overlap: bool = True
    resets_momentum: bool = True  # of AdamW, after every outer step; ours only
    keep_unsent: float = 0.5  # of the error feedback, in the peer's own weights; ours only

    @property
    def file_name(self) -> str:
        ours = [self.codec, "overlap" if self.overlap else "waits", "reset" if self.resets_momentum else "keeps"]
        numbers = [self.learning_rate, self.round_seconds, *self.outer, *([self.keep_unsent] if self.codec else [])]
        parts = [self.method, *(ours if self.codec else [self.sharing]), *(f"{each:g}" for each in numbers)]
        return "_".join(parts).replace("/", "").replace(" ", "-")

    def steps(self, rank: int) -> int:
        """Of a peer between two synchronisations."""
        slowest = max(1, round(self.round_seconds / SLOWEST_STEP_SECONDS))
        return slowest * SPEEDS[rank] if self.sharing == "steps" else slowest

    def rows(self, rank: int) -> int:
        """Of a step."""
        return ROWS * SPEEDS[rank] if self.sharing == "batches" else ROWS

    def step_seconds(self, rank: int) -> float:
        return SLOWEST_STEP_SECONDS * self.rows(rank) / ROWS / SPEEDS[rank]

    def share(self, rank: int) -> float:
        """Of all rows, those of this peer."""
        each = [self.steps(one) * self.rows(one) for one in range(len(SPEEDS))]
        return each[rank] / sum(each)


OURS, DILOCO, OPTIMIZER, DDP = "ours", "DiLoCo on hivemind", "hivemind.Optimizer", "DDP gloo fp16"

SETTINGS = (
    Setting(OURS, 5e-4, 15.0, (1.2, 0.4), codec="sparse/8", resets_momentum=False, keep_unsent=1.0),
    Setting(OURS, 5e-4, 22.5, (1.0, 0.5), codec="lowbit2", resets_momentum=False, keep_unsent=1.0),
    Setting(DILOCO, 5e-4, 30.0, (0.9, 0.5)),
    Setting(DILOCO, 5e-4, 15.0, (0.9, 0.5)),
    Setting(DILOCO, 5e-4, 15.0, (0.9, 0.5), sharing="batches"),
    Setting(DILOCO, 5e-4, 30.0, (0.9, 0.5), sharing="equal"),
    Setting(DILOCO, 5e-4, 15.0, (0.9, 0.5), sharing="equal"),
    Setting(OPTIMIZER, 2e-3, 7.5),
    Setting(DDP, 2e-3, 7.5),
)


def starter(setting: Setting, workload: Workload, alternatives: Path | None) -> Start | None:
    """How a setting is run; None: its environment is not given."""

    def told(rank: int, folder: Path) -> dict[str, object]:
        return {
            "workload": str(workload.folder),
            "weights": str(folder / "weights"),
            "gate": str(folder / "gate"),
            "steps": setting.steps(rank),
            "rows": setting.rows(rank),
            "step_seconds": setting.step_seconds(rank),
            "share": setting.share(rank),
            "weight": setting.share(rank),
            "target_samples": sum(setting.steps(one) * setting.rows(one) for one in range(len(SPEEDS))),
            "learning_rate": setting.learning_rate,
            "warmup_rows": WARMUP_ROWS,
            "micro_batch": ROWS,
            "outer": setting.outer,
            "average_state_every": 10,
            "matchmaking_seconds": 30.0,  # as OpenDiLoCo waits for all; a full group goes ahead
            "bf16": workload.is_bf16,
        }

    if setting.method == OURS:
        text = config(
            setting.learning_rate,
            setting.round_seconds,
            setting.codec,
            setting.outer,
            setting.overlap,
            setting.resets_momentum,
            setting.keep_unsent,
        )
        return methods.swarm(lambda case: text, told)
    if alternatives is None:
        return None
    program = {DILOCO: "hivemind_diloco", OPTIMIZER: "hivemind_optimizer", DDP: "gloo"}[setting.method]
    return methods.foreign(program, alternatives, told, what="ddp")


def train(
    setting: Setting, start: Start, folder: Path, seconds: float, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Let it train for so long from the first step on; what came out, all but the loss."""
    with started(Case(setting.method, LINKS), start, folder) as (hosts, running):
        patience = time.monotonic() + START_SECONDS
        while (begun := _begun(running.notes[0])) is None:
            check_alive(running)
            if time.monotonic() > patience:
                raise TimeoutError(f"no step within {START_SECONDS:.0f} s")
            progress(f"{setting.file_name}: starting")
            time.sleep(0.5)
        while (passed := time.monotonic() - begun) < seconds:
            check_alive(running)
            progress(f"{setting.file_name}: {passed:.0f} of {seconds:.0f} s")
            time.sleep(1.0)
        ended = time.monotonic()
        sent = sum(host.sent_bytes() for host in hosts.peers) / len(hosts.peers)
    notes = [[note for note in read_notes(path) if begun <= note["at"] <= ended] for path in running.notes]
    steps = [note for each in notes for note in each if note["kind"] == "step"]
    rows = sum(note["rows"] for note in steps)
    return {
        "setting": asdict(setting),
        "seconds": ended - begun,
        "begun": begun,
        "tokens": rows * LENGTH,
        "utilisation": rows / (ended - begun) / ROWS_PER_SECOND,
        "updates": sum(note["kind"] == "update" for note in notes[0]),
        "sent_megabytes": sent / 1e6,
        "late_steps": sum(note["behind"] > LATE_SECONDS for note in steps) / max(1, len(steps)),
        "stretch": sum(note["took"] for note in steps) / max(1e-9, sum(note["seconds"] for note in steps)),
        "events": sorted({note["text"] for each in notes for note in each if note["kind"] == "event"})[:8],
    }


def _begun(notes: Path) -> float | None:
    return next((note["at"] for note in read_notes(notes) if note["kind"] == "go"), None)


def measure(folder: Path, workload: Workload) -> None:
    """Add the held-out losses to a run, `curve`: seconds since the first step, nats per byte; and drop its weights."""
    result = json.loads((folder / "run.json").read_text())
    if "curve" in result:
        return
    points = [(0.0, workload.loss(workload.folder / "initial.npy"))]
    for at, path in kept(folder / "weights"):
        if 0.0 < at - result["begun"] <= result["seconds"]:
            points.append((at - result["begun"], workload.loss(path)))
    (folder / "run.json").write_text(json.dumps({**result, "curve": points}))
    shutil.rmtree(folder / "weights")


def show(text: str) -> None:
    print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True, help="where runs are kept")
    parser.add_argument("--alternatives", type=Path, help="python of the environment that the other methods run in")
    parser.add_argument("--seconds", type=float, default=240.0, help="of training, per run")
    parser.add_argument("--only", action="append", help="a part of a run's file name; may be given several times")
    parser.add_argument("--runs-only", action="store_true", help="leave the losses to a later call")
    parser.add_argument("--write", type=Path, help="the folder of performance.md and training.svg")
    arguments = parser.parse_args()
    if reason := netns.missing():
        sys.exit(f"cannot build hosts here: {reason}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an ordered end: hosts and processes go with it
    workload = Workload(arguments.dir)
    for setting in SETTINGS:
        folder: Path = arguments.dir / f"{arguments.seconds:g}s_{setting.file_name}"
        start = starter(setting, workload, arguments.alternatives)
        wanted = not arguments.only or any(part in folder.name for part in arguments.only)
        if start is None or not wanted or (folder / "run.json").exists():
            continue
        shutil.rmtree(folder, ignore_errors=True)
        try:
            result = train(setting, start, folder, arguments.seconds, show)
        except (RuntimeError, TimeoutError) as error:
            print(f"\n{folder.name}: {error}; logs in {folder}", file=sys.stderr)
            continue
        (folder / "run.json").write_text(json.dumps(result))
        print(f"\n{folder.name}: {result}", flush=True)
    if arguments.runs_only:
        return
    torch.set_num_threads(2)
    folders = sorted(path.parent for path in arguments.dir.glob(f"{arguments.seconds:g}s_*/run.json"))
    for folder in folders:
        measure(folder, workload)
    results = [json.loads((folder / "run.json").read_text()) for folder in folders]
    (arguments.dir / "results.jsonl").write_text("".join(json.dumps(each) + "\n" for each in results))
    training_report.report(results, workload.parameters, arguments.write)


if __name__ == "__main__":
    main()
