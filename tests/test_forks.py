"""Two chains of one run: which one wins, and what becomes of a folder that changes over."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peer.durable import write_durably
from peer.errors import CommonweightsError
from peer.identity import Identity
from peer.log import chain
from peer.log.chain import Log, common
from peer.log.forks import weight, wins
from peer.log.terms import Terms
from protos import log_pb2
from protos.signing import sign
from tests.small_run import contribution, start_log

COORDINATOR = Identity.new()
OLD = sorted((Identity.new() for _ in range(2)), key=lambda identity: identity.peer_id.public_key)
NEW = Identity.new()  # without credit where the chains part
GENESIS = start_log(COORDINATOR, round={"target_tokens": 32})

Round = list[tuple[Identity, int]]  # who contributed how many sequences


def extend(log: Log, contributors: Round, term: int, signer: Identity = COORDINATOR) -> None:
    """One more record; each position is used once, wherever the chain goes."""
    start, accepted = log.accounts.data_cursor, []
    for number, (peer, count) in enumerate(sorted(contributors, key=lambda item: item[0].peer_id.public_key)):
        item = contribution(log, bytes([number + 1]) * 32, 100, consumed=[(start, start + count)])
        accepted.append(log_pb2.Accepted(contribution=sign(item, peer.private_key), norm=1.0))
        start += count
    record = log_pb2.Record(
        run_id=log.run_id,
        round=log.head.round + 1,
        term=term,
        previous_hash=log.head.hash,
        time_seconds=term,
        base_digest=log.origin.genesis.state_digest,
        accepted=accepted,
        data_cursor=start,
        deadline_seconds=1.0,
    )
    log.append(sign(record, signer.private_key))


def shared_past() -> Log:
    log = GENESIS.branch(0)
    extend(log, [(OLD[0], 20), (OLD[1], 10)], term=1)  # 32 tokens each
    return log


def chain_of(rounds: list[Round], term: int) -> Log:
    log = shared_past()
    log = log.branch(1)
    for contributors in rounds:
        extend(log, contributors, term)
    return log


rounds = st.lists(
    st.dictionaries(st.sampled_from(range(3)), st.integers(1, 30), max_size=3).map(
        lambda counts: [((*OLD, NEW)[who], count) for who, count in counts.items()]
    ),
    max_size=3,
)
PAST = shared_past()


@settings(max_examples=60, deadline=None)
@given(rounds, rounds, rounds)
def test_everybody_comes_to_the_same_chain(one: list[Round], two: list[Round], three: list[Round]) -> None:
    """Whatever two chains hold, exactly one wins unless they are the same; among three there is no circle."""
    logs = [PAST.branch(1) for _ in range(3)]
    for term, (log, rounds_) in enumerate(zip(logs, (one, two, three), strict=True), start=2):
        for contributors in rounds_:
            extend(log, contributors, term)
    for a in logs:
        for b in logs:
            same = a.head.hash == b.head.hash
            assert wins(a, b) + wins(b, a) == (0 if same else 1)
    best = [a for a in logs if not any(wins(b, a) for b in logs)]
    assert best and all(log.head.hash == best[0].head.hash for log in best)


def test_more_accepted_tokens_win() -> None:
    """Not more rounds, not the higher term: tokens, of those who had credit."""
    few, many = chain_of([[(OLD[0], 2)], [(OLD[0], 2)]], term=9), chain_of([[(OLD[1], 5)]], term=2)
    assert wins(many, few) and not wins(few, many)


def test_a_crowd_of_fresh_keys_rewrites_nothing() -> None:
    """A chain of strangers' enormous claims loses against one round of somebody who was there before."""
    honest, forged = chain_of([[(OLD[1], 1)]], term=2), chain_of([[(NEW, 10_000)]], term=9)
    assert wins(honest, forged) and not wins(forged, honest)


def test_one_old_peer_alone_does_not_outweigh_the_others() -> None:
    """Of nobody more tokens count than it had credit where the chains part, however much it claims; near the start of
    a run, where nobody has much, some rounds' worth do."""
    liar = chain_of([[(OLD[1], 10_000)]], term=9)
    others = chain_of([[(OLD[0], 11)]], term=2)
    assert wins(others, liar) and not wins(liar, others)
    credit = PAST.accounts.credit
    assert weight(credit, 0, liar.entries[2:])[0] == credit[OLD[1].peer_id.public_key]
    assert weight(credit, 999, liar.entries[2:])[0] == 999 and weight({}, 999, liar.entries[2:])[0] == 0


def test_a_longer_chain_is_simply_followed() -> None:
    """A chain that goes on where ours ends wins, also with an empty round; one that ends earlier never does."""
    short, long = chain_of([], term=2), chain_of([[]], term=2)
    assert wins(long, short) and not wins(short, long)


def test_a_folder_changes_over_and_tells_what_it_gave_up(tmp_path: Path) -> None:
    """The undone records come back oldest first; accounts are those of the new chain; the disk holds it too."""
    log = Log.start(GENESIS.head.signed, tmp_path)
    for entry in chain_of([[(OLD[0], 1)], [(OLD[0], 1)], [(OLD[0], 1)]], term=2).entries[1:]:
        log.append(entry.signed)
    better = log.branch(1)
    extend(better, [(OLD[0], 9), (NEW, 3)], term=7)
    undone = log.adopt(better)
    assert [entry.round for entry in undone] == [2, 3, 4] and common(log.entries, better.entries) == 2
    assert log.accounts == better.accounts and log.head.hash == better.head.hash
    again = Log.load(tmp_path)
    assert again.head.hash == better.head.hash and again.accounts == better.accounts


@pytest.mark.parametrize("writes", range(3))
def test_a_crash_while_changing_over_leaves_a_whole_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """Whatever was not written is missing at the end, and never in the middle."""
    log = Log.start(GENESIS.head.signed, tmp_path)
    for entry in chain_of([[(OLD[0], 1)], [(OLD[0], 1)]], term=2).entries[1:]:
        log.append(entry.signed)
    better = log.branch(1)
    for _ in range(3):
        extend(better, [(OLD[1], 9)], term=7)
    left = [writes]

    def dies(path: Path, data: bytes) -> None:
        if not left[0]:
            raise OSError("power cut")
        left[0] -= 1
        real(path, data)

    real = write_durably
    monkeypatch.setattr(chain, "write_durably", dies)
    with pytest.raises(CommonweightsError):
        log.adopt(better)
    again = Log.load(tmp_path)
    assert again.head.hash == better.entries[1 + writes].hash


def test_every_start_of_leading_has_a_term_of_its_own(tmp_path: Path) -> None:
    """Also when the log lost its end, and when the note is damaged or absurd."""
    terms = [Terms(tmp_path).next(known) for known in (0, 0, 5, 3)]
    assert terms == sorted(set(terms)) and terms[0] > 0
    for nonsense in ("", "x", str(1 << 63)):
        (tmp_path / "term").write_text(nonsense)
        assert terms[-1] < Terms(tmp_path).next(terms[-1]) < terms[-1] + (1 << 20)
