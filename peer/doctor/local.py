"""Facts about this machine: asked of torch, of drivers, of the operating system. Each function may take seconds, and
belongs into a thread."""

from __future__ import annotations

import contextlib
import errno
import shutil
import socket
import tempfile
from pathlib import Path

import psutil

from peer.doctor.facts import Device, Disk, Drivers, Port, Torch
from peer.errors import CommonweightsError
from peer.manners.settings import Settings

_NVIDIA, _AMD = "0x10de", "0x1002"
_DISPLAY_CLASS = "0x03"


def torch_build() -> Torch:
    import torch

    return Torch(
        version=torch.__version__,
        cuda=torch.version.cuda or "",
        rocm=torch.version.hip or "",
        cuda_works=torch.cuda.is_available(),
        mps_works=torch.backends.mps.is_available(),
    )


def drivers(bus: Path = Path("/sys/bus/pci/devices")) -> Drivers:
    """Cards on the PCI bus, and NVIDIA's driver."""
    cards = [_word(path / "vendor") for path in bus.glob("*") if _word(path / "class").startswith(_DISPLAY_CLASS)]
    driver = cuda = ""
    answering = 0
    with contextlib.suppress(Exception):  # no library, no driver: pynvml has a kind of error for each
        import pynvml

        pynvml.nvmlInit()
        driver, newest = str(pynvml.nvmlSystemGetDriverVersion()), int(pynvml.nvmlSystemGetCudaDriverVersion_v2())
        cuda, answering = f"{newest // 1000}.{newest % 1000 // 10}", int(pynvml.nvmlDeviceGetCount())
    return Drivers(max(cards.count(_NVIDIA), answering), cards.count(_AMD), driver, cuda)


def device(name: str, wanted_precision: str, settings: Settings) -> Device:
    """What `join --device NAME` would train on."""
    from peer.training.hardware import choose_hardware, choose_precision

    try:
        hardware = choose_hardware(name)
    except CommonweightsError as error:
        return Device(problem=str(error))
    limit = settings.device.memory_bytes
    return Device(
        kind=hardware.device.type,
        description=hardware.description,
        memory_bytes=min(hardware.memory_bytes, limit or hardware.memory_bytes),
        limited=limit is not None and limit < hardware.memory_bytes,
        precision=choose_precision(wanted_precision, hardware.device),
    )


def disk(folder: Path) -> Disk:
    """Free bytes where the folder is or would be; whether it can be written is tried out."""
    place = folder
    while not place.exists():
        place = place.parent
    try:
        free = shutil.disk_usage(place).free
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(4096))
            file.flush()
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return Disk(folder, 0, "" if full else str(error.strerror or error))
    return Disk(folder, free)


def port(number: int) -> Port:
    """Whether something listens on this TCP port already, and what."""
    if not number:
        return Port(0)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as a daemon does: a closed connection may linger
        try:
            probe.bind(("0.0.0.0", number))
        except PermissionError:
            return Port(number, "the system (below 1024 only root may listen)")
        except OSError:
            return Port(number, _listener(number))
    return Port(number)


def has_route(family: socket.AddressFamily) -> bool:
    """Whether the system knows a way to the internet; nothing is sent."""
    target = ("192.0.2.1", 9) if family == socket.AF_INET else ("2001:db8::1", 9)  # of the ranges for documentation
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)
            return True
    except OSError:
        return False


def _listener(number: int) -> str:
    with contextlib.suppress(psutil.Error, RuntimeError):
        for connection in psutil.net_connections("tcp"):
            if (
                connection.status == psutil.CONN_LISTEN
                and connection.pid
                and getattr(connection.laddr, "port", 0) == number
            ):
                return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
    return "another program"


def _word(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
