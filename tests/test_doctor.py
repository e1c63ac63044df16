"""The doctor: verdicts on made-up machines, and the whole command against worlds that are broken for real."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs.rungs import rungs_between
from peer.doctor import local, verdicts
from peer.doctor.facts import Api, Bootstrap, Device, Disk, Drivers, Model, Names, Port, Speed, Torch
from peer.doctor.finding import Finding
from peer.identity import Identity
from peer.ticket import Ticket
from tests.commands import free_port, processes_with, run, running, tiny_config, until

pytestmark = [pytest.mark.timeout(300)]

GIB = 1 << 30
VOLUNTEER = Model(151_000_000, 1024, 32, 12, 768, 49_152, True, 3, 40_000_000, 600.0, ("lowbit2",))
CPU_TORCH, CUDA_TORCH = Torch("2.9"), Torch("2.9", cuda="12.6")


@pytest.mark.parametrize(
    ("torch", "drivers", "cure"),
    [
        (CPU_TORCH, Drivers(), ""),
        (CPU_TORCH, Drivers(nvidia_cards=1, nvidia_driver="570", cuda_of_driver="12.8"), "build without CUDA"),
        (CUDA_TORCH, Drivers(nvidia_cards=1), "install NVIDIA's driver"),
        (CUDA_TORCH, Drivers(nvidia_cards=1, nvidia_driver="470", cuda_of_driver="11.4"), "update the driver"),
        (CUDA_TORCH, Drivers(nvidia_cards=1, nvidia_driver="570", cuda_of_driver="12.2"), "restart"),
        (CPU_TORCH, Drivers(amd_cards=1), "ROCm"),
        (Torch("2.9", cuda="12.6", cuda_works=True), Drivers(nvidia_cards=1, nvidia_driver="570"), ""),
    ],
)
def test_a_gpu_that_lies_idle(torch: Torch, drivers: Drivers, cure: str) -> None:
    """A card that torch cannot use is a warning with the cure for that case; on a machine without one all is well."""
    finding = verdicts.about_gpu(torch, drivers, Device(description="CPU, 8 cores"))
    assert finding.status == ("warn" if cure else "ok") and cure in finding.cure, finding


def test_memory_fit_picks_a_micro_batch_and_says_why() -> None:
    """More memory never means a smaller micro-batch; the pick fits and twice the pick does not, or is the batch."""
    picks = []
    for gigabytes in (4, 6, 8, 12, 24, 80):
        finding = verdicts.about_memory(VOLUNTEER, Device("cuda", "", gigabytes * GIB, precision="bf16"))
        assert finding.status == "ok", finding
        picks.append(int(finding.message.split("micro-batches of ")[1].split()[0]))
        fits = [verdicts.device_bytes(VOLUNTEER, times * picks[-1], "bf16") for times in (1, 2)]
        assert fits[0] <= 0.9 * gigabytes * GIB
        assert picks[-1] == VOLUNTEER.batch_sequences or fits[1] > 0.9 * gigabytes * GIB
    assert picks == sorted(picks) and picks[-1] == VOLUNTEER.batch_sequences
    small = verdicts.about_memory(VOLUNTEER, Device("cuda", "", 2 * GIB, precision="bf16"))
    assert small.status == "fail" and "smaller model" in small.cure


@pytest.mark.parametrize(
    ("finding", "status", "cure"),
    [
        (verdicts.about_disk(Disk(Path("/x"), 10_000_000), None, 0), "fail", "make room"),
        (verdicts.about_disk(Disk(Path("/x"), 10**10), VOLUNTEER, 20 * 10**9), "warn", "disk.cache_gb"),
        (verdicts.about_disk(Disk(Path("/x"), 10**11), VOLUNTEER, 20 * 10**9), "ok", ""),
        (verdicts.about_disk(Disk(Path("/x"), 0, "Permission denied"), None, 0), "fail", "--dir"),
        (verdicts.about_port(Port(7072, "nginx (process 3)")), "fail", "--port"),
        (verdicts.about_port(Port(0)), "ok", ""),
        (verdicts.about_manners("outside its hours"), "warn", "settings.toml"),
        (verdicts.about_names(Names(failed={"no.example": "unknown"})), "fail", "name server"),
        (verdicts.about_names(Names({"a.example": ["1.2.3.4"]})), "ok", ""),
        (verdicts.about_network(False, False), "warn", "cable"),
        (verdicts.about_network(True, False), "ok", ""),
        (verdicts.about_api(Api("a:1", other_run=True), "1"), "fail", "present ticket"),
        (verdicts.about_api(Api(tried=("a:1",), problem="refused"), "1"), "fail", "whether it runs"),
        (verdicts.about_api(Api("a:1", version="2"), "1"), "warn", "same version"),
        (verdicts.about_clock(1800.0), "fail", "set-ntp"),
        (verdicts.about_clock(-4.0), "fail", "set-ntp"),
        (verdicts.about_clock(2.0), "ok", ""),
        (verdicts.about_bootstrap(Bootstrap(("/ip4/1.2.3.4/tcp/1",), problem="refused")), "fail", "port may be closed"),
        (verdicts.about_bootstrap(Bootstrap(other_run="another run")), "fail", "present ticket"),
        (verdicts.about_speed(Speed(1e6, 1e6), VOLUNTEER), "ok", ""),
        (verdicts.about_speed(Speed(1e4, 1e6), VOLUNTEER), "warn", "cable"),
    ],
)
def test_verdicts_have_the_right_cure(finding: Finding, status: str, cure: str) -> None:
    """What is wrong is said with what to do about it."""
    assert finding.status == status and cure in finding.cure, finding


def test_the_link_is_judged_by_the_rung_that_it_hides() -> None:
    """What is too slow for the run's codec is well on a sparser one that the run allows; the owner's cap is a link."""
    flexible = replace(VOLUNTEER, ladder=rungs_between("lowbit2", "sparse/64"))
    slow, fast = Speed(6e4, 1e6), Speed(1e6, 1e6)
    assert verdicts.about_speed(slow, VOLUNTEER).status == "warn"
    for finding in (verdicts.about_speed(slow, flexible), verdicts.about_speed(fast, flexible, 6e4)):
        assert finding.status == "ok" and "8.98 MB (sparse/16) takes 2:30; as lowbit2" in finding.message, finding
    assert "(lowbit2)" in verdicts.about_speed(fast, flexible, 2e6).message


@pytest.mark.parametrize(
    ("proven", "status"),
    [([], "warn"), (["/ip4/8.8.4.4/tcp/4/p2p/X/p2p-circuit"], "warn"), (["/ip4/8.8.4.4/tcp/4"], "ok")],
)
def test_behind_nat_or_not(proven: list[str], status: str) -> None:
    """What others have dialled is reachable; a relay's address is not one's own."""
    assert verdicts.about_reachability(proven, 0).status == status


def test_a_port_in_use_names_its_program() -> None:
    """The process that listens is named; a free port is free."""
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        number = taken.getsockname()[1]
        assert f"process {os.getpid()}" in str(local.port(number).in_use_by)
    assert local.port(free_port()).in_use_by is None


def test_drivers_are_read_from_the_bus(tmp_path: Path) -> None:
    """Display controllers count, by their maker; a network card of NVIDIA's does not."""
    for number, (kind, vendor) in enumerate((("0x030000", "0x10de"), ("0x020000", "0x10de"), ("0x030000", "0x1002"))):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "class").write_text(kind + "\n")
        (tmp_path / str(number) / "vendor").write_text(vendor + "\n")
    found = local.drivers(tmp_path)
    assert (found.nvidia_cards, found.amd_cards, found.nvidia_driver) == (1, 1, "")


