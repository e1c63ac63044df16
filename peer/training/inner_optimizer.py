"""AdamW of the inner steps: which parameters decay, and how its state is kept on disk.

The state belongs to the peer and outlives the rounds: when the weights are rewritten by the outer step, its moments
stay (DiLoCo, Douillard et al. 2023). It is allocated before the first step, so that what a micro-batch needs on top can
be measured. On disk it is one safetensors file. Losing it costs a few hundred steps of slower progress and nothing
else, therefore a file that does not fit is only warned about.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from configs.schema import Train
from peer.errors import CommonweightsError

FORMAT = "commonweights-adamw/1"
MOMENTS = ("exp_avg", "exp_avg_sq")

logger = logging.getLogger(__name__)


def build_optimizer(model: torch.nn.Module, train: Train) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; only matrices decay (embeddings are matrices, biases and norms are not)."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trainable if parameter.ndim >= 2], "weight_decay": train.weight_decay},
        {"params": [parameter for parameter in trainable if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in trainable)
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=train.learning_rate,
        betas=(train.beta1, train.beta2),
        eps=1e-8,
        fused=fused,
    )


def allocate_state(optimizer: torch.optim.Optimizer) -> None:
    """Zero moments for every parameter that has none yet: what AdamW would do in its first step."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if not optimizer.state[parameter]:
                step_device = parameter.device if group["fused"] else "cpu"
                optimizer.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32, device=step_device),
                    **{moment: torch.zeros_like(parameter, memory_format=torch.preserve_format) for moment in MOMENTS},
                }


def forget_direction(optimizer: torch.optim.Optimizer) -> None:
    """Zero the first moment, keep the second (the scale of every weight's gradient) and the step count."""
    for state in optimizer.state.values():
        state["exp_avg"].zero_()


def save_state(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, extra: dict[str, float]) -> None:
    """Write moments and step counts, atomically. `extra`: numbers that `load_state` gives back (the loss scale).

    Raises:
        CommonweightsError: the file cannot be written; an earlier one stays as it is.
    """
    allocate_state(optimizer)
    tensors: dict[str, torch.Tensor] = {}
    steps: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            state = optimizer.state[parameter]
            steps[name] = float(state["step"])
            tensors |= {f"{moment}.{name}": state[moment].detach().contiguous() for moment in MOMENTS}
    metadata = {"format": FORMAT, "steps": json.dumps(steps), "extra": json.dumps(extra)}
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial, metadata=metadata)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise CommonweightsError(
            f"{path}: the optimizer state cannot be written ({error}); free some space, or use another folder"
        ) from error


def load_state(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float] | None:
    """Read what `save_state` wrote, and return its `extra`; None when there is nothing usable, and nothing was changed.

    A missing file is silent (a first start); one that is damaged, of another model or not finite is warned about.
    """
    if not path.exists():
        return None
    try:
        return _load(path, model, optimizer)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s: not a usable optimizer state (%s); starting with a fresh one", path, error)
        return None


def _load(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise ValueError(f"its format is {metadata.get('format')!r}, not {FORMAT!r}")
        if set(file.keys()) != {f"{moment}.{name}" for name in trainable for moment in MOMENTS}:
            raise ValueError("it belongs to another model")
        for name, parameter in trainable.items():  # everything is checked before anything is changed
            for moment in MOMENTS:
                values = file.get_tensor(f"{moment}.{name}")
                if values.shape != parameter.shape or values.dtype != torch.float32:
                    raise ValueError(
                        f"{moment} of {name} is {values.dtype} {tuple(values.shape)}, not fp32 {tuple(parameter.shape)}"
                    )
                if not torch.isfinite(values).all() or (moment == "exp_avg_sq" and bool((values < 0).any())):
                    raise ValueError(f"{moment} of {name} has impossible values")
        steps = {name: float(json.loads(metadata["steps"])[name]) for name in trainable}
        extra = {str(key): float(value) for key, value in json.loads(metadata["extra"]).items()}
        allocate_state(optimizer)
        for name, parameter in trainable.items():
            state = optimizer.state[parameter]
            state["step"].fill_(steps[name])
            for moment in MOMENTS:
                state[moment].copy_(file.get_tensor(f"{moment}.{name}"))
    return extra
