"""Reading: each function is a question for `Store.read`. Lists come in pages by key (never by offset), newest first.

`before` of a page is the key of the last row of the page before; None asks for the first page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import BigInteger, Connection, Double, Row, Select, and_, cast, func, literal, or_, select

from coordinator.store.schema import (
    accounts,
    contributions,
    incidents,
    peers,
    refusals,
    round_times,
    rounds,
    samples,
    spans,
    team_credit,
)
from peer.log.accounting import PENDING_ROUNDS


class Rank(NamedTuple):
    """Where a page of the leaderboard ended."""

    credit_tokens: int
    peer: int


@dataclass(frozen=True)
class Account:
    """A peer in the ledger. What is not credit stands beside it and is never mixed into it."""

    number: int
    peer_id: str
    name: str
    team: str
    credit_tokens: int  # accepted and not voided, pending ones included
    voided_tokens: int
    contributions: int
    refused: int
    first_round: int
    last_round: int
    rounds_sequenced: int
    uptime_seconds: float
    bytes_sent: int
    first_seen: float | None
    last_seen: float | None
    hardware: str


@dataclass(frozen=True)
class Round:
    round: int
    time_seconds: float
    tokens: int
    total_tokens: int
    loss: float | None
    contributions: int
    refused: int
    payload_bytes: int
    term: int
    sequencer: str  # peer id
    final: bool
    opened: float | None
    closing: float | None
    published: float | None
    applied: float | None


@dataclass(frozen=True)
class Contribution:
    round: int
    time_seconds: float  # of the record
    peer_id: str
    name: str
    tokens: int
    inner_steps: int
    mean_loss: float
    norm: float
    codec: str
    payload_bytes: int
    train_seconds: float
    private_data: str
    team: str
    voided_in: int | None


@dataclass(frozen=True)
class Refusal:
    round: int
    time_seconds: float
    peer_id: str
    name: str
    tokens: int
    reason: str


@dataclass(frozen=True)
class PhaseSpan:
    round: int
    peer_id: str
    name: str
    phase: str
    started: float
    ended: float


@dataclass(frozen=True)
class Incident:
    number: int
    time_seconds: float
    kind: str
    round: int
    text: str
    peer_id: str  # empty: it is not about a peer


# --- the ledger -------------------------------------------------------------------------------------------------------


def leaderboard(connection: Connection, after: Rank | None = None, size: int = 100) -> list[Account]:
    """Largest credit first, of peers that ever handed something in; equal ones in the order in which they came."""
    question = _accounts().order_by(accounts.c.credit_tokens.desc(), accounts.c.peer).limit(size)
    question = question.where(accounts.c.contributions + accounts.c.refused > 0)
    if after is not None:
        question = question.where(
            accounts.c.credit_tokens <= after.credit_tokens,  # said twice: this half finds the place in the index
            or_(accounts.c.credit_tokens < after.credit_tokens, accounts.c.peer > after.peer),
        )
    return [Account(**row._mapping) for row in connection.execute(question)]


def account(connection: Connection, peer_id: str) -> Account | None:
    row = connection.execute(_accounts().where(peers.c.peer_id == peer_id)).first()
    return Account(**row._mapping) if row else None


def _accounts() -> Select[*tuple[object, ...]]:
    ours = [column for column in accounts.c if column.name != "peer"]
    theirs = [peers.c[name] for name in (
        "number", "peer_id", "name", "team", "hardware", "first_seen", "last_seen", "uptime_seconds", "bytes_sent"
    )]  # fmt: skip
    return select(*theirs, *ours).join_from(accounts, peers)


@dataclass(frozen=True)
class Team:
    team: str
    credit_tokens: int
    contributions: int
    peers: int


class TeamRank(NamedTuple):
    """Where a page of teams ended."""

    credit_tokens: int
    team: str


def teams_page(connection: Connection, after: TeamRank | None = None, size: int = 100) -> list[Team]:
    """Largest credit first; equal ones by name. Contributions without a team's name are one team, without a name."""
    credit = func.sum(team_credit.c.credit_tokens)
    question = (
        select(
            team_credit.c.team,
            cast(credit, BigInteger).label("credit_tokens"),
            cast(func.sum(team_credit.c.contributions), BigInteger).label("contributions"),
            func.count().label("peers"),
        )
        .group_by(team_credit.c.team)
        .order_by(credit.desc(), team_credit.c.team)
        .limit(size)
    )
    if after is not None:
        question = question.having(
            or_(credit < after.credit_tokens, and_(credit == after.credit_tokens, team_credit.c.team > after.team))
        )
    return [Team(**row._mapping) for row in connection.execute(question)]


