"""The store: one contract, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, delete, select, update
from sqlalchemy.exc import OperationalError

from coordinator.rebuild_ledger import rebuild_ledger
from coordinator.store import Store, access, fold, history, open_store, queries
from coordinator.store.migrations import STEPS, migrate
from coordinator.store.schema import accounts, contributions, meta
from peer.errors import Refused, UnreachableError, UsageError
from peer.identity import Identity, PeerId
from tests.grown_logs import ADA, COORDINATOR, GRACE, grow, verdict
from tests.postgres import PostgresServer, postgres_server
from tests.small_run import start_log

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


def credit_in(store: Store) -> dict[bytes, int]:
    with store.engine.begin() as connection:
        found = queries.leaderboard(connection, size=1000)
    return {PeerId.parse(item.peer_id).public_key: item.credit_tokens for item in found if item.credit_tokens}


async def test_the_ledger_is_the_fold_of_the_log(store: Store) -> None:
    """Credit, counts and losses in the tables are those of the log's own accounts, peer by peer."""
    log = start_log(COORDINATOR)
    grow(log, (ADA, 4), (GRACE, 2), loss=4.0)
    grow(log, (GRACE, 3), refused=(ADA,), loss=3.0)
    assert (await store.write(fold.follow, log)).complete
    assert credit_in(store) == log.accounts.credit
    ada = await store.read(queries.account, str(ADA.peer_id))
    assert ada is not None and (ada.contributions, ada.refused, ada.first_round, ada.last_round) == (1, 1, 1, 1)
    assert [(it.round, it.loss) for it in await store.read(queries.rounds_page)] == [(2, 3.0), (1, 4.0), (0, None)]
    page = await store.read(queries.ledger_page)
    assert {it.peer_id: page.last_refusals.get(it.number) for it in page.accounts} == {
        str(ADA.peer_id): "round 2: it is odd",
        str(GRACE.peer_id): None,
    }
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


async def test_verdicts_and_teams_are_in_the_ledger_as_in_the_fold(store: Store) -> None:
    """Voided, pending and team credit in the tables are the log's; a rollback behind the verdict brings credit back."""
    log, other = start_log(COORDINATOR), start_log(COORDINATOR)
    for branch in (log, other):
        grow(branch, (ADA, 4), (GRACE, 2), team="lovelace")
        grow(branch, (ADA, 3))
    grow(log, (GRACE, 1), verdicts=[verdict(log, ADA, 1)])
    grow(other, (GRACE, 1))
    for branch in (log, other):
        await store.write(fold.follow, branch)
        assert credit_in(store) == branch.accounts.credit
        page = await store.read(queries.ledger_page)
        assert page.total_tokens == sum(branch.accounts.credit.values())
        for item in page.accounts:
            key = PeerId.parse(item.peer_id).public_key
            assert item.voided_tokens == branch.accounts.peers[key].voided_tokens
            assert page.pending.get(item.number, 0) == branch.accounts.pending_tokens(key)
        assert {team.team: (team.credit_tokens, team.peers) for team in await store.read(queries.teams_page)} == {
            name: (team.credit_tokens, len(team.peers)) for name, team in branch.accounts.teams.items()
        }
    (whole,) = [await store.read(queries.teams_page, None, 10)]
    first = await store.read(queries.teams_page, None, 1)
    rest = await store.read(queries.teams_page, queries.TeamRank(first[0].credit_tokens, first[0].team), 1)
    assert [*first, *rest] == whole


async def test_an_invitation_admits_as_many_keys_as_it_says(store: Store) -> None:
    """A key may redeem again; one more key is refused, and so is everybody once it expired or was taken back."""
    for name, uses, expires in (("two", 2, None), ("old", 1, 50.0), ("back", 1, None)):
        await store.write(access.add_invite, name.encode(), uses, 10.0, expires, name)
    for peer in ("a", "b", "a"):
        await store.write(access.redeem, b"two", peer, 20.0)
    await store.write(access.revoke_invite, 3)
    for token, reason in ((b"two", "used up"), (b"old", "expired"), (b"back", "taken back"), (b"none", "no such")):
        with pytest.raises(Refused, match=reason):
            await store.write(access.redeem, token, "c", 60.0)
    found = await store.read(access.invites_page)
    assert [(it.note, it.used, it.admitted) for it in found] == [
        ("back", 0, ()),
        ("old", 0, ()),
        ("two", 2, ("a", "b")),
    ]


