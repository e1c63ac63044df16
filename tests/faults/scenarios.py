"""The schedules of the tests and, in full length, of `python -m tests.faults`."""

from __future__ import annotations

import random

from tests.faults.schedule import COORDINATOR, At, Fault, Phase, Reaches, Schedule

PHASES: tuple[Phase, ...] = ("training", "encoding", "submitting", "serving", "exchanging", "applying")


def kills_in_every_phase(peers: int = 4) -> Schedule:
    """One after the other, of all peers but the first; each comes back after two seconds."""
    return Schedule(
        peers,
        tuple(
            Fault("kill", (f"peer-{2 + number % (peers - 1)}",), Reaches(phase, 1 + 3 * number), lasting_seconds=2.0)
            for number, phase in enumerate(PHASES)
        ),
    )


def bad_day() -> Schedule:
    """A stopped process, a slow link, a donor that lies, a rotten disk, a full one."""
    return Schedule(
        4,
        (
            Fault("pause", ("peer-2",), At(0.0), lasting_seconds=5.0),
            Fault("slow", ("peer-1",), At(1.0), lasting_seconds=8.0, value=1.0),
            Fault("lie", ("peer-3",), At(7.0), lasting_seconds=5.0),
            Fault("rot", ("peer-2",), At(11.0)),
            Fault("kill", ("peer-2",), At(12.0), lasting_seconds=2.0),
            Fault("fill", ("peer-4",), At(16.0), lasting_seconds=5.0),
        ),
    )


def wrong_clocks(seconds: float = 60.0) -> Schedule:
    """Two of four peers are started again with clocks ten minutes off, to either side; set right when they say so."""
    return Schedule(
        4,
        (
            Fault("skew", ("peer-2",), At(0.0), lasting_seconds=seconds, value=600.0),
            Fault("skew", ("peer-3",), At(1.0), lasting_seconds=seconds, value=-600.0),
        ),
        calm_rounds=8,
    )


def coordinator_away(seconds: float = 12.0) -> Schedule:
    """Killed for a while."""
    return Schedule(3, (Fault("kill", (COORDINATOR,), At(0.5), lasting_seconds=seconds),), calm_rounds=8)


def partition(seconds: float = 12.0) -> Schedule:
    """Two peers on one side; two, and the coordinator, on the other."""
    return Schedule(4, (Fault("cut", ("peer-1", "peer-2"), At(0.5), lasting_seconds=seconds),), calm_rounds=8)


def slow_links(seconds: float = 60.0, mbit: float = 10.0) -> Schedule:
    """All peers but one."""
    slow = tuple(f"peer-{number}" for number in (2, 3, 4))
    return Schedule(4, (Fault("slow", slow, At(0.0), lasting_seconds=seconds, value=mbit),), seconds=seconds)


def soak(kills: int, seed: int = 0, peers: int = 4) -> Schedule:
    """A kill every other round, in a random phase of a random peer, which comes back after one to three seconds."""
    dice = random.Random(seed)
    return Schedule(
        peers,
        tuple(
            Fault(
                "kill",
                (f"peer-{dice.randint(1, peers)}",),
                Reaches(dice.choice(PHASES), 1 + 2 * number),
                lasting_seconds=dice.uniform(1.0, 3.0),
            )
            for number in range(kills)
        ),
    )


def churn(seconds: float = 300.0, every_seconds: float = 20.0, calm_seconds: float = 60.0, peers: int = 8) -> Schedule:
    """After a calm minute, one peer dies for good and another comes, again and again; the oldest goes first."""
    faults: list[Fault] = []
    for number in range(int(seconds / every_seconds)):
        when = At(calm_seconds + number * every_seconds)
        faults.append(Fault("kill", (f"peer-{number + 1}",), when))
        faults.append(Fault("join", (f"peer-{peers + number + 1}",), when))
    return Schedule(peers, tuple(faults), seconds=calm_seconds + seconds)
