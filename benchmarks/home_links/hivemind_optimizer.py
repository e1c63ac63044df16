"""hivemind.Optimizer as its users run it over slow links: 8-bit gradients, everything delayed, short matchmaking."""

from __future__ import annotations

import functools
import json
import sys
import time
from pathlib import Path
from typing import Any

import hivemind
import torch
from hivemind.compression import Float16Compression, SizeAdaptiveCompression, Uniform8BitQuantization

from benchmarks.home_links.device import SAMPLES_PER_STEP, Device, Model, Notes

MATCHMAKING_SECONDS = 5.0
EIGHT_BIT = SizeAdaptiveCompression(
    threshold=2**16 + 1, less=Float16Compression(), greater_equal=Uniform8BitQuantization()
)


def meet(plan: dict[str, Any]) -> hivemind.DHT:
    """One DHT; the first peer writes down where it is."""
    meeting, address = Path(plan["meeting"]), plan["addresses"][plan["rank"]]
    initial = []
    if plan["rank"]:
        while not meeting.exists() or not meeting.read_text().endswith("\n"):
            time.sleep(0.1)
        initial = meeting.read_text().split()
    dht = hivemind.DHT(
        initial_peers=initial, start=True, host_maddrs=[f"/ip4/{address}/tcp/0"], startup_timeout=60, use_ipfs=False
    )
    if not plan["rank"]:
        meeting.write_text("\n".join(map(str, dht.get_visible_maddrs())) + "\n")
    return dht


def main() -> None:
    plan = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    notes, model = Notes(Path(plan["notes"])), Model()
    device = Device(model.parameters(), plan["rank"], notes)
    optimizer = hivemind.Optimizer(
        dht=meet(plan),
        run_id="links",
        params=model.parameters(),
        optimizer=functools.partial(torch.optim.AdamW, lr=1e-4),
        batch_size_per_step=SAMPLES_PER_STEP,
        target_batch_size=SAMPLES_PER_STEP * plan["steps"] * plan["peers"],
        matchmaking_time=MATCHMAKING_SECONDS,
        averaging_timeout=60,
        offload_optimizer=True,
        delay_optimizer_step=True,
        delay_grad_averaging=True,
        average_state_every=1000,  # never within a cell: it would only cost
        grad_compression=EIGHT_BIT,
        state_averaging_compression=EIGHT_BIT,
        averager_opts={"bandwidth": plan["links"][plan["rank"]], "request_timeout": MATCHMAKING_SECONDS / 2},
        tracker_opts={"min_refresh_period": 0.5, "default_refresh_period": 1},
        verbose=False,
    )
    epoch = optimizer.local_epoch
    while True:
        device.differentiate()
        optimizer.step()
        optimizer.zero_grad()
        if optimizer.local_epoch != epoch:
            epoch = optimizer.local_epoch
            notes.add("update", round=epoch)


if __name__ == "__main__":
    main()
