"""torch.distributed over gloo: DDP with the fp16 hook and gradient accumulation, or DiLoCo in fp32."""

from __future__ import annotations

import datetime
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from benchmarks.home_links.device import Device, Notes
from benchmarks.home_links.devices import device_of

if TYPE_CHECKING:
    from benchmarks.home_links.student import Student

PORT = 29500


def join(plan: dict[str, Any]) -> None:
    interface = next(name for name in os.listdir("/sys/class/net") if name != "lo")
    os.environ.update(GLOO_SOCKET_IFNAME=interface, MASTER_ADDR=plan["addresses"][0], MASTER_PORT=str(PORT))
    dist.init_process_group(
        "gloo", rank=plan["rank"], world_size=plan["peers"], timeout=datetime.timedelta(seconds=120)
    )


def ddp(plan: dict[str, Any], device: Device | Student, notes: Notes) -> None:
    """Gradients of `steps` steps add up locally; then one all-reduce of what the fp16 hook would send."""
    model, weight = device.model, plan.get("weight", 1 / plan["peers"]) / plan["steps"]
    optimizer = device.optimizer(device.groups())
    peak = [group["lr"] for group in optimizer.param_groups]
    round_ = 0
    while True:
        for _ in range(plan["steps"]):
            device.differentiate()
        notes.add("closing", round=round_)
        bucket = torch.cat([parameter.grad.reshape(-1) for parameter in model.parameters()]).half()  # type: ignore[union-attr]
        bucket *= weight
        dist.all_reduce(bucket)
        start = 0
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad.copy_(bucket[start : start + parameter.numel()].view(parameter.shape))
            start += parameter.numel()
        for group, rate in zip(optimizer.param_groups, peak, strict=True):
            group["lr"] = rate * device.warm(round_ * plan.get("target_samples", 0))
        optimizer.step()
        optimizer.zero_grad()
        round_ += 1
        device.updated(round_)


def diloco(plan: dict[str, Any], device: Device | Student, notes: Notes) -> None:
    model = device.model
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
        device.updated(round_)


def main() -> None:
    plan = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    notes = Notes(Path(plan["notes"]))
    device = device_of(plan, notes)
    join(plan)
    {"ddp": ddp, "diloco": diloco}[plan["what"]](plan, device, notes)


if __name__ == "__main__":
    main()
