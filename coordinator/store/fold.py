"""Keeping the ledger's tables equal to the fold of the log, whatever happened to either meanwhile.

`follow` is all there is to it: find the newest round that log and tables agree on, drop what lies above it, add what
the log has beyond. That covers a new round, a start after a kill, a database that was away, and a log that was rolled
back to an ancestor and grew another way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from coordinator.store.numbers import number_peers, text
from coordinator.store.schema import accounts, contributions, peers, refusals, rounds, team_credit
from peer.log.chain import Entry, Log
from protos import log_pb2

MAX_INTEGER = (1 << 63) - 1  # that a column holds; a claim in a refused header may say anything
ENTRIES_AT_ONCE = 200  # one transaction; a longer one would keep other writes waiting


class Progress(NamedTuple):
    agreed: int  # the newest round that ledger and log had in common; -1: none
    complete: bool  # the ledger is at the log's head


def follow(connection: Connection, log: Log, most: int = ENTRIES_AT_ONCE) -> Progress:
    """Bring the ledger closer to the log's head, by `most` records."""
    entries = log.entries  # grows, or is cut, in another thread: what is read twice is checked by hash the next time
    agreed = common_round(connection, entries)
    drop_above(connection, agreed)
    missing = entries[agreed + 1 : agreed + 1 + most]
    for entry in missing:
        add(connection, entry)
    return Progress(agreed, len(missing) < most)


def common_round(connection: Connection, entries: Sequence[Entry]) -> int:
    """The newest round whose record is the same in the ledger and in the log; -1: none."""
    round_ = min(newest_round(connection), len(entries) - 1)
    while round_ >= 0:
        stored = connection.execute(select(rounds.c.hash).where(rounds.c.round == round_)).scalar()
        if stored == entries[round_].hash:
            return round_
        round_ -= 1
    return -1


def newest_round(connection: Connection) -> int:
    """Of the ledger; -1: it is empty."""
    found = connection.execute(select(func.max(rounds.c.round))).scalar()
    return -1 if found is None else int(found)


def add(connection: Connection, entry: Entry) -> None:
    """Fold in the record after the newest one."""
    record = entry.record
    keys = [signer for signer, _ in entry.contributions] + [item.peer for item in record.refused]
    numbers = number_peers(connection, [entry.signed.signer, *keys])
    before = connection.execute(select(rounds.c.total_tokens).where(rounds.c.round == record.round - 1)).scalar()
    tokens = sum(item.tokens for _, item in entry.contributions)
    connection.execute(
        insert(rounds).values(
            round=record.round,
            hash=entry.hash,
            term=min(record.term, MAX_INTEGER),
            sequencer=numbers[entry.signed.signer],
            time_seconds=record.time_seconds,
            tokens=tokens,
            total_tokens=(before or 0) + tokens,
            loss=sum(item.mean_loss * item.tokens for _, item in entry.contributions) / tokens if tokens else None,
            contributions=len(entry.contributions),
            refused=len(record.refused),
            payload_bytes=sum(item.payload_bytes for _, item in entry.contributions),
            deadline_seconds=record.deadline_seconds,
            final=record.final,
        )
    )
    _add_contributions(connection, entry, numbers)
    _add_refusals(connection, entry, numbers)
    _credit(connection, entry, numbers)
    _credit_teams(connection, entry, numbers)
    for verdict in entry.verdicts:
        _judge(connection, verdict, entry.round)


def _add_contributions(connection: Connection, entry: Entry, numbers: dict[bytes, int]) -> None:
    rows = [
        {
            "round": entry.round,
            "peer": numbers[signer],
            "tokens": item.tokens,
            "inner_steps": item.inner_steps,
            "mean_loss": item.mean_loss,
            "norm": norm,
            "codec": item.codec,
            "payload_bytes": item.payload_bytes,
            "train_seconds": item.train_seconds,
            "private_data": text(item.private_data),
            "team": text(item.team),
        }
        for (signer, item), norm in zip(entry.contributions, entry.norms, strict=True)
    ]
    if rows:
        connection.execute(insert(contributions), rows)


def _add_refusals(connection: Connection, entry: Entry, numbers: dict[bytes, int]) -> None:
    rows = [
        {
            "round": entry.round,
            "position": position,
            "peer": numbers[item.peer],
            "tokens": min(item.tokens, MAX_INTEGER),
            "reason": text(item.reason),
        }
        for position, item in enumerate(entry.record.refused)
    ]
    if rows:
        connection.execute(insert(refusals), rows)


