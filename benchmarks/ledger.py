"""How long the ledger takes to answer with a million contributions: `python -m benchmarks.ledger`.

Makes a SQLite database of that size once (`--database`), then asks everything that the API and the page ask of the
ledger, at random places, and prints p50 and p95 of each; the slowest decides the exit code. `--update` writes the table
into docs/accounting.md.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from sqlalchemy import Connection, insert, text

from benchmarks.tables import table, write_between_markers
from coordinator.api.paging import token
from coordinator.api.server import Served, served
from coordinator.store import Store, open_store, queries
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
from peer.client import RunClient
from peer.identity import PeerId
from peer.ticket import Ticket
from protos import coordinator_pb2

RUN_ID = bytes(32)
TOKENS = 4096  # of one contribution
TEAMS = 50
LIMIT_SECONDS = 0.1
DOCUMENT = Path(__file__).parent.parent / "docs" / "accounting.md"


def peer_id(number: int) -> str:
    return str(PeerId(number.to_bytes(32, "big")))


def fill(connection: Connection, count: int, per_round: int, known: int) -> None:
    """A ledger as a long run would have left it: `known` peers, of whom `per_round` contribute to each round."""
    connection.execute(
        insert(peers),
        [
            {"number": it, "peer_id": peer_id(it), "name": f"peer {it}", "team": f"team {it % TEAMS}", "last_seen": 1e9}
            for it in range(1, known + 1)
        ],
    )
    last = count // per_round
    for start in range(0, last + 1, 500):
        _fill_rounds(connection, range(start, min(start + 500, last + 1)), per_round, known)
    connection.execute(text(_ACCOUNTS))
    connection.execute(text(_TEAMS))
    connection.execute(insert(samples), list(_samples(last)))
    connection.execute(text("ANALYZE"))


def _fill_rounds(connection: Connection, numbers: range, per_round: int, known: int) -> None:
    chance = random.Random(numbers.start)

    def anybody() -> int:
        return chance.randint(1, known)

    rows = {
        rounds: [_round(it, per_round) for it in numbers],
        contributions: [
            _contribution(it, peer) for it in numbers if it for peer in chance.sample(range(1, known + 1), per_round)
        ],
        refusals: [{"round": it, "position": 0, "peer": anybody(), "tokens": 1, "reason": "late"} for it in numbers],
        round_times: [{"round": it, "opened": it * 60.0, "published": it * 60.0 + 59} for it in numbers],
        incidents: [
            {"time_seconds": it * 60.0, "kind": "round", "round": it, "text": "a line", "peer": anybody()}
            for it in numbers
        ],
        spans: [
            {"round": it, "peer": anybody(), "phase": "training", "started": it * 60.0, "ended": it * 60.0 + 50}
            for it in numbers
        ],
    }
    for into, values in rows.items():
        connection.execute(insert(into), values)


def _round(number: int, per_round: int) -> dict[str, Any]:
    held = per_round if number else 0
    return {
        "round": number, "hash": number.to_bytes(32, "big"), "term": 0, "sequencer": 1, "time_seconds": number * 60.0,
        "tokens": held * TOKENS, "total_tokens": number * per_round * TOKENS, "loss": 3.0 if number else None,
        "contributions": held, "refused": 1, "payload_bytes": 1, "deadline_seconds": 1.0, "final": False,
    }  # fmt: skip


def _contribution(number: int, peer: int) -> dict[str, Any]:
    return {
        "round": number, "peer": peer, "tokens": TOKENS, "inner_steps": 8, "mean_loss": 3.0, "norm": 1.0,
        "codec": "lowbit2", "payload_bytes": 1, "train_seconds": 9.0, "private_data": "",
        "team": f"team {peer % TEAMS}", "voided_in": None,
    }  # fmt: skip


def _samples(last: int) -> Iterator[dict[str, Any]]:
    for moment in range(min(100_000, 12 * last)):
        yield {
            "time_seconds": moment * 5.0, "round": 1, "tokens": moment, "tokens_per_second": 1.0, "peers": 9,
            "bytes_sent": 1, "bytes_received": 1,
        }  # fmt: skip


_ACCOUNTS = f"""
INSERT INTO {accounts.name} (peer, credit_tokens, voided_tokens, contributions, refused, rounds_sequenced, first_round,
last_round) SELECT peer, sum(tokens), 0, count(*), 1, 0, min(round), max(round) FROM {contributions.name} GROUP BY peer
"""
_TEAMS = f"""
INSERT INTO {team_credit.name} (team, peer, credit_tokens, contributions)
SELECT team, peer, sum(tokens), count(*) FROM {contributions.name} GROUP BY team, peer
"""


def calls(run: RunClient, store: Store, last: int, known: int) -> dict[str, Callable[[], Awaitable[object]]]:
    """What is asked, each time somewhere else."""
    chance = random.Random(0)

    def anybody() -> str:
        return peer_id(chance.randint(1, known))

    def ask(method: str, request: Any) -> Awaitable[object]:
        return run.call(method, request)

    def deep() -> str:
        return token(chance.randint(1, 2 * last * TOKENS * 100 // known), chance.randint(1, known))

    return {
        "GetLedger, first page": lambda: ask("GetLedger", coordinator_pb2.GetLedgerRequest()),
        "GetLedger, anywhere": lambda: ask("GetLedger", coordinator_pb2.GetLedgerRequest(page_token=deep())),
        "GetLedger, 1000 rows": lambda: ask("GetLedger", coordinator_pb2.GetLedgerRequest(page_size=1000)),
        "GetTeams": lambda: ask("GetTeams", coordinator_pb2.GetTeamsRequest()),
        "ListRounds, anywhere": lambda: ask(
            "ListRounds", coordinator_pb2.ListRoundsRequest(page_token=token(chance.randint(1, last)))
        ),
        "ListContributions of a peer": lambda: ask(
            "ListContributions", coordinator_pb2.ListContributionsRequest(peer_id=anybody())
        ),
        "ListContributions to a round": lambda: ask(
            "ListContributions", coordinator_pb2.ListContributionsRequest(round=chance.randint(1, last))
        ),
        "account of a peer": lambda: store.read(queries.ledger_of, anybody()),
        "refusals of a peer": lambda: store.read(queries.refusals_of, anybody()),
        "losses": lambda: store.read(queries.losses),
        "samples": lambda: store.read(queries.samples_since, 0.0),
        "waterfall": lambda: store.read(queries.waterfall),
        "incidents": lambda: store.read(queries.incidents_page, chance.randint(1, last)),
    }


async def measure(store: Store, last: int, known: int, repeats: int) -> list[tuple[str, float, float]]:
    """(what, p50, p95) in seconds."""
    run = SimpleNamespace(log=SimpleNamespace(run_id=RUN_ID), store=store, status=coordinator_pb2.StatusReply)
    found = []
    async with served(cast("Served", run), "127.0.0.1", 0, "a-token-that-is-not-used") as port:
        ticket = Ticket(RUN_ID, PeerId(RUN_ID), (f"127.0.0.1:{port}",), ())
        async with RunClient(ticket) as client:
            for what, call in calls(client, store, last, known).items():
                times = []
                for _ in range(repeats):
                    started = time.perf_counter()
                    await call()
                    times.append(time.perf_counter() - started)
                times.sort()
                found.append((what, times[len(times) // 2], times[int(0.95 * len(times))]))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contributions", type=int, default=1_000_000)
    parser.add_argument("--per-round", type=int, default=100)
    parser.add_argument("--peers", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--database", type=Path, default=Path(tempfile.gettempdir()) / "ledger-benchmark.sqlite")
    parser.add_argument("--update", action="store_true", help="write the table into docs/accounting.md")
    given = parser.parse_args()
    made = given.database.exists()
    with open_store(f"sqlite:///{given.database}", RUN_ID) as store:
        if not made:
            with store.writing() as connection:
                fill(connection, given.contributions, given.per_round, given.peers)
        last = given.contributions // given.per_round
        found = asyncio.run(measure(store, last, given.peers, given.repeats))
    rows = [(what, f"{1e3 * p50:.1f}", f"{1e3 * p95:.1f}") for what, p50, p95 in found]
    size = f"{given.contributions:,} contributions of {given.peers:,} peers in {last:,} rounds, SQLite"
    report = f"{size}; milliseconds, the calls over gRPC on loopback:\n\n{table(('', 'p50', 'p95'), rows)}"
    print(report)
    if given.update:
        write_between_markers(DOCUMENT, report)
    return 0 if max(p95 for _, _, p95 in found) < LIMIT_SECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
