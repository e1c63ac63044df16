"""The sequencer as a pure state machine: when rounds close, what is merged, and that nothing stops them."""

from dataclasses import replace
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from peer.rounds.leases import LeaseBook
from peer.rounds.ranges import Ranges
from peer.rounds.sequencer import (
    TRAINING,
    Checked,
    Closing,
    Effect,
    Event,
    Fetch,
    Gone,
    Heard,
    Leased,
    Left,
    Offered,
    Pause,
    Publish,
    Refuse,
    Rules,
    Sequencer,
    Submission,
    Tick,
    tick,
)

RULES = Rules(
    target_tokens=1000,
    max_seconds=60.0,
    first_deadline_seconds=10.0,
    deadline_mads=6.0,
    silence_seconds=15.0,
    lease_seconds=120.0,
    heartbeat_seconds=1.0,
    sequence_tokens=10,
    batch_sequences=5,
)
A, B, C = (bytes([letter]) * 32 for letter in b"abc")


class Table:
    """A sequencer with a clock and peers that do as they are told."""

    def __init__(self, **changes: Any) -> None:
        self.now = 100.0
        rules = replace(RULES, **changes)
        self.state = Sequencer(rules=rules, round=1, opened=self.now, leases=LeaseBook())
        self.held: dict[bytes, Ranges] = {}
        self.accepted = Ranges()

    def say(self, event: Event, after: float = 0.0) -> list[Effect]:
        self.now += after
        self.state, effects = tick(self.state, event, self.now)
        for effect in effects:
            if isinstance(effect, Leased):
                self.held[effect.peer] = (self.held.get(effect.peer, Ranges()) | effect.positions) - effect.revoked
            if isinstance(effect, Publish):
                for item in effect.accepted:
                    self.accepted |= item.consumed
                    self.held[item.peer] = self.held.get(item.peer, Ranges()) - item.consumed
        return effects

    def hear(self, peer: bytes, tokens: int = 0, phase: str = TRAINING, speed: float = 100.0) -> list[Effect]:
        held = self.held.get(peer, Ranges())
        return self.say(Heard(peer, self.state.round - 1, tokens, speed, phase, held, 10, self.accepted))

    def offer(self, peer: bytes, sequences: int = 5) -> Submission:
        consumed = self.held[peer].first(sequences)
        return Submission(peer, bytes(31) + peer[:1], len(consumed) * 10, consumed)

    def submit(self, peer: bytes, norm: float = 1.0, sequences: int = 5) -> list[Effect]:
        submission = self.offer(peer, sequences)
        first = self.say(Offered(submission))
        return first + self.say(Checked(peer, submission.payload_hash, norm=norm))


E = TypeVar("E")


def only(effects: list[Effect], kind: type[E]) -> list[E]:
    return [effect for effect in effects if isinstance(effect, kind)]


def test_a_round_is_published_when_everybody_has_submitted() -> None:
    """No deadline is waited for: the last of the training peers completes the round; the order is that of the keys."""
    table = Table()
    for peer in (C, A, B):
        table.hear(peer, tokens=50)
    assert not only(table.submit(C) + table.submit(B), Publish)
    (published,) = only(table.submit(A), Publish)
    assert [item.peer for item in published.accepted] == [A, B, C]
    assert published.round == 1 and table.state.round == 2


def test_the_round_closes_at_the_token_target_and_waits_for_the_slow_until_the_deadline() -> None:
    """A peer that reported tokens is waited for, but no longer than the deadline; it is then published without it."""
    table = Table(target_tokens=90)
    table.hear(A, tokens=50)
    (closing,) = only(table.hear(B, tokens=50), Closing)
    assert closing.deadline_seconds == 10.0
    assert not only(table.submit(A), Publish)
    assert not only(table.say(Tick(), after=9.9), Publish)
    (published,) = only(table.say(Tick(), after=0.2), Publish)
    assert [item.peer for item in published.accepted] == [A]


def test_a_peer_without_a_finished_step_does_not_hold_up_a_closing_round() -> None:
    """After the close only peers with something to submit are expected."""
    table = Table(target_tokens=50)
    table.hear(B)
    table.hear(A, tokens=50)
    assert only(table.submit(A), Publish)