def _credit(connection: Connection, entry: Entry, numbers: dict[bytes, int]) -> None:
    _open_accounts(connection, numbers.values())
    changes = {number: {"p": number, "t": 0, "c": 0, "r": 0, "s": 0} for number in numbers.values()}
    for signer, item in entry.contributions:
        changes[numbers[signer]]["t"] += item.tokens
        changes[numbers[signer]]["c"] += 1
    for refused in entry.record.refused:
        changes[numbers[refused.peer]]["r"] += 1
    if entry.round:
        changes[numbers[entry.signed.signer]]["s"] += 1
    connection.execute(
        update(accounts)
        .where(accounts.c.peer == bindparam("p"))
        .values(
            credit_tokens=accounts.c.credit_tokens + bindparam("t"),
            contributions=accounts.c.contributions + bindparam("c"),
            refused=accounts.c.refused + bindparam("r"),
            rounds_sequenced=accounts.c.rounds_sequenced + bindparam("s"),
        ),
        list(changes.values()),
    )
    contributors = [numbers[signer] for signer, _ in entry.contributions]
    if contributors:
        mine = accounts.c.peer.in_(contributors)
        connection.execute(update(accounts).where(mine, accounts.c.first_round == 0).values(first_round=entry.round))
        connection.execute(update(accounts).where(mine).values(last_round=entry.round))


def _credit_teams(connection: Connection, entry: Entry, numbers: dict[bytes, int]) -> None:
    for signer, item in entry.contributions:
        number, team = numbers[signer], text(item.team)
        connection.execute(update(peers).where(peers.c.number == number).values(name=text(item.name), team=team))
        done = connection.execute(
            update(team_credit)
            .where(team_credit.c.team == team, team_credit.c.peer == number)
            .values(
                credit_tokens=team_credit.c.credit_tokens + item.tokens,
                contributions=team_credit.c.contributions + 1,
            )
        )
        if done.rowcount == 0:
            row = {"team": team, "peer": number, "credit_tokens": item.tokens, "contributions": 1}
            connection.execute(insert(team_credit).values(row))


def _judge(connection: Connection, verdict: log_pb2.Verdict, round_: int) -> None:
    number = number_peers(connection, [verdict.peer])[verdict.peer]
    if verdict.round:
        its = (contributions.c.round == verdict.round, contributions.c.peer == number)
        connection.execute(update(contributions).where(*its).values(voided_in=round_))
        recount(connection, [number])


def _open_accounts(connection: Connection, numbers: Iterable[int]) -> None:
    wanted = set(numbers)
    there = set(connection.execute(select(accounts.c.peer).where(accounts.c.peer.in_(wanted))).scalars())
    if missing := wanted - there:
        empty = {column.name: 0 for column in accounts.c}
        connection.execute(insert(accounts), [{**empty, "peer": number} for number in sorted(missing)])


def drop_above(connection: Connection, round_: int) -> None:
    """Forget what the log says no more: everything above `round_`."""
    if not connection.execute(select(rounds.c.round).where(rounds.c.round > round_).limit(1)).first():
        return
    touched: set[int] = set()
    for table, column in (
        (contributions, contributions.c.peer),
        (refusals, refusals.c.peer),
        (rounds, rounds.c.sequencer),
    ):
        touched |= set(connection.execute(select(column).where(table.c.round > round_).distinct()).scalars())
        connection.execute(delete(table).where(table.c.round > round_))
    voided = contributions.c.voided_in > round_
    touched |= set(connection.execute(select(contributions.c.peer).where(voided).distinct()).scalars())
    connection.execute(update(contributions).where(voided).values(voided_in=None))
    recount(connection, touched)


def recount(connection: Connection, numbers: Iterable[int]) -> None:
    """Accounts of these peers from the tables that they sum up; one without anything left is closed."""
    for number in numbers:
        mine = contributions.c.peer == number
        tokens, stands = contributions.c.tokens, contributions.c.voided_in.is_(None)
        credit, voided, count, first, last = connection.execute(
            select(
                func.coalesce(func.sum(tokens).filter(stands), 0),
                func.coalesce(func.sum(tokens).filter(~stands), 0),
                func.count(),
                func.coalesce(func.min(contributions.c.round), 0),
                func.coalesce(func.max(contributions.c.round), 0),
            ).where(mine)
        ).one()
        refused = _count(connection, select(func.count()).select_from(refusals).where(refusals.c.peer == number))
        sequenced = _count(
            connection,
            select(func.count()).select_from(rounds).where(rounds.c.sequencer == number, rounds.c.round > 0),
        )
        connection.execute(
            update(accounts)
            .where(accounts.c.peer == number)
            .values(
                credit_tokens=int(credit),
                voided_tokens=int(voided),
                contributions=count,
                refused=refused,
                rounds_sequenced=sequenced,
                first_round=first,
                last_round=last,
            )
        )
        connection.execute(delete(team_credit).where(team_credit.c.peer == number))
        by_team = select(
            contributions.c.team,
            contributions.c.peer,
            func.coalesce(func.sum(tokens).filter(stands), 0),
            func.count(),
        ).where(mine)
        connection.execute(
            insert(team_credit).from_select(
                ["team", "peer", "credit_tokens", "contributions"],
                by_team.group_by(contributions.c.team, contributions.c.peer),
            )
        )


def _count(connection: Connection, question: object) -> int:
    return int(connection.execute(question).scalar_one())  # type: ignore[call-overload]
