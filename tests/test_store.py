"""The store: one contract, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from coordinator.store import Store, fold, history, open_store, queries
from coordinator.store.schema import accounts
from peer.errors import UsageError
from peer.identity import Identity, PeerId
from peer.log.chain import Log
from protos import log_pb2
from protos.signing import sign
from tests.postgres import PostgresServer, postgres_server
from tests.small_run import contribution, start_log

RUN_ID = bytes(range(32))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    with postgres_server(tmp_path_factory) as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a fresh, empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'database.sqlite'}"
    server: PostgresServer = request.getfixturevalue("server")
    return server.new_database()


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with open_store(url, RUN_ID) as store:
        yield store


COORDINATOR, ADA, GRACE = (Identity.from_seed(bytes([number]) * 32) for number in (1, 2, 3))


def grow(log: Log, *shares: tuple[Identity, int], refused: tuple[Identity, ...] = (), loss: float = 5.0) -> None:
    """One more round; each of `shares` is a peer and how many sequences it trained on."""
    cursor, accepted = log.accounts.data_cursor, []
    for number, (peer, sequences) in enumerate(shares):
        made = contribution(
            log,
            bytes([log.head.round + 1, number]) * 16,
            100,
            consumed=[(cursor, cursor + sequences)],
            mean_loss=loss,
            base_digest=log.origin.genesis.state_digest,
        )
        cursor += sequences
        accepted.append(log_pb2.Accepted(contribution=sign(made, peer.private_key), norm=1.0))
    accepted.sort(key=lambda item: item.contribution.signer)
    record = log_pb2.Record(
        run_id=log.run_id,
        round=log.head.round + 1,
        term=log.head.record.term,
        previous_hash=log.head.hash,
        time_seconds=100.0 + log.head.round,
        base_digest=log.origin.genesis.state_digest,
        accepted=accepted,
        refused=[
            log_pb2.Refused(peer=peer.peer_id.public_key, payload_hash=bytes(32), tokens=7, reason="it is\0 odd")
            for peer in refused
        ],
        data_cursor=cursor,
        deadline_seconds=1.0,
    )
    log.append(sign(record, COORDINATOR.private_key))


def credit_in(store: Store) -> dict[bytes, int]:
    with store.engine.begin() as connection:
        found = queries.leaderboard(connection, size=1000)
    return {PeerId.parse(item.peer_id).public_key: item.credit_tokens for item in found if item.credit_tokens}


async def test_the_ledger_is_the_fold_of_the_log(store: Store) -> None:
    """Credit, counts and losses in the tables are those of the log's own accounts, peer by peer."""
    log = start_log(COORDINATOR)
    grow(log, (ADA, 4), (GRACE, 2), loss=4.0)
    grow(log, (GRACE, 3), refused=(ADA,), loss=3.0)
    assert await store.write(fold.follow, log)
    assert credit_in(store) == log.accounts.credit
    ada = await store.read(queries.account, str(ADA.peer_id))
    assert ada is not None and (ada.contributions, ada.refused, ada.first_round, ada.last_round) == (1, 1, 1, 1)
    assert [(it.round, it.loss) for it in await store.read(queries.rounds_page)] == [(2, 3.0), (1, 4.0), (0, None)]
    (refusal,) = await store.read(queries.refusals_of, str(ADA.peer_id))
    assert refusal.reason == "it is odd"


async def test_the_ledger_follows_a_log_that_was_rolled_back(store: Store) -> None:
    """Rounds above the common ancestor are forgotten, with their credit, and the other branch is folded in."""
    log, other = start_log(COORDINATOR), start_log(COORDINATOR)
    for branch in (log, other):
        grow(branch, (ADA, 4))
    grow(log, (GRACE, 3), refused=(ADA,))
    grow(log, (GRACE, 1))
    grow(other, (ADA, 1))
    await store.write(fold.follow, log)
    await store.write(fold.follow, other)
    assert credit_in(store) == other.accounts.credit
    with store.engine.begin() as connection:
        counted = {row.peer: tuple(row) for row in connection.execute(select(accounts))}
        fold.recount(connection, list(counted))
        assert counted == {row.peer: tuple(row) for row in connection.execute(select(accounts))}


async def test_a_long_log_is_followed_in_pieces(store: Store) -> None:
    """Each transaction folds a bounded number of records; the last one says that the head is reached."""
    log = start_log(COORDINATOR)
    for _ in range(5):
        grow(log, (ADA, 1))
    answers = [await store.write(fold.follow, log, 2) for _ in range(4)]
    assert answers == [False, False, False, True] and credit_in(store) == log.accounts.credit