def test_max_seconds_closes_a_round_that_is_not_full() -> None:
    """Little is better than nothing for ever."""
    table = Table(silence_seconds=1e9)
    table.hear(A, tokens=50)
    assert not only(table.say(Tick(), after=59.0), Closing)
    assert only(table.say(Tick(), after=2.0), Closing)


def test_nobody_in_time_extends_the_deadline_instead_of_publishing_nothing() -> None:
    """An empty record would cost everybody a round trip and give nothing."""
    table = Table(target_tokens=50, silence_seconds=1e9)
    table.hear(A, tokens=50)
    assert not only(table.say(Tick(), after=11.0), Publish)
    assert only(table.submit(A), Publish)


def test_silent_peers_are_forgotten_and_their_leases_come_back_when_they_end() -> None:
    """Not before: the peer may be at work on the other side of a cut. Then the next peer that asks gets them."""
    table = Table()
    table.hear(A, tokens=20)
    lost = table.held[A]
    (gone,) = only(table.say(Tick(), after=16.0), Gone)
    assert gone.peer == A
    table.hear(B)
    assert not table.held[B] & lost
    table.say(Tick(), after=RULES.lease_seconds)
    table.held[B] = Ranges()
    table.hear(B)
    assert table.held[B].first(len(lost)) == lost


def test_who_claims_to_train_and_never_submits_costs_two_deadlines_and_no_more() -> None:
    """Then nobody waits for it, until it brings something after all."""
    table = Table(target_tokens=90, silence_seconds=1e9, max_seconds=1e9)

    def seconds_of_a_round() -> float:
        start = table.now
        table.hear(A, tokens=50)
        table.hear(B, tokens=50)
        effects = table.submit(A)
        while not only(effects, Publish):
            effects = table.say(Tick(), after=0.5)
        return table.now - start

    durations = [seconds_of_a_round() for _ in range(4)]
    assert all(seconds >= 10 for seconds in durations[:2]) and durations[2:] == [0.0, 0.0]
    table.hear(A, tokens=50)
    table.submit(B)
    (published,) = only(table.submit(A), Publish)
    assert len(published.accepted) == 2 and table.state.members[B].missed == 0


def test_refused_payloads_are_named_in_the_record_and_their_positions_stay_leased() -> None:
    """The peer loses nothing: it may contribute the same positions in the next round."""
    table = Table()
    table.hear(A, tokens=50)
    table.hear(B, tokens=50)
    submission = table.offer(A)
    assert only(table.say(Offered(submission)), Fetch)
    table.say(Checked(A, submission.payload_hash, reason="not finite"))
    (refuse,) = only(table.say(Offered(submission)), Refuse)
    assert refuse.reason == "not finite"
    table.say(Left(A))
    (published,) = only(table.submit(B), Publish)
    assert [(item.peer, item.reason) for item in published.refused] == [(A, "not finite")]
    assert not published.accepted[0].consumed & submission.consumed


def test_a_second_contribution_to_one_round_is_refused() -> None:
    """The first one counts; the same one again is no news."""
    table = Table()
    table.hear(A, tokens=50)
    table.hear(B, tokens=50)
    table.submit(A)
    other = replace(table.offer(A, 2), payload_hash=b"x" * 32)
    (refuse,) = only(table.say(Offered(other)), Refuse)
    assert "another contribution" in refuse.reason


def test_a_contribution_without_a_lease_is_refused() -> None:
    """Positions that another peer holds cannot be claimed."""
    table = Table()
    table.hear(A, tokens=50)
    table.hear(B)
    stolen = Submission(B, bytes(32), 50, table.held[A].first(5))
    (refuse,) = only(table.say(Offered(stolen)), Refuse)
    assert "not leased" in refuse.reason


def test_claimed_tokens_beyond_the_lease_do_not_close_the_round() -> None:
    """A liar can report no more than it was given to train on."""
    table = Table(target_tokens=100_000)
    assert not only(table.hear(A, tokens=1 << 62, speed=0.0), Closing)


