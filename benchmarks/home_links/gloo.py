"""torch.distributed over gloo: DDP with the fp16 hook and gradient accumulation, or DiLoCo in fp32."""

from __future__ import annotations

import datetime
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.home_links.device import Device, Model, Notes

PORT = 29500


def join(plan: dict[str, Any]) -> None:
    interface = next(name for name in os.listdir("/sys/class/net") if name != "lo")
    os.environ.update(GLOO_SOCKET_IFNAME=interface, MASTER_ADDR=plan["addresses"][0], MASTER_PORT=str(PORT))
    dist.init_process_group(
        "gloo", rank=plan["rank"], world_size=plan["peers"], timeout=datetime.timedelta(seconds=120)
    )


def ddp(plan: dict[str, Any], device: Device, model: Model, notes: Notes) -> None:
    """Gradients of `steps` steps add up locally; then one all-reduce of what the fp16 hook would send."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    round_ = 0
    while True:
        for _ in range(plan["steps"]):
            device.differentiate()
        notes.add("closing", round=round_)
        bucket = torch.cat([parameter.grad.reshape(-1) for parameter in model.parameters()]).half()  # type: ignore[union-attr]
        bucket /= plan["peers"]
        dist.all_reduce(bucket)
        start = 0
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad.copy_(bucket[start : start + parameter.numel()].view(parameter.shape))
            start += parameter.numel()
        optimizer.step()
        optimizer.zero_grad()
        round_ += 1
        notes.add("update", round=round_)


def diloco(plan: dict[str, Any], device: Device, model: Model, notes: Notes) -> None:
    anchor = torch.nn.Parameter(torch.cat([each.detach().reshape(-1) for each in model.parameters()]))
    outer = torch.optim.SGD([anchor], lr=0.7, momentum=0.9, nesterov=True)
    round_ = 0
    while True:
        for _ in range(plan["steps"]):
            device.train()
        notes.add("closing", round=round_)
        delta = anchor.detach() - torch.cat([each.detach().reshape(-1) for each in model.parameters()])
        dist.all_reduce(delta)
        anchor.grad = delta / plan["peers"]
        outer.step()
        with torch.no_grad():
            start = 0
            for parameter in model.parameters():
                parameter.copy_(anchor[start : start + parameter.numel()].view(parameter.shape))
                start += parameter.numel()
        round_ += 1
        notes.add("update", round=round_)


def main() -> None:
    plan = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    notes, model = Notes(Path(plan["notes"])), Model()
    device = Device(model.parameters(), plan["rank"], notes)
    join(plan)
    {"ddp": ddp, "diloco": diloco}[plan["what"]](plan, device, model, notes)


if __name__ == "__main__":
    main()