def total_credit(connection: Connection) -> int:
    """Of all peers together."""
    return int(connection.execute(select(func.coalesce(func.sum(accounts.c.credit_tokens), 0))).scalar_one())


def pending_tokens(connection: Connection, peer_numbers: Sequence[int]) -> dict[int, int]:
    """By peer: what of its credit a verdict may still void."""
    last = connection.execute(select(rounds.c.round, rounds.c.final).order_by(rounds.c.round.desc()).limit(1)).first()
    if last is None or last.final:
        return {}
    question = (
        select(contributions.c.peer, func.sum(contributions.c.tokens))
        .where(
            contributions.c.round > last.round - PENDING_ROUNDS,
            contributions.c.peer.in_(peer_numbers),
            contributions.c.voided_in.is_(None),
        )
        .group_by(contributions.c.peer)
    )
    return {number: int(tokens) for number, tokens in connection.execute(question)}


@dataclass(frozen=True)
class LedgerPage:
    """Of one moment: credit is never counted twice, or not at all, because a record came in between."""

    accounts: list[Account]
    pending: dict[int, int]  # tokens by peer number
    last_refusals: dict[int, str]  # round and reason by peer number
    total_tokens: int  # credit of all peers


def ledger_page(connection: Connection, after: Rank | None = None, size: int = 100) -> LedgerPage:
    return _ledger(connection, leaderboard(connection, after, size))


def ledger_of(connection: Connection, peer_id: str) -> LedgerPage:
    """Of one peer; empty if the log does not know it."""
    found = account(connection, peer_id)
    return _ledger(connection, [found] if found else [])


def _ledger(connection: Connection, found: list[Account]) -> LedgerPage:
    numbers = [item.number for item in found]
    last = {}
    if refused := [item.number for item in found if item.refused]:
        newest = (
            select(refusals.c.peer, func.max(refusals.c.round).label("round"))
            .where(refusals.c.peer.in_(refused))
            .group_by(refusals.c.peer)
            .subquery()
        )
        words = select(refusals.c.peer, refusals.c.round, refusals.c.reason).join_from(
            refusals, newest, and_(refusals.c.peer == newest.c.peer, refusals.c.round == newest.c.round)
        )
        last = {
            row.peer: f"round {row.round}: {row.reason}"
            for row in connection.execute(words.order_by(refusals.c.position))
        }
    return LedgerPage(found, pending_tokens(connection, numbers), last, total_credit(connection))


def rounds_page(connection: Connection, before: int | None = None, size: int = 100) -> list[Round]:
    question = (
        select(
            *(rounds.c[name] for name in _columns(Round) if name in rounds.c and name != "sequencer"),
            peers.c.peer_id.label("sequencer"),
            *(round_times.c[name] for name in ("opened", "closing", "published", "applied")),
        )
        .join_from(rounds, peers)
        .outerjoin(round_times, round_times.c.round == rounds.c.round)
        .order_by(rounds.c.round.desc())
        .limit(size)
    )
    if before is not None:
        question = question.where(rounds.c.round < before)
    return [Round(**row._mapping) for row in connection.execute(question)]


def contributions_to(connection: Connection, round_: int) -> list[Contribution]:
    """All of one round, largest first."""
    question = _contributions().where(contributions.c.round == round_).order_by(contributions.c.tokens.desc())
    return [Contribution(**row._mapping) for row in connection.execute(question)]


def contributions_of(
    connection: Connection, peer_id: str, before: int | None = None, size: int = 100
) -> list[Contribution]:
    question = _contributions().where(peers.c.peer_id == peer_id).order_by(contributions.c.round.desc()).limit(size)
    if before is not None:
        question = question.where(contributions.c.round < before)
    return [Contribution(**row._mapping) for row in connection.execute(question)]


