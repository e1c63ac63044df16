"""The lease book: no position is ever held twice, merged twice or lost."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from peer.rounds.leases import LeaseBook
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

    @rule(peer=peers, count=st.integers(0, 20), lost=st.booleans())
    def grant(self, peer: bytes, count: int, lost: bool) -> None:
        self.book, granted = self.book.grant(peer, count, self.now, lease_seconds=10)
        assert len(granted) == count and not granted & self.accepted
        if not lost:  # else the answer never reached the peer
            self.claims[peer] |= granted

    @rule(peer=peers, count=st.integers(1, 12))
    def contribute(self, peer: bytes, count: int) -> None:
        positions = self.claims[peer].first(count)
        if not positions or self.book.refusal(peer, positions):
            return
        assert not positions & self.accepted, "a lease on what is merged already"
        self.book = self.book.accept(peer, positions)
        self.accepted |= positions
        self.claims[peer] -= positions

    @rule(peer=peers)
    def present(self, peer: bytes) -> None:
        self.book, dropped = self.book.present(
            peer, self.claims[peer], self.accepted, self.now, lease_seconds=10, grace_seconds=3
        )
        self.claims[peer] -= dropped
        assert not self.claims[peer] - self.book.positions(peer), "a claim that is neither granted nor revoked"

    @rule(seconds=st.floats(0, 8))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.book, _ = self.book.expire(self.now)

    @rule(peer=peers)
    def leave(self, peer: bytes) -> None:
        self.book = self.book.release(peer)
        self.claims[peer] = Ranges()

    @rule()
    def restart(self) -> None:
        """The sequencer knows no more than the log: the cursor of the last record and what is merged."""
        self.book = LeaseBook.resume(self.book.cursor, self.accepted)

    @invariant()
    def every_position_is_in_one_place(self) -> None:
        held = [lease.positions for lease in self.book.held.values()]
        parts = [*held, self.book.returned, self.accepted]
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
