"""One peer of this project on the pretended device: everything but the compute is what `commonweights join` runs."""

from __future__ import annotations

import asyncio
import functools
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.home_links.device import Device, Notes
from peer.join import JoinOptions, joined
from peer.manners.settings import overrides
from peer.node import Node
from peer.runner import Stop, run
from peer.ticket import Ticket
from peer.training.trainer import StepResult

LOOK_SECONDS = 0.05


async def watch(node: Node, notes: Notes) -> None:
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


def pretended(device: Device, step_seconds: float, batch: Any, tokens_before: int) -> StepResult:
    device.train()
    return StepResult(3.0, int(batch.size), step_seconds, 1.0, 1e-3, False)


async def live(ticket: Path, folder: Path, seed: int, upload_mbit: float, step_seconds: float, stop: Stop) -> None:
    notes = Notes(folder / "notes.jsonl")
    wishes = overrides(always=True, network_upload_mbit=upload_mbit)
    options = JoinOptions(folder, name=folder.name, device="cpu", overrides=wishes)
    async with joined(Ticket.parse(ticket.read_text()), options, lambda text: notes.add("event", text=text)) as node:
        trainer = node.contributor.trainer
        device = Device(trainer.model.parameters(), seed, notes, step_seconds)
        trainer.step = functools.partial(pretended, device, step_seconds)  # type: ignore[method-assign]
        stop.on_request = node.stop
        watching = asyncio.create_task(watch(node, notes))
        try:
            await node.run()
        finally:
            watching.cancel()


def main() -> None:
    ticket, folder, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    upload_mbit, step_seconds = float(sys.argv[4]), float(sys.argv[5])
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    run(lambda stop: live(ticket, folder, seed, upload_mbit, step_seconds, stop))


if __name__ == "__main__":
    main()