# --- worlds that are broken for real ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a running coordinator."""
    folder = tmp_path_factory.mktemp("doctor")
    with running(
        "serve", tiny_config(folder, rounds=0), "--dir", folder / "run", "--host", "127.0.0.1",
        "--grpc-port", free_port(), "--swarm-port", free_port(), program="coordinator.cli",
    ) as command:  # fmt: skip
        until((folder / "run" / "ticket.txt").is_file, "the ticket is written")
        yield folder / "run"
        command.interrupt()


def consult(*arguments: object, **environment: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit code, and the doctor's checks by name."""
    command = run("doctor", *arguments, "--json", seconds=60, **environment)
    assert "Traceback" not in command.err, command.err
    return command.code, {check["name"]: check for check in command.json["checks"]}


@pytest.mark.xdist_group("doctor")
def test_a_healthy_world(served: Path, tmp_path: Path) -> None:
    """Nothing fails; the swarm is joined, both directions are measured, a micro-batch is picked; no process stays."""
    code, checks = consult(served / "ticket.txt", "--dir", tmp_path)
    assert code == 0, checks
    assert {name for name, check in checks.items() if check["status"] == "fail"} == set()
    for name in ("ticket", "coordinator", "clock", "swarm", "reachable", "bandwidth", "memory", "port", "disk"):
        assert checks[name]["status"] in ("ok", "warn") and checks[name]["message"], checks[name]
    assert "Mbit/s" in checks["bandwidth"]["message"] and "micro-batches of 4 of 4" in checks["memory"]["message"]
    assert not processes_with(str(tmp_path))


def test_a_machine_alone(tmp_path: Path) -> None:
    """Without a ticket the machine itself is looked at, and what needs a run is left out."""
    code, checks = consult("--dir", tmp_path)
    assert code == 0 and checks["swarm"]["status"] == checks["memory"]["status"] == "skipped"


@pytest.mark.xdist_group("doctor")
def test_a_damaged_ticket(served: Path, tmp_path: Path) -> None:
    """A cut ticket: copy it again."""
    code, checks = consult((served / "ticket.txt").read_text().strip()[:-4], "--dir", tmp_path)
    assert code == 1 and "cut off" in checks["ticket"]["message"] and "copy" in checks["ticket"]["cure"]


@pytest.mark.xdist_group("doctor")
def test_a_ticket_of_another_run(served: Path, tmp_path: Path) -> None:
    """The coordinator answers, for another run: ask for the present ticket."""
    right = Ticket.parse(str(served / "ticket.txt"))
    wrong = Ticket(bytes(32), right.coordinator, right.grpc_addresses, right.swarm_addresses)
    code, checks = consult(str(wrong), "--dir", tmp_path)
    assert code == 1
    for name in ("coordinator", "swarm"):
        assert checks[name]["status"] == "fail" and "present ticket" in checks[name]["cure"], checks[name]


def test_a_dead_coordinator(tmp_path: Path) -> None:
    """Neither port answers: ask the organiser whether it runs."""
    port = free_port()
    dead = Ticket(bytes(32), Identity.new().peer_id, (f"127.0.0.1:{port}",), (f"/ip4/127.0.0.1/tcp/{port}",))
    code, checks = consult(str(dead), "--dir", tmp_path)
    assert code == 1
    assert "whether it runs" in checks["coordinator"]["cure"] and checks["swarm"]["status"] == "fail"
    assert checks["bandwidth"]["status"] == "skipped"


@pytest.mark.xdist_group("doctor")
def test_a_clock_half_an_hour_off(served: Path, tmp_path: Path) -> None:
    """The doctor's own clock runs 30 minutes ahead of the coordinator's: the difference, the side and the cure."""
    wrong = (
        "import sys, time; real = time.time; time.time = lambda: real() + 1800\n"
        "from peer.cli import main; sys.argv[0] = 'commonweights'; main()"
    )
    arguments = [sys.executable, "-c", wrong, "doctor", str(served / "ticket.txt"), "--dir", str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    lines = done.stdout.splitlines()
    clock = next(number for number, line in enumerate(lines) if line.startswith("clock"))
    assert done.returncode == 1 and "30:00 ahead of" in lines[clock] and "set-ntp" in lines[clock + 1], done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system")
def test_a_full_disk(tmp_path: Path) -> None:
    """A file system without a free byte: make room, or --dir elsewhere."""
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with (small / "filler").open("wb", buffering=0) as file, pytest.raises(OSError):
            while True:
                file.write(bytes(4096))
        code, checks = consult("--dir", small / "peer")
        assert code == 1 and "make room" in checks["disk"]["cure"], checks["disk"]
    finally:
        subprocess.run(["umount", "-l", small], check=True)


def test_a_missing_gpu(tmp_path: Path) -> None:
    """--device cuda where torch has none: the CPU, or the build that fits."""
    code, checks = consult("--dir", tmp_path, "--device", "cuda", CUDA_VISIBLE_DEVICES="")
    assert code == 1 and checks["gpu"]["status"] == "fail" and checks["gpu"]["cure"], checks["gpu"]


@pytest.mark.xdist_group("doctor")
def test_a_device_that_is_too_small(served: Path, tmp_path: Path) -> None:
    """A memory limit below the model's needs: raise it, or another run."""
    (tmp_path / "settings.toml").write_text("[device]\nmemory_gb = 0.0001\n")
    code, checks = consult(served / "ticket.txt", "--dir", tmp_path)
    assert code == 1 and checks["memory"]["status"] == "fail" and "device.memory_gb" in checks["memory"]["cure"]


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    """The port of the settings is in use: by whom, and --port."""
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        (tmp_path / "settings.toml").write_text(f"[network]\nport = {taken.getsockname()[1]}\n")
        code, checks = consult("--dir", tmp_path)
    assert code == 1 and str(os.getpid()) in checks["port"]["message"] and "--port" in checks["port"]["cure"]
