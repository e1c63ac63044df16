"""Choosing the device, its precision and the number of threads."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from peer.errors import UsageError
from peer.training import hardware
from peer.training.hardware import choose_hardware, choose_precision, choose_threads, usable_cores

GIB = 1 << 30


@pytest.fixture
def no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(name="NVIDIA GeForce RTX 3090", total_memory=int(23.69 * GIB))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)


@pytest.mark.usefixtures("no_accelerator")
def test_automatic_choice_without_gpu_is_the_cpu() -> None:
    """Without a GPU, "auto" and "cpu" are the CPU, described by its cores."""
    for name in ("auto", "cpu"):
        chosen = choose_hardware(name)
        assert chosen.device == torch.device("cpu")
        assert chosen.description.startswith(f"CPU, {usable_cores()} core")
        assert chosen.memory_bytes > 0


@pytest.mark.usefixtures("no_accelerator")
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps"])
def test_missing_gpu_names_the_cure(name: str) -> None:
    """Asking for a GPU that is not there is the user's mistake, and the message says what to do."""
    with pytest.raises(UsageError, match=r"use --device cpu, or run `commonweights doctor`") as caught:
        choose_hardware(name)
    assert f"--device {name}" in str(caught.value)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cpu:0", "mps:0", "", "cuda:-1", "cuda:1:2"])
def test_unknown_names_are_refused(name: str) -> None:
    """What is no device's name is refused with the names that are."""
    with pytest.raises(UsageError, match="use auto, cpu, cuda, cuda:0 or mps"):
        choose_hardware(name)


@pytest.mark.usefixtures("two_gpus")
def test_gpus_are_described_as_sold() -> None:
    """The automatic choice is the first GPU; the description has its name and the memory as it is sold."""
    assert choose_hardware("auto") == choose_hardware("cuda") == choose_hardware("cuda:0")
    chosen = choose_hardware("cuda:1")
    assert chosen.device == torch.device("cuda", 1)
    assert chosen.description == "NVIDIA GeForce RTX 3090, 24 GB"
    with pytest.raises(UsageError, match="cuda:0 to cuda:1"):
        choose_hardware("cuda:2")


PRECISIONS = [  # bf16 units, compute capability, wanted, chosen
    (True, (8, 6), "auto", "bf16"),
    (False, (7, 5), "auto", "fp16"),
    (False, (6, 1), "auto", "fp32"),
    (False, (7, 0), "bf16", "fp16"),
    (True, (9, 0), "fp32", "fp32"),
    (True, (9, 0), "fp16", "fp16"),
]


@pytest.mark.parametrize(("bf16", "capability", "wanted", "chosen"), PRECISIONS)
def test_precision_of_a_gpu(
    bf16: bool, capability: tuple[int, int], wanted: str, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bf16 where the GPU computes in it, fp16 where only that has matrix units, fp32 on older ones."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_precision(wanted, torch.device("cuda", 0)) == chosen


def test_precision_elsewhere() -> None:
    """CPUs and Apple GPUs train in fp32 unless the run fixes something that they can do."""
    assert choose_precision("auto", torch.device("cpu")) == "fp32"
    assert choose_precision("fp16", torch.device("cpu")) == "fp32"
    assert choose_precision("bf16", torch.device("mps")) == "bf16"
    assert choose_precision("auto", torch.device("mps")) == "fp32"
    assert choose_precision("fp16", torch.device("mps")) == "fp16"


@pytest.mark.parametrize(
    ("flags", "computes"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_bf16", True),
        ("flags: fpu amx_bf16", True),
        ("Features: fp bf16", True),
        ("flags: fpu avx2 avx512f", False),
    ],
)
def test_bf16_on_a_cpu(flags: str, computes: bool, tmp_path: Path) -> None:
    """A CPU computes in bf16 only when its flags list the instructions; an unknown CPU does not."""
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor: 0\n{flags}\n")
    assert hardware._cpu_computes_bf16(file) is computes
    assert not hardware._cpu_computes_bf16(tmp_path / "missing")


def test_threads_are_shared_among_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal processes share the cores, each has at least one thread, and OMP_NUM_THREADS is obeyed."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(hardware, "usable_cores", lambda: 8)
    assert [choose_threads(processes) for processes in (1, 3, 8, 100)] == [8, 2, 1, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert choose_threads(100) == 3


@pytest.mark.parametrize(
    ("content", "cores"), [("200000 100000", 2), ("50000 100000", 1), ("max 100000", 16), ("", 16), ("1 0", 16)]
)
def test_container_quota(content: str, cores: int, tmp_path: Path) -> None:
    """A container's CPU quota counts in whole cores; no quota, or an unreadable one, is no limit."""
    file = tmp_path / "cpu.max"
    file.write_text(content)
    assert hardware._cgroup_cores(file, 16) == cores
    assert hardware._cgroup_cores(tmp_path / "missing", 16) == 16


def test_cores_are_those_of_this_machine() -> None:
    """At least one core, and no more than the machine has."""
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