def test_the_deadline_adapts_to_what_peers_need() -> None:
    """After rounds that were answered in about a second it is far below the first, fixed one, and above the median."""
    table = Table(target_tokens=100, silence_seconds=1e9)
    for _ in range(8):
        table.hear(A, tokens=50)
        table.hear(B, tokens=50)
        table.now += 0.9
        table.submit(A)
        table.now += 0.2
        table.submit(B)
    assert 1.0 < table.state.deadline_seconds < 5.0


def test_a_peer_whose_work_is_refused_again_and_again_neither_closes_rounds_nor_keeps_its_leases() -> None:
    """What it reports is no reason to close: the others have full rounds. What it holds is leased to them in time."""
    table = Table(target_tokens=100, lease_seconds=20.0)

    def refused() -> None:
        table.hear(A, tokens=100)
        if A not in table.state.submissions and table.held[A]:
            submission = replace(table.offer(A), payload_hash=bytes([table.state.round]) * 32)
            table.say(Offered(submission))
            table.say(Checked(A, submission.payload_hash, reason="its payload cannot be had"))

    table.hear(A)
    hostage = table.held[A]
    for _ in range(3):
        refused()
        table.hear(B, tokens=50)
        table.submit(B)
        table.say(Tick(), after=11.0)
    for _ in range(30):
        refused()
        before = table.state.round
        table.hear(B, tokens=50)
        assert table.state.closing is None and table.state.round == before, "50 of 100 tokens"
        table.hear(B, tokens=100)
        assert only(table.submit(B, sequences=10), Publish)
        table.say(Tick(), after=1.0)
    assert not hostage - table.accepted
    assert table.held[A], "it may begin again, with little"


def test_when_nobody_can_be_relied_on_rounds_close_all_the_same() -> None:
    """A swarm that missed deadlines together, all on slow links, goes on by the tokens that it reports."""
    table = Table(target_tokens=100, silence_seconds=1e9)
    for peer in (A, B):
        table.hear(peer, tokens=50)
    state = table.state
    table.state = replace(state, members={peer: replace(it, missed=5) for peer, it in state.members.items()})
    table.hear(A, tokens=60)
    assert table.state.closing is not None


def test_no_history_of_late_answers_makes_a_deadline_longer_than_a_round() -> None:
    """Rounds that nobody answered for hours, then somebody did: the next one is not given hours."""
    table = Table(target_tokens=50, silence_seconds=1e9, lease_seconds=1e9)
    for _ in range(8):
        table.hear(A, tokens=50)
        table.now += 7200.0
        table.submit(A)
    assert table.state.deadline_seconds == table.state.rules.max_seconds


def test_paused_rounds_lease_nothing_and_do_not_close() -> None:
    """Until the organiser goes on."""
    table = Table(target_tokens=50)
    table.say(Pause(True))
    effects = table.hear(A, tokens=50)
    assert not only(effects, Closing) and not table.held[A]
    table.say(Pause(False))
    table.hear(A)
    assert table.held[A]


def test_a_copy_of_another_peers_payload_is_refused() -> None:
    """Whoever handed it in first made it; the copy is named in the record, the original is not hurt by it."""
    table = Table()
    table.hear(A, tokens=50)
    table.hear(B, tokens=50)
    original = table.offer(A)
    table.say(Offered(original))
    (refuse,) = only(table.say(Offered(replace(table.offer(B), payload_hash=original.payload_hash))), Refuse)
    assert refuse.peer == B and "copy" in refuse.reason
    assert not only(table.say(Offered(original)), Refuse)
    table.say(Left(B))
    (published,) = only(table.say(Checked(A, original.payload_hash, norm=1.0)), Publish)
    assert [item.peer for item in published.accepted] == [A] and [item.peer for item in published.refused] == [B]


def test_what_was_contributed_is_leased_to_nobody_else_while_the_round_is_open() -> None:
    """Its peer falls silent past its lease, or suddenly denies holding it: two peers must not bring one position."""
    for denies in (False, True):
        table = Table(silence_seconds=10.0, lease_seconds=20.0, max_seconds=1e9)
        table.hear(A, tokens=50)
        table.hear(B, tokens=50)
        submission = table.offer(A)
        table.say(Offered(submission))
        table.say(Checked(A, submission.payload_hash, norm=1.0))
        for _ in range(40):
            if denies:
                table.say(Heard(A, 0, 0, 1.0, TRAINING, Ranges(), 0, table.accepted))
            table.hear(B, tokens=50)
            table.say(Tick(), after=1.0)
        assert table.state.round == 1 and not table.held[B] & submission.consumed
        (published,) = only(table.submit(B), Publish)
        assert [item.peer for item in published.accepted] == [A, B]


