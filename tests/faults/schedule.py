"""Fault schedules: what happens to whom, and when. Plain data.

    Fault("kill", ("peer-2",), At(5.0), lasting_seconds=3.0)              dead for three seconds, then started again
    Fault("kill", ("peer-1",), Reaches("encoding", round=3))              for good
    Fault("cut", ("peer-1", "peer-2"), At(10.0), lasting_seconds=60.0)    these two on one side, all others on the other
    Fault("slow", ("peer-1",), At(0.0), value=10.0)                       a link of 10 Mbit/s

Times and rounds count from the moment when everybody takes part. The same from a TOML file (`load`):

    peers = 4
    seconds = 30
    [[fault]]
    what = "kill"
    whom = ["peer-1"]
    phase = "encoding"
    round = 3
    lasting_seconds = 2
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

COORDINATOR = "coordinator"

What = Literal[
    "kill",  # SIGKILL; at the end of the fault it is started again, from its folder
    "pause",  # SIGSTOP
    "slow",  # its link has `value` Mbit/s, in each direction
    "cut",  # these nodes on one side, all others on the other
    "lie",  # serves wrong bytes, whatever it is asked for
    "rot",  # bytes of its files flip: contributions, states, the newest record
    "fill",  # its disk is full
    "skew",  # its clock is `value` seconds off: it is started again with that clock, set right once it has said so
    "join",  # a new peer comes, and stays
]
Phase = Literal["training", "encoding", "submitting", "serving", "exchanging", "applying"]


@dataclass(frozen=True)
class At:
    """Seconds after everybody takes part."""

    seconds: float


@dataclass(frozen=True)
class Reaches:
    """When the target itself comes to this phase of this round (or of the next one that it takes part in)."""

    phase: Phase
    round: int


@dataclass(frozen=True)
class Fault:
    what: What
    whom: tuple[str, ...]
    when: At | Reaches
    lasting_seconds: float | None = None  # None: for good
    value: float = 0.0

    def __str__(self) -> str:
        when = f"at {self.when.seconds:g} s" if isinstance(self.when, At) else f"in {self.when.phase}"
        return f"{self.what} {' '.join(self.whom)} {when}"


@dataclass(frozen=True)
class Schedule:
    """What a run must live through: so many peers, these faults, and so many seconds or rounds in all."""

    peers: int
    faults: tuple[Fault, ...]
    seconds: float = 0.0  # at least so long
    rounds: int = 0  # at least so many, counted as for `Reaches`
    calm_rounds: int = 3  # after the last fault

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"peer-{number}" for number in range(1, self.peers + 1))

    @property
    def survivors(self) -> tuple[str, ...]:
        """Peers that are there from beginning to end and that nothing is done to which could end them."""
        struck = {name for fault in self.faults if fault.what in ("kill", "fill", "skew") for name in fault.whom}
        return tuple(name for name in self.names if name not in struck)


def load(path: Path) -> Schedule:
    """A schedule from a TOML file; ValueError that names what is wrong."""
    value = tomllib.loads(path.read_text())
    faults = tuple(_fault(item) for item in value.pop("fault", []))
    return Schedule(faults=faults, **value)


def _fault(item: dict[str, Any]) -> Fault:
    item = dict(item)
    if item.get("what") not in get_args(What):
        raise ValueError(f"what = {item.get('what')!r}: one of {', '.join(get_args(What))}")
    if ("phase" in item) == ("at_seconds" in item):
        raise ValueError(f"{item['what']}: give either at_seconds, or phase and round")
    when: At | Reaches
    if "phase" in item:
        if item["phase"] not in get_args(Phase):
            raise ValueError(f"phase = {item['phase']!r}: one of {', '.join(get_args(Phase))}")
        when = Reaches(item.pop("phase"), item.pop("round", 1))
    else:
        when = At(float(item.pop("at_seconds")))
    return Fault(whom=tuple(item.pop("whom")), when=when, **item)
