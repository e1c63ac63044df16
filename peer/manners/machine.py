"""What the machine is doing, asked of the operating system and of NVIDIA's driver. What is not there is None."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from typing import Any, Protocol

import psutil

from peer.manners.decide import Facts

BUSY_PERCENT = 15  # of the GPU's time, from where on somebody else uses it; a desktop alone takes a few
NMCLI_SECONDS = 3.0
_CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "acpitz")


class Gpu(Protocol):
    """The GPU that a peer trains on."""

    def celsius(self) -> float | None: ...

    def other_user(self) -> str | None:
        """The name of another program that uses it."""


class NoGpu:
    """None, or one whose driver does not tell (AMD, Apple)."""

    def celsius(self) -> float | None:
        return None

    def other_user(self) -> str | None:
        return None


class NvidiaGpu:
    """Over NVML. `uuid` as torch has it, because CUDA_VISIBLE_DEVICES renumbers devices for torch only."""

    def __init__(self, nvml: Any, uuid: str) -> None:
        self._nvml = nvml
        self._handle = nvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
        self._since_microseconds = 0

    def celsius(self) -> float | None:
        with self._unknown():
            return float(self._nvml.nvmlDeviceGetTemperature(self._handle, self._nvml.NVML_TEMPERATURE_GPU))
        return None

    def other_user(self) -> str | None:
        """The busiest other process since the last look; None when nobody else computes on it."""
        samples: list[Any] = []
        since, self._since_microseconds = self._since_microseconds, int((time.time() - 1) * 1e6)
        with self._unknown():  # "not found": nobody was measured since then
            samples = self._nvml.nvmlDeviceGetProcessUtilization(self._handle, since)
        ours = _own_processes()
        others = [(int(sample.smUtil), int(sample.pid)) for sample in samples if int(sample.pid) not in ours]
        busy = [pid for percent, pid in sorted(others, reverse=True) if percent >= BUSY_PERCENT]
        return _name(busy[0]) if busy else None

    @contextlib.contextmanager
    def _unknown(self) -> Iterator[None]:
        with contextlib.suppress(self._nvml.NVMLError):
            yield


def open_gpu(uuid: str | None) -> Gpu:
    """The GPU with this UUID, as far as a driver tells about it."""
    if uuid is None:
        return NoGpu()
    try:
        import pynvml

        pynvml.nvmlInit()
        return NvidiaGpu(pynvml, uuid)
    except Exception:  # no library, no driver, an unknown card: pynvml has a kind of error for each
        return NoGpu()


class Machine:
    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu

    def look(self) -> Facts:
        """Takes some milliseconds; for a thread."""
        return Facts(
            on_battery=_on_battery(),
            cpu_celsius=_cpu_celsius(),
            gpu_celsius=self._gpu.celsius(),
            gpu_user=self._gpu.other_user(),
            metered=_metered(),
        )


def _on_battery() -> bool | None:
    with contextlib.suppress(Exception):  # the readers of some machines' sensors fall over odd files
        battery = psutil.sensors_battery()
        return None if battery is None or battery.power_plugged is None else not battery.power_plugged
    return None


def _cpu_celsius() -> float | None:
    """The hottest of the processor's sensors."""
    sensors = getattr(psutil, "sensors_temperatures", None)  # Linux only
    if sensors is None:
        return None
    with contextlib.suppress(Exception):
        found = sensors()
        return max((entry.current for name in _CPU_SENSORS for entry in found.get(name, [])), default=None)
    return None


def _metered() -> bool | None:
    """Whether NetworkManager takes a connected device for metered; it guesses so for tethered phones."""
    if shutil.which("nmcli") is None:
        return None
    try:
        answer = subprocess.run(
            ["nmcli", "-t", "-g", "GENERAL.STATE,GENERAL.METERED", "device", "show"],
            capture_output=True, text=True, timeout=NMCLI_SECONDS, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return says_metered(answer)


def says_metered(answer: str) -> bool | None:
    """`answer`: per device a line with its state ("100 (connected)") and one with "yes", "no (guessed)" ..."""
    blocks = [block.splitlines() for block in answer.strip().split("\n\n")]
    words = [block[1] for block in blocks if len(block) == 2 and block[0].startswith("100 ")]
    known = [word for word in words if word.startswith(("yes", "no"))]
    return any(word.startswith("yes") for word in known) if known else None


def _own_processes() -> set[int]:
    """This process and its children: the ranks of several GPUs."""
    with contextlib.suppress(psutil.Error):
        return {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))}
    return {os.getpid()}


def _name(pid: int) -> str:
    with contextlib.suppress(psutil.Error):
        return str(psutil.Process(pid).name())[:40]
    return f"process {pid}"
