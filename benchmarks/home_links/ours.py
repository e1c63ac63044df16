"""One peer of this project on a device of the benchmark: all but the device is what `commonweights join` runs."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.home_links.device import Device, Notes
from benchmarks.home_links.pace import Gate, Paced
from benchmarks.home_links.weights import Keeper
from peer.join import JoinOptions, joined
from peer.manners.settings import overrides
from peer.node import Node
from peer.runner import Stop, run
from peer.ticket import Ticket
from peer.training.trainer import Rows, StepResult, Trainer

LOOK_SECONDS = 0.05

Step = Callable[[Rows, int], StepResult]


async def watch(node: Node, notes: Notes, updated: Callable[[], None]) -> None:
    """Note when a round is called to its close, and when its outcome is in the weights."""
    round_, closing, phase = node.replica.state.round, False, ""
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        if node.link.view.closing and not closing:
            notes.add("closing", round=node.replica.state.round + 1)
        closing = node.link.view.closing
        if node.phase != phase:
            phase = node.phase
            notes.add("phase", phase=phase)
        if node.replica.state.round != round_:
            round_ = node.replica.state.round
            notes.add("update", round=round_, merged=node.contributor.merged_rounds)
            updated()


def pretended(trainer: Trainer, plan: dict[str, Any], notes: Notes) -> Step:
    device = Device(trainer.model, plan["rank"], notes, plan["step_seconds"])

    def step(rows: Rows, tokens_before: int) -> StepResult:
        device.train()
        return StepResult(
            3.0, rows.size if isinstance(rows, np.ndarray) else rows.numel(), plan["step_seconds"], 1.0, 1e-3, False
        )

    return step


def paced(trainer: Trainer, plan: dict[str, Any], notes: Notes) -> Step:
    """The trainer's own steps, as slow as this peer's device."""
    real, pace = trainer.step, Paced(Gate(Path(plan["gate"]), str(plan["rank"]), plan["peers"]), notes)

    def step(rows: Rows, tokens_before: int) -> StepResult:
        result = pace(lambda: real(rows, tokens_before), plan["step_seconds"], len(rows))
        return dataclasses.replace(result, seconds=plan["step_seconds"])

    return step


async def live(plan: dict[str, Any], folder: Path, stop: Stop) -> None:
    notes = Notes(folder / "notes.jsonl")
    wishes = overrides(always=True, network_upload_mbit=plan["upload_mbit"])
    options = JoinOptions(folder, name=folder.name, device="cpu", overrides=wishes)
    ticket = Ticket.parse(Path(plan["ticket"]).read_text())
    keeper = Keeper(Path(plan["weights"])) if plan.get("weights") and plan["rank"] == 0 else None
    async with joined(ticket, options, lambda text: notes.add("event", text=text)) as node:
        trainer, keeping = node.contributor.trainer, set[asyncio.Task[None]]()
        trainer.step = (paced if "gate" in plan else pretended)(trainer, plan, notes)  # type: ignore[method-assign, assignment]

        def updated() -> None:
            if keeper is not None and keeper.is_due():  # copied at once: the next record will move it
                theta = node.replica.state.theta.numpy().copy()
                keeping.add(asyncio.create_task(asyncio.to_thread(keeper.keep, theta, time.monotonic())))

        stop.on_request = node.stop
        watching = asyncio.create_task(watch(node, notes, updated))
        try:
            await node.run()
        finally:
            watching.cancel()
            await asyncio.gather(*keeping)


def main() -> None:
    plan = json.loads(sys.argv[1])
    folder = Path(plan["folder"])
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    run(lambda stop: live(plan, folder, stop))


if __name__ == "__main__":
    main()
