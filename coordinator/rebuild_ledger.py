"""`ledger --rebuild`: the database's ledger is a cache of the log, and here it is folded once more.

Safe beside a running coordinator: one transaction, after which its next round follows as if nothing had happened.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table, delete, select

from coordinator.store import fold, open_store
from coordinator.store.database import default_url
from coordinator.store.schema import accounts, contributions, refusals, rounds, team_credit
from peer.log.chain import Log

TABLES = (accounts, team_credit, contributions, refusals, rounds)  # in an order in which they may be emptied
MOST_SHOWN = 20  # differences of one table


def rebuild_ledger(log: Log, folder: Path, database: str = "") -> list[str]:
    """What differed between the database's ledger and the log's, one line each; none afterwards.

    Raises:
        UsageError: the database cannot be opened, or is another run's.
    """
    with open_store(database or default_url(folder), log.run_id) as store, store.writing() as connection:
        before = {table: _rows(connection, table) for table in TABLES}
        for table in TABLES:
            connection.execute(delete(table))
        while not fold.follow(connection, log).complete:
            pass
        return [line for table in TABLES for line in _differences(table, before[table], _rows(connection, table))]


def _rows(connection: Connection, table: Table) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    """By primary key."""
    found: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    for row in connection.execute(select(table)):
        found[tuple(row._mapping[column] for column in table.primary_key)] = tuple(row)
    return found


def _differences(table: Table, before: dict[tuple[Any, ...], Any], after: dict[tuple[Any, ...], Any]) -> list[str]:
    names = [column.name for column in table.c]
    lines = []
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key), after.get(key)
        if old == new:
            continue
        where = (
            f"{table.name} {', '.join(f'{c.name} {value}' for c, value in zip(table.primary_key, key, strict=True))}"
        )
        if old is None or new is None:
            lines.append(f"{where}: {'was missing' if old is None else 'is not in the log'}")
        else:
            changed = [f"{n} was {a}, is {b}" for n, a, b in zip(names, old, new, strict=True) if a != b]
            lines.append(f"{where}: {'; '.join(changed)}")
    rest = len(lines) - MOST_SHOWN
    return lines if rest <= 0 else [*lines[:MOST_SHOWN], f"{table.name}: and {rest} more"]