async def test_a_ledger_that_was_tampered_with_is_folded_again(store: Store, tmp_path: Path) -> None:
    """The rebuild names every row that differed, and afterwards the ledger is the fold."""
    log = start_log(COORDINATOR)
    grow(log, (ADA, 4), (GRACE, 2))
    grow(log, (ADA, 1))
    await store.write(fold.follow, log)
    url = store.engine.url.render_as_string(hide_password=False)
    claim(store, log.run_id)
    assert rebuild_ledger(log, tmp_path, url) == []
    with store.writing() as connection:
        connection.execute(update(accounts).values(credit_tokens=1_000_000))
        connection.execute(delete(contributions).where(contributions.c.round == 2))
    lines = rebuild_ledger(log, tmp_path, url)
    assert len(lines) == 4 and "was missing" in " ".join(lines) and "credit_tokens was 1000000" in " ".join(lines)
    assert credit_in(store) == log.accounts.credit


def claim(store: Store, run_id: bytes) -> None:
    with store.writing() as connection:
        connection.execute(update(meta).where(meta.c.key == "run_id").values(value=run_id.hex()))


def test_steps_bring_an_older_database_up(url: str) -> None:
    """Each step runs once, in order; a database from the future is refused."""
    open_store(url, RUN_ID).close()
    done: list[int] = []
    steps = (*STEPS, lambda connection: done.append(1), lambda connection: done.append(2))
    with open_store(url, RUN_ID) as store:
        for expected in (2, 0):
            with store.writing() as connection:
                assert migrate(connection, steps) == expected
        assert done == [1, 2]
    with pytest.raises(UsageError, match="update commonweights"):
        open_store(url, RUN_ID)


async def test_a_database_that_goes_away_stops_nobody(url: str) -> None:
    """What was put while it was away is written when it is back; who waits for an answer is told to try again."""
    with open_store(url, RUN_ID) as store:
        away = True

        def work(connection: Connection) -> None:
            if away:
                raise OperationalError("the database is away", None, Exception("gone"))
            history.add_incident(connection, 1.0, "note", 1, "back again")

        store.put(work)
        with pytest.raises(UnreachableError):
            async with asyncio.timeout(20):
                while True:
                    await store.read(work)
        away = False
        async with asyncio.timeout(20):
            while not await store.read(queries.incidents_page):
                await asyncio.sleep(0.05)


async def test_a_long_log_is_followed_in_pieces(store: Store) -> None:
    """Each transaction folds a bounded number of records; the last one says that the head is reached."""
    log = start_log(COORDINATOR)
    for _ in range(5):
        grow(log, (ADA, 1))
    answers = [(await store.write(fold.follow, log, 2)).complete for _ in range(4)]
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
    assert ranks == await store.read(queries.leaderboard, None, 100) and len(ranks) == 7
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
    """Sightings add up, spans and round times come back."""
    key = ADA.peer_id.public_key
    log = start_log(COORDINATOR)
    grow(log, (ADA, 1))
    await store.write(fold.follow, log)
    for seen in (10.0, 15.0):
        await store.write(history.see_peers, [history.Sighting(key, "ada", "lovelace", "cpu", seen, 5.0, 100, 10)])
    await store.write(history.add_spans, [history.Span(1, key, "training", 1.0, 2.0)])
    await store.write(history.time_round, 1, "opened", 1.0)
    await store.write(history.time_round, 1, "closing", 2.5)
    ada = await store.read(queries.account, str(ADA.peer_id))
    assert ada is not None and (ada.name, ada.team, ada.first_seen, ada.last_seen) == ("ada", "lovelace", 10.0, 15.0)
    assert ada.uptime_seconds == 10.0 and ada.bytes_sent == 200
    assert [(it.phase, it.name) for it in await store.read(queries.waterfall)] == [("training", "ada")]
    newest, _ = await store.read(queries.rounds_page)
    assert (newest.opened, newest.closing, newest.applied) == (1.0, 2.5, None)


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
