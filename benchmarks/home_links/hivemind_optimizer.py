"""hivemind.Optimizer as its users run it over slow links: 8-bit gradients, everything delayed, short matchmaking."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import hivemind
import torch
from hivemind.compression import Float16Compression, SizeAdaptiveCompression, Uniform8BitQuantization

from benchmarks.home_links.device import Notes
from benchmarks.home_links.devices import device_of

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
    notes = Notes(Path(plan["notes"]))
    device = device_of(plan, notes)
    target = plan.get("target_samples", device.samples * plan["steps"] * plan["peers"])
    optimizer = hivemind.Optimizer(
        dht=meet(plan),
        run_id="links",
        params=device.groups(),
        optimizer=device.optimizer,
        scheduler=lambda inner: torch.optim.lr_scheduler.LambdaLR(inner, lambda epoch: device.warm(epoch * target)),
        batch_size_per_step=device.samples,
        target_batch_size=target,
        matchmaking_time=MATCHMAKING_SECONDS,
        averaging_timeout=60,
        offload_optimizer=True,
        delay_optimizer_step=True,
        delay_grad_averaging=True,
        average_state_every=plan.get("average_state_every", 1000),  # never within a cell: it would only cost
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
            device.updated(epoch)


if __name__ == "__main__":
    main()