def test_no_claim_of_speed_or_appetite_leases_the_whole_future() -> None:
    """The most a peer gets is a few rounds' worth, also if its figures are absurd."""
    table = Table()
    for speed in (1e18, 1e308):
        table.say(Heard(A, 0, 0, speed, TRAINING, Ranges(), 1 << 63, Ranges()))
        assert len(table.state.leases.positions(A)) <= table.state.rules.most_sequences == 800
    table.say(Heard(B, 0, 0, 1.0, TRAINING, Ranges.of([(1 << 50, 1 << 59)]), 0, Ranges()))
    assert not table.state.leases.positions(B) and table.state.leases.cursor <= 800


def test_a_round_takes_no_more_contributions_than_its_record_can_hold() -> None:
    """What does not fit is turned away for this round, without a refusal in the record."""
    table = Table()
    for peer in (A, B, C):
        table.hear(peer, tokens=50)
        table.say(Offered(replace(table.offer(peer), header_bytes=900_000)))
    assert sorted(table.state.submissions) == [A, B] and not table.state.refusals


class AnyOrder(RuleBasedStateMachine):
    """Thousands of event orders: rounds count up, positions are merged once, and a live honest peer gets its round."""

    def __init__(self) -> None:
        super().__init__()
        self.table = Table()
        self.round = 1

    def _note(self, effects: list[Effect]) -> None:
        for publish in only(effects, Publish):
            assert publish.round == self.round and publish.accepted
            self.round += 1
            keys = [item.peer for item in publish.accepted]
            assert keys == sorted(set(keys))
            merged = [item.consumed for item in publish.accepted]
            assert sum(map(len, merged)) == len(Ranges.of(pair for part in merged for pair in part))
            assert max(part.stop for part in merged) <= publish.data_cursor

    @rule(peer=st.sampled_from([A, B, C]), tokens=st.integers(0, 400), phase=st.sampled_from([TRAINING, "waiting"]))
    def hear(self, peer: bytes, tokens: int, phase: str) -> None:
        self._note(self.table.hear(peer, tokens, phase))

    @rule(peer=st.sampled_from([A, B, C]), good=st.booleans(), late=st.booleans())
    def submit(self, peer: bytes, good: bool, late: bool) -> None:
        before = self.table.accepted
        if not self.table.held.get(peer):
            return
        submission = self.table.offer(peer)
        assert not submission.consumed & before or self.table.state.leases.refusal(peer, submission.consumed)
        self._note(self.table.say(Offered(submission)))
        if late:
            self._note(self.table.say(Tick(), after=7.0))
        self._note(self.table.say(Checked(peer, submission.payload_hash, norm=1.0, reason="" if good else "garbage")))

    @rule(peer=st.sampled_from([A, B, C]))
    def leave(self, peer: bytes) -> None:
        self._note(self.table.say(Left(peer)))
        self.table.held.pop(peer, None)

    @rule(seconds=st.floats(0.1, 30.0))
    def wait(self, seconds: float) -> None:
        self._note(self.table.say(Tick(), after=seconds))

    @invariant()
    def open_round_is_the_next_one(self) -> None:
        assert self.table.state.round == self.round

    @invariant()
    def accepted_is_never_leased_again(self) -> None:
        for lease in self.table.state.leases.held.values():
            assert not lease.positions & self.table.accepted

    def teardown(self) -> None:
        """Whatever happened before, one honest peer that reports and submits gets a record within two deadlines."""
        table = self.table
        start = self.round
        for _ in range(200):
            self._note(table.hear(A, tokens=50))
            if A not in table.state.submissions and table.held.get(A):
                submission = replace(table.offer(A), payload_hash=bytes([self.round % 251]) * 31 + b"!")
                self._note(table.say(Offered(submission)))
                self._note(table.say(Checked(A, submission.payload_hash, norm=1.0)))
            self._note(table.say(Tick(), after=1.0))
            if self.round > start:
                return
        raise AssertionError("the round never ended")


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
