"""DiLoCo on hivemind's averager, as OpenDiLoCo does it: inner steps, then everybody averages 8-bit pseudo-gradients."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from hivemind.averaging import DecentralizedAverager

from benchmarks.home_links.device import Notes
from benchmarks.home_links.devices import device_of
from benchmarks.home_links.hivemind_optimizer import EIGHT_BIT, MATCHMAKING_SECONDS, meet


def main() -> None:
    plan = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    notes = Notes(Path(plan["notes"]))
    device = device_of(plan, notes)
    learning_rate, momentum = plan.get("outer", (0.7, 0.9))
    anchor = [parameter.detach().clone() for parameter in device.model.parameters()]
    outer_parameters = [torch.nn.Parameter(each.clone()) for each in anchor]
    outer = torch.optim.SGD(outer_parameters, lr=learning_rate, momentum=momentum, nesterov=momentum > 0)
    patience = plan.get("matchmaking_seconds", MATCHMAKING_SECONDS)
    averager = DecentralizedAverager(
        [torch.zeros_like(each) for each in anchor],
        meet(plan),
        prefix="links",
        target_group_size=plan["peers"],
        min_matchmaking_time=patience,
        request_timeout=MATCHMAKING_SECONDS / 2,
        allreduce_timeout=60,
        sender_timeout=30,
        reducer_timeout=60,
        compression=EIGHT_BIT,
        bandwidth=plan["links"][plan["rank"]],
        start=True,
    )
    round_ = 0
    while True:
        for _ in range(plan["steps"]):
            device.train()
        notes.add("closing", round=round_)
        with torch.no_grad(), averager.get_tensors() as averaged:
            for target, parameter, start in zip(averaged, device.model.parameters(), outer_parameters, strict=True):
                target.copy_(start - parameter)
        try:
            gathered = averager.step(timeout=90, allow_retries=True, weight=plan.get("weight", 1.0))
            if len(gathered or ()) < plan["peers"]:
                notes.add("event", text=f"averaged among {len(gathered or ())} of {plan['peers']}")
        except Exception as error:
            notes.add("event", text=f"averaging failed: {type(error).__name__}")
        with averager.get_tensors() as averaged:
            for parameter, gradient in zip(outer_parameters, averaged, strict=True):
                parameter.grad = gradient.clone()
        outer.step()
        with torch.no_grad():
            for parameter, start in zip(device.model.parameters(), outer_parameters, strict=True):
                parameter.copy_(start)
        round_ += 1
        device.updated(round_)


if __name__ == "__main__":
    main()
