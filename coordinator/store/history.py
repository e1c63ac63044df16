"""Writing down what was seen: each function is one transaction for `Store.put` or `Store.write`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Table, bindparam, delete, insert, select, update

from coordinator.store.numbers import number_peers, text
from coordinator.store.schema import incidents, peers, round_times, samples, spans

Kind = Literal[
    "joined",
    "left",
    "gone",
    "refused",
    "round",
    "failover",
    "rollback",
    "resync",
    "evaluation",
    "checkpoint",
    "admin",
    "note",
]

Moment = Literal["opened", "closing", "published", "applied"]

SPAN_ROUNDS = 200  # that the waterfall keeps
INCIDENTS_KEPT = 100_000
FINE_SAMPLES_SECONDS = 48 * 3600.0  # older samples are thinned to one in COARSE_SECONDS
COARSE_SECONDS = 300.0


@dataclass(frozen=True)
class Sighting:
    """What is new of a peer that is here: its labels, and what it did since the last sighting."""

    key: bytes  # 32 bytes: public key
    name: str
    team: str
    hardware: str
    seen: float  # Unix seconds
    uptime_seconds: float  # to be added
    bytes_sent: int  # to be added
    bytes_received: int


@dataclass(frozen=True)
class Span:
    """One peer in one phase."""

    round: int
    key: bytes
    phase: str
    started: float  # Unix seconds
    ended: float


@dataclass(frozen=True)
class Sample:
    """The swarm at one moment."""

    time_seconds: float
    round: int
    tokens: int
    tokens_per_second: float
    peers: int
    loss: float | None
    eval_loss: float | None
    bytes_sent: int
    bytes_received: int


def see_peers(connection: Connection, sightings: Sequence[Sighting]) -> None:
    numbers = number_peers(connection, [item.key for item in sightings])
    for item in sightings:
        number = numbers[item.key]
        first = select(peers.c.first_seen).where(peers.c.number == number)
        connection.execute(
            update(peers)
            .where(peers.c.number == number)
            .values(
                name=text(item.name),
                team=text(item.team),
                hardware=text(item.hardware),
                first_seen=connection.execute(first).scalar() or item.seen,
                last_seen=item.seen,
                uptime_seconds=peers.c.uptime_seconds + item.uptime_seconds,
                bytes_sent=peers.c.bytes_sent + item.bytes_sent,
                bytes_received=peers.c.bytes_received + item.bytes_received,
            )
        )


def add_spans(connection: Connection, items: Sequence[Span]) -> None:
    """The newest spans; those of rounds long past are dropped."""
    numbers = number_peers(connection, [item.key for item in items])
    rows = [
        {"round": it.round, "peer": numbers[it.key], "phase": it.phase, "started": it.started, "ended": it.ended}
        for it in items
    ]
    connection.execute(insert(spans), rows)
    newest = max(item.round for item in items)
    connection.execute(delete(spans).where(spans.c.round < newest - SPAN_ROUNDS))


def time_round(connection: Connection, round_: int, what: Moment, when: float) -> None:
    """When (Unix seconds) something happened to a round, as this node saw it."""
    upsert(connection, round_times, {"round": round_, what: when})


def add_incident(
    connection: Connection, time_seconds: float, kind: Kind, round_: int, words: str, key: bytes | None = None
) -> None:
    """One line of the feed; `key` is the public key of the peer that it is about."""
    number = number_peers(connection, [key])[key] if key is not None else None
    done = connection.execute(
        insert(incidents).values(time_seconds=time_seconds, kind=kind, round=round_, text=text(words), peer=number)
    )
    if (inserted := done.inserted_primary_key) is not None:
        connection.execute(delete(incidents).where(incidents.c.number <= inserted[0] - INCIDENTS_KEPT))


def add_sample(connection: Connection, sample: Sample) -> None:
    upsert(connection, samples, asdict(sample))


def thin_samples(connection: Connection, now: float) -> None:
    """Of old samples, keep the first in every `COARSE_SECONDS`."""
    old = samples.c.time_seconds < now - FINE_SAMPLES_SECONDS
    times = connection.execute(select(samples.c.time_seconds).where(old).order_by(samples.c.time_seconds)).scalars()
    last, doomed = float("-inf"), []
    for moment in times:
        if moment // COARSE_SECONDS == last // COARSE_SECONDS:
            doomed.append({"moment": moment})
        else:
            last = moment
    if doomed:
        connection.execute(delete(samples).where(samples.c.time_seconds == bindparam("moment")), doomed)


def upsert(connection: Connection, table: Table, row: dict[str, Any]) -> None:
    """Insert a row, or set the given columns of the one with its key. Writers take turns, so two statements will do."""
    key = [column == row[column.name] for column in table.primary_key]
    done = connection.execute(update(table).where(*key).values(**row))
    if done.rowcount == 0:
        connection.execute(insert(table).values(**row))