async def test_pages_hold_every_row_once(store: Store) -> None:
    """Leaderboard, contributions and incidents, paged by key, are what one long list would be."""
    log = start_log(COORDINATOR)
    everybody = [Identity.from_seed(bytes([number]) * 32) for number in range(10, 17)]
    for share in (1, 2):
        grow(log, *((peer, share) for peer in everybody))
    await store.write(fold.follow, log)
    ranks: list[queries.Account] = []
    while page := await store.read(
        queries.leaderboard, queries.Rank(ranks[-1].credit_tokens, ranks[-1].number) if ranks else None, 3
    ):
        ranks += page
    assert ranks == await store.read(queries.leaderboard, None, 100) and len(ranks) == 8  # and the coordinator
    first, second = [await store.read(queries.contributions_of, ranks[0].peer_id, before, 1) for before in (None, 2)]
    assert [item.round for item in (*first, *second)] == [2, 1]
    for number in range(3):
        store.put(history.add_incident, float(number), "note", number, f"line {number}")
    newest = await store.read(queries.incidents_page, None, 2)
    while not newest or newest[0].text != "line 2":  # what was put is written in order, before a later write
        await store.write(lambda connection: None)
        newest = await store.read(queries.incidents_page, None, 2)
    rest = await store.read(queries.incidents_page, newest[-1].number, 2)
    assert [item.text for item in (*newest, *rest)] == ["line 2", "line 1", "line 0"]


async def test_history_is_kept_as_it_was_seen(store: Store) -> None:
    """Sightings add up, spans and round times come back, an evaluation made again replaces the first."""
    key = ADA.peer_id.public_key
    log = start_log(COORDINATOR)
    grow(log, (ADA, 1))
    await store.write(fold.follow, log)
    for seen in (10.0, 15.0):
        await store.write(history.see_peers, [history.Sighting(key, "ada", "lovelace", "cpu", seen, 5.0, 100, 10)])
    await store.write(history.add_spans, [history.Span(1, key, "training", 1.0, 2.0)])
    await store.write(history.time_round, 1, "opened", 1.0)
    await store.write(history.time_round, 1, "closing", 2.5)
    for loss in (4.0, 3.0):
        await store.write(history.add_evaluation, 1, 20.0, 32, loss, "prompt", "sample")
    ada = await store.read(queries.account, str(ADA.peer_id))
    assert ada is not None and (ada.name, ada.team, ada.first_seen, ada.last_seen) == ("ada", "lovelace", 10.0, 15.0)
    assert ada.uptime_seconds == 10.0 and ada.bytes_sent == 200
    assert [(it.phase, it.name) for it in await store.read(queries.waterfall)] == [("training", "ada")]
    newest, _ = await store.read(queries.rounds_page)
    assert (newest.opened, newest.closing, newest.applied) == (1.0, 2.5, None)
    assert [it.loss for it in await store.read(queries.evaluations_since)] == [3.0]


async def test_old_samples_are_thinned_and_new_ones_kept(store: Store) -> None:
    """Beyond two days one sample in five minutes stays; the chart gets about as many points as it asks for."""
    now = 1e9
    old = [now - history.FINE_SAMPLES_SECONDS - 3600 + 5 * step for step in range(120)]
    for moment in (*old, *(now - 5 * step for step in range(60))):
        await store.write(history.add_sample, history.Sample(moment, 1, 0, 1.0, 2, None, None, 0, 0))
    await store.write(history.thin_samples, now)
    kept = [row.time_seconds for row in await store.read(queries.samples_since, 0.0, 100_000)]
    assert len([moment for moment in kept if moment < now - 3600]) == 3
    assert 50 <= len([moment for moment in kept if moment >= now - 3600]) <= 60
    assert len(await store.read(queries.samples_since, now - 3600, 10)) <= 11


def test_a_database_is_of_one_run(url: str) -> None:
    """Another run's coordinator is turned away, the same one's reopened."""
    for _ in range(2):
        open_store(url, RUN_ID).close()
    with pytest.raises(UsageError, match="--database"):
        open_store(url, bytes(32))


@pytest.mark.parametrize(
    "url_",
    ["nonsense", "mysql://u:hunter2@host/x", "sqlite:////nowhere/at/all/db", "postgresql://u:hunter2@127.0.0.1:1/x"],
)
def test_a_database_that_cannot_be_used_is_named_without_its_password(url_: str) -> None:
    """One line that says --database, and no secret in it."""
    with pytest.raises(UsageError, match="--database") as refused:
        open_store(url_, RUN_ID)
    assert "hunter2" not in str(refused.value) and "\n" not in str(refused.value)
