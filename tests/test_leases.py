"""The lease book: no position is ever held twice, merged twice or lost."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from peer.rounds.leases import MAX_FRAGMENTS, LeaseBook
from peer.rounds.ranges import Ranges

PEERS = [b"a" * 32, b"b" * 32, b"c" * 32]
peers = st.sampled_from(PEERS)


class Leasing(RuleBasedStateMachine):
    """Any order of grants, contributions, expiries, farewells and restarts, with peers that remember what they hold."""

    def __init__(self) -> None:
        super().__init__()
        self.book = LeaseBook()
        self.accepted = Ranges()
        self.now = 0.0
        self.claims = {peer: Ranges() for peer in PEERS}  # what each peer believes it holds
        self.offered = {peer: Ranges() for peer in PEERS}  # contributed to the open round

    @rule(peer=peers, count=st.integers(0, 20), lost=st.booleans())
    def grant(self, peer: bytes, count: int, lost: bool) -> None:
        self.book, granted = self.book.grant(peer, count, self.now, lease_seconds=10)
        assert len(granted) == count and not granted & self.accepted
        if not lost:  # else the answer never reached the peer
            self.claims[peer] |= granted

    @rule(peer=peers, count=st.integers(1, 12))
    def contribute(self, peer: bytes, count: int) -> None:
        positions = self.claims[peer].first(count)
        if not positions or self.offered[peer] or self.book.refusal(peer, positions):
            return
        self.offered[peer] = positions
        self.book = self.book.pin(peer, positions)

    @rule(merged=st.sets(peers))
    def publish(self, merged: set[bytes]) -> None:
        """Whatever became of leases and holders since, a record may hold every contribution to the round."""
        parts = [self.offered[peer] for peer in PEERS]
        assert sum(map(len, parts)) == len(Ranges.of(pair for part in parts for pair in part)), "merged twice"
        assert not any(part & self.accepted for part in parts), "merged already"
        for peer, positions in self.offered.items():
            if peer in merged:
                self.book = self.book.accept(peer, positions)
                self.accepted |= positions
                self.claims[peer] -= positions
            else:
                self.book = self.book.unpin(peer)
            self.offered[peer] = Ranges()

    @rule(peer=peers)
    def present(self, peer: bytes) -> None:
        self.book, dropped = self.book.present(
            peer, self.claims[peer], self.accepted, self.now, lease_seconds=10, grace_seconds=3, most=100
        )
        self.claims[peer] -= dropped
        assert not self.claims[peer] - self.book.positions(peer), "a claim that is neither granted nor revoked"
        assert len(self.book.positions(peer)) <= 100 + 20

    @rule(seconds=st.floats(0, 8))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.book, _ = self.book.expire(self.now)

    @rule(peer=peers, forgets=st.booleans())
    def leave(self, peer: bytes, forgets: bool) -> None:
        self.book = self.book.release(peer)
        if forgets:
            self.claims[peer] = Ranges()

    @rule()
    def restart(self) -> None:
        """The sequencer knows no more than the log: the cursor of the last record and what is merged."""
        self.offered = {peer: Ranges() for peer in PEERS}
        self.book = LeaseBook.resume(self.book.cursor, self.accepted)

    @rule(gap=st.integers(0, 50))
    def take_over(self, gap: int) -> None:
        """Another node goes on, some way ahead, without knowing more than the log either."""
        self.offered = {peer: Ranges() for peer in PEERS}
        self.book = LeaseBook.take_over(self.book.cursor, self.accepted, gap, self.now + 20)

    @invariant()
    def every_position_is_in_one_place(self) -> None:
        held = [lease.positions for lease in self.book.held.values()]
        parts = [*held, self.book.returned, self.book.withheld, self.accepted]
        assert sum(map(len, parts)) == self.book.cursor
        union = Ranges.of(pair for part in parts for pair in part)
        assert union == Ranges.of([(0, self.book.cursor)])


TestLeasing = Leasing.TestCase
TestLeasing.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)


def test_returned_positions_are_leased_first() -> None:
    """What a lost peer held is trained on before anything new."""
    book, first = LeaseBook().grant(PEERS[0], 8, 0.0, 10)
    book, _ = book.expire(11.0)
    book, second = book.grant(PEERS[1], 5, 11.0, 10)
    assert second == first.first(5)
    book, third = book.grant(PEERS[1], 5, 11.0, 10)
    assert list(third) == [(5, 10)]


def test_a_stranger_may_not_contribute_what_another_peer_holds() -> None:
    """The refusal names the position."""
    book, _ = LeaseBook().grant(PEERS[0], 8, 0.0, 10)
    assert "position" in book.refusal(PEERS[1], Ranges.of([(2, 4)]))
    assert book.refusal(PEERS[0], Ranges.of([(2, 4)])) == ""


def test_claims_are_believed_up_to_what_a_peer_may_hold() -> None:
    """After a restart a peer presents its leases; who claims the whole future gets its share of it and no more."""
    book = LeaseBook.resume(100, Ranges.of([(0, 50)]))
    book, dropped = book.present(PEERS[0], Ranges.of([(60, 1 << 60)]), Ranges(), 0.0, 10, 3, most=40)
    assert list(book.positions(PEERS[0])) == [(60, 100)]
    assert dropped.pairs == ((100, 1 << 60),)
    book, dropped = book.present(PEERS[1], Ranges.of([(1 << 59, (1 << 59) + 10)]), Ranges(), 0.0, 10, 3, most=40)
    assert dropped and book.cursor == 100


def test_a_grant_of_scattered_leftovers_is_short_enough_for_a_header() -> None:
    """Somebody gave back every other position: the next peer gets some of them, and new ones for the rest."""
    book = LeaseBook(cursor=1000, returned=Ranges.of((index, index + 1) for index in range(0, 1000, 2)))
    book, granted = book.grant(PEERS[0], 400, 0.0, 10)
    assert len(granted) == 400 and len(granted.pairs) <= MAX_FRAGMENTS + 1


def test_what_the_other_side_of_a_cut_may_hold_is_left_alone_for_a_while() -> None:
    """Who takes over leases far ahead at first; what it left open, and nobody presented, follows when time is up."""
    book = LeaseBook.take_over(100, Ranges.of([(0, 60)]), gap=400, until=300.0)
    book, first = book.grant(PEERS[0], 10, 0.0, 1000)
    assert list(first) == [(500, 510)]
    book, dropped = book.present(PEERS[1], Ranges.of([(70, 80)]), Ranges(), 1.0, 1000, 3, most=40)
    assert not dropped and list(book.positions(PEERS[1])) == [(70, 80)]
    book, _ = book.expire(299.0)
    assert not book.returned
    book, _ = book.expire(300.0)
    book, later = book.grant(PEERS[2], 30, 300.0, 1000)
    assert list(later) == [(60, 70), (80, 100)]


def test_what_a_lost_answer_leased_comes_back_however_often_the_peer_gets_more() -> None:
    """A peer that trains fast is given something at every heartbeat; what it never heard of must not stay its own."""
    book, lost = LeaseBook().grant(PEERS[0], 8, 0.0, 100)
    claimed = Ranges()
    for second in range(1, 12):
        book, _ = book.present(PEERS[0], claimed, Ranges(), float(second), 100, 5, most=100)
        book, more = book.grant(PEERS[0], 2, float(second), 100)
        claimed |= more
    assert book.positions(PEERS[0]) == claimed and not lost - claimed - book.returned