def _contributions() -> Select[*tuple[object, ...]]:
    return (
        select(
            *(contributions.c[name] for name in _columns(Contribution) if name in contributions.c),
            rounds.c.time_seconds,
            peers.c.peer_id,
            peers.c.name,
        )
        .join_from(contributions, peers)
        .join(rounds, rounds.c.round == contributions.c.round)
    )


def refusals_of(connection: Connection, peer_id: str, size: int = 10) -> list[Refusal]:
    """The newest."""
    question = (
        select(
            refusals.c.round, refusals.c.tokens, refusals.c.reason, rounds.c.time_seconds, peers.c.peer_id, peers.c.name
        )
        .join_from(refusals, peers)
        .join(rounds, rounds.c.round == refusals.c.round)
        .where(peers.c.peer_id == peer_id)
        .order_by(refusals.c.round.desc(), refusals.c.position)
        .limit(size)
    )
    return [Refusal(**row._mapping) for row in connection.execute(question)]


# --- history ----------------------------------------------------------------------------------------------------------


def losses(connection: Connection, points: int = 500) -> list[tuple[int, int, float]]:
    """(round, tokens up to it, loss), oldest first; long runs are thinned to about `points`."""
    newest = connection.execute(select(func.max(rounds.c.round))).scalar() or 0
    stride = max(1, newest // points)
    question = (
        select(rounds.c.round, rounds.c.total_tokens, rounds.c.loss)
        .where(rounds.c.loss.is_not(None), (rounds.c.round % stride == 0) | (rounds.c.round == newest))
        .order_by(rounds.c.round)
    )
    return [(row.round, row.total_tokens, row.loss) for row in connection.execute(question)]


def samples_since(connection: Connection, since: float, points: int = 500) -> list[Row[tuple[float, ...]]]:
    """Rows of `schema.samples`, oldest first: the newest of each of about `points` equal stretches of time."""
    newest = connection.execute(select(func.max(samples.c.time_seconds))).scalar()
    if newest is None or newest < since:
        return []
    oldest = connection.execute(
        select(func.min(samples.c.time_seconds)).where(samples.c.time_seconds >= since)
    ).scalar_one()
    width = max((newest - oldest) / points, 1e-3)
    # One look into the index for each stretch: grouping all rows takes the longer the longer the run.
    step = select(literal(0).label("n")).cte("step", recursive=True)
    step = step.union_all(select(step.c.n + 1).where(step.c.n < points))
    start = oldest + cast(step.c.n, Double) * width
    within = and_(samples.c.time_seconds >= start, samples.c.time_seconds < start + width)
    chosen = select(select(func.max(samples.c.time_seconds)).where(within).correlate(step).scalar_subquery())
    found = select(*samples.c).where(samples.c.time_seconds.in_(chosen.select_from(step)))
    return list(connection.execute(found.order_by(samples.c.time_seconds)))


def waterfall(connection: Connection, newest_rounds: int = 5) -> list[PhaseSpan]:
    """What each peer did when, in the newest rounds, oldest first."""
    newest = connection.execute(select(func.max(spans.c.round))).scalar() or 0
    question = (
        select(spans.c.round, peers.c.peer_id, peers.c.name, spans.c.phase, spans.c.started, spans.c.ended)
        .join_from(spans, peers)
        .where(spans.c.round > newest - newest_rounds)
        .order_by(spans.c.started, spans.c.number)
    )
    return [PhaseSpan(**row._mapping) for row in connection.execute(question)]


def incidents_page(
    connection: Connection, before: int | None = None, size: int = 50, kinds: tuple[str, ...] = ()
) -> list[Incident]:
    """Newest first; of these kinds only, if any are given."""
    question = (
        select(
            *(incidents.c[name] for name in ("number", "time_seconds", "kind", "round", "text")),
            func.coalesce(peers.c.peer_id, "").label("peer_id"),
        )
        .outerjoin_from(incidents, peers)
        .order_by(incidents.c.number.desc())
        .limit(size)
    )
    conditions = [incidents.c.number < before] if before is not None else []
    if kinds:
        conditions.append(incidents.c.kind.in_(kinds))
    return [Incident(**row._mapping) for row in connection.execute(question.where(and_(True, *conditions)))]


def _columns(kind: type) -> list[str]:
    return list(kind.__dataclass_fields__)  # type: ignore[attr-defined]
