"""One `accelerate.Accelerator` per trainer.

accelerate keeps device, precision and process group in process-wide dictionaries and refuses a second Accelerator with
another precision. A peer and an evaluator in one process may well differ, so each Accelerator gets dictionaries of its
own. Under `accelerate launch` or torchrun (several local GPUs as one peer) the process-wide state is the point, and is
left alone.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState

from peer.training.hardware import Precision

_creation = threading.Lock()
_MIXED_PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def launched_in_parallel() -> bool:
    """Whether a launcher started several processes that are to be one peer."""
    return "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def accelerated(
    module: torch.nn.Module,
    make_optimizer: Callable[[], torch.optim.Optimizer],
    device: torch.device,
    precision: Precision,
) -> tuple[Accelerator, torch.nn.Module, torch.optim.Optimizer]:
    """An Accelerator for one module; the module wrapped for autocast; its optimizer.

    The module is placed on `device`; under a launcher on the device that the launcher gave this process. The optimizer
    is made afterwards, and is returned bare: `accelerator.scaler`, when there is one, has to step it.
    """
    with _creation:
        if not launched_in_parallel():
            # Replaced, not cleared: older Accelerators go on with the dictionaries that they hold.
            PartialState._shared_state = {}
            AcceleratorState._shared_state = {}
        accelerator = Accelerator(
            device_placement=False, mixed_precision=_MIXED_PRECISION[precision], cpu=device.type == "cpu"
        )
        module.to(accelerator.device if launched_in_parallel() else device)
        # Several processes add up whole gradients themselves (ranks.py): no DistributedDataParallel around the model.
        wrapped: torch.nn.Module = accelerator.prepare_model(
            module, device_placement=False, evaluation_mode=launched_in_parallel()
        )
        optimizer = make_optimizer()
        # Prepared so that clipping knows whose gradients are scaled. The wrapper itself is left out of the loop: all it
        # does for us is to call the loss scaler, and it searches the disk for an optional package in every step.
        accelerator.prepare_optimizer(optimizer, device_placement=False)
    return accelerator, wrapped, optimizer
