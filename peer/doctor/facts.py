"""What the doctor looks at, as plain data. None: not known."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Torch:
    """The installed build, and what it sees."""

    version: str
    cuda: str = ""  # CUDA version that it was built for; empty: a build without
    rocm: str = ""
    cuda_works: bool = False
    mps_works: bool = False


@dataclass(frozen=True)
class Drivers:
    """What the operating system knows of graphics cards."""

    nvidia_cards: int = 0  # on the bus
    amd_cards: int = 0
    nvidia_driver: str = ""  # its version; empty: it does not answer
    cuda_of_driver: str = ""  # the newest CUDA that it can run, such as "12.4"


@dataclass(frozen=True)
class Device:
    """What `join` would train on; or why it cannot."""

    kind: str = "cpu"
    description: str = ""
    memory_bytes: int = 0  # that may be used: the owner's limit counted in
    limited: bool = False  # by the owner's settings
    precision: str = "fp32"
    problem: str = ""


@dataclass(frozen=True)
class Model:
    """What the run asks of a device."""

    parameters: int
    sequence_length: int
    batch_sequences: int
    layers: int
    width: int
    vocabulary: int
    momentum: bool  # of the outer step: a second vector of the weights' size in main memory
    kept_states: int  # on disk, at most
    payload_bytes: int  # of a contribution, at most
    round_seconds: float  # at most
    ladder: tuple[str, ...]  # codecs that a contribution may have, the richest first


@dataclass(frozen=True)
class Disk:
    folder: Path
    free_bytes: int
    problem: str = ""  # why it cannot be written


@dataclass(frozen=True)
class Port:
    number: int
    in_use_by: str | None = None  # a process, or "another program"; None: it is free


@dataclass(frozen=True)
class Api:
    """The coordinator over gRPC."""

    address: str = ""  # that answered
    tried: tuple[str, ...] = ()
    problem: str = ""
    other_run: bool = False
    version: str = ""
    clock_ahead_seconds: float | None = None  # of ours against its


@dataclass(frozen=True)
class Bootstrap:
    """The swarm at the ticket's addresses."""

    tried: tuple[str, ...] = ()
    problem: str = ""
    other_run: str = ""
    round_trip_seconds: float = 0.0
    peers: int = 0


@dataclass(frozen=True)
class Speed:
    up_bytes_per_second: float
    down_bytes_per_second: float


@dataclass(frozen=True)
class Names:
    """Host names of the ticket that were looked up, and why some were not found."""

    resolved: dict[str, list[str]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
