"""The machine that a peer trains on: which device, how much memory, how many threads, which precision.

Everything here is a question to torch or the operating system; nothing is changed. `torch.set_num_threads` is left to
the program's entry point, because it is a setting of the whole process.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import torch

from peer.errors import UsageError

Precision = Literal["fp32", "bf16", "fp16"]
GIB = 1 << 30


@dataclass(frozen=True)
class Hardware:
    device: torch.device
    description: str  # for people: "NVIDIA GeForce RTX 3090, 24 GB" or "CPU, 8 cores"
    memory_bytes: int  # of the device; on CPU and Apple GPUs the machine's memory
    uuid: str | None = None  # of an NVIDIA GPU


def choose_hardware(name: str = "auto") -> Hardware:
    """The device for "auto", "cpu", "cuda", "cuda:N" or "mps"; "auto" takes the best there is.

    ROCm builds of torch call AMD GPUs "cuda" too.

    Raises:
        UsageError: no such device here, or not a device's name.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, colon, number = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (colon and not (kind == "cuda" and number.isdecimal())):
        raise UsageError(f"--device {name}: not a device; use auto, cpu, cuda, cuda:0 or mps")
    if kind == "cuda":
        return _cuda(name, int(number or 0))
    if kind == "mps":
        if not torch.backends.mps.is_available():
            raise UsageError("--device mps: no Apple GPU found; use --device cpu, or run `commonweights doctor`")
        return Hardware(
            torch.device("mps"), f"Apple GPU, {_gigabytes(memory_limit_bytes())} shared", memory_limit_bytes()
        )
    cores = usable_cores()
    return Hardware(torch.device("cpu"), f"CPU, {cores} core{'s' if cores != 1 else ''}", memory_limit_bytes())


def _cuda(name: str, index: int) -> Hardware:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise UsageError(f"--device {name}: no CUDA device found; use --device cpu, or run `commonweights doctor`")
    if index >= count:
        found = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise UsageError(f"--device {name}: no such CUDA device; found: {found}")
    properties = torch.cuda.get_device_properties(index)
    return Hardware(
        torch.device("cuda", index),
        f"{properties.name}, {_gigabytes(properties.total_memory)}",
        properties.total_memory,
        str(uuid) if (uuid := getattr(properties, "uuid", None)) else None,  # ROCm and old builds have none
    )


def device_count(hardware: Hardware) -> int:
    """How many devices of its kind this machine has."""
    return torch.cuda.device_count() if hardware.device.type == "cuda" else 1


def limit_memory(hardware: Hardware, memory_bytes: int) -> None:
    """Let this process take no more of a GPU's memory; what does not fit then is out of memory, and is dealt with as
    that. A CPU's memory is not limited."""
    share = min(1.0, memory_bytes / hardware.memory_bytes)
    if hardware.device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(share, hardware.device)
    elif hardware.device.type == "mps":
        torch.mps.set_per_process_memory_fraction(share)


def choose_precision(wanted: str, device: torch.device) -> Precision:
    """What the forward pass runs in: the run's `train.precision` as far as this device gains by it.

    "auto" is bf16 where a GPU computes in it, fp16 (with loss scaling) on GPUs with fp16 matrix units but no bf16
    (Volta, Turing), fp32 elsewhere: older GPUs are slower in fp16, and on Apple GPUs it gains little. On a CPU without
    bf16 instructions bf16 is ten times slower than fp32, so there even a run that fixes bf16 is joined in fp32. Weights
    and optimizer are fp32 in every case, so peers of one run may differ here.
    """
    if device.type == "cuda":
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        fp16 = torch.cuda.get_device_capability(device) >= (7, 0)
        best: Precision = "bf16" if bf16 else "fp16" if fp16 else "fp32"
        if wanted == "auto" or (wanted == "bf16" and not bf16):
            return best
        return "fp16" if wanted == "fp16" else "bf16" if wanted == "bf16" else "fp32"
    if wanted == "bf16" and (device.type != "cpu" or _cpu_computes_bf16(Path("/proc/cpuinfo"))):
        return "bf16"
    return "fp16" if wanted == "fp16" and device.type == "mps" else "fp32"


def _cpu_computes_bf16(cpuinfo: Path) -> bool:
    """Whether the processor lists bf16 instructions (x86: avx512_bf16, amx_bf16; ARM: bf16)."""
    try:
        words = set(cpuinfo.read_text().split())
    except OSError:
        return False
    return not words.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})


def choose_threads(processes: int = 1) -> int:
    """Threads of computation for one of `processes` equal processes on this machine, at least 1.

    OMP_NUM_THREADS is obeyed when it is set.
    """
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdecimal() and int(wanted) > 0:
        return int(wanted)
    return max(1, usable_cores() // max(1, processes))


def usable_cores() -> int:
    """Physical cores that this process may use: less than the machine's under taskset or in a container."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    physical = psutil.cpu_count(logical=False) or allowed
    return max(1, min(allowed, physical, _cgroup_cores(Path("/sys/fs/cgroup/cpu.max"), allowed)))


def _cgroup_cores(limit: Path, otherwise: int) -> int:
    """Whole cores of a container's CPU quota (cgroup v2 file: "QUOTA PERIOD" in microseconds, or "max PERIOD")."""
    try:
        quota, period = limit.read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError, ZeroDivisionError):
        return otherwise


def memory_limit_bytes() -> int:
    """The machine's memory, or the container's share of it when that is less."""
    total = int(psutil.virtual_memory().total)
    try:
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):
        return total


def _gigabytes(size: int) -> str:
    """Rounded, as graphics cards are sold: 23.6 GiB of usable memory is a 24 GB card."""
    return f"{round(size / GIB)} GB"
