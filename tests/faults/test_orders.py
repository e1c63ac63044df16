"""Every order of events: the pure sequencer, the lease book and the log together, with peers that die and lie.

No clock, no wire, no model: a machine of hypothesis plays the peers, the network and the sequencer's bad luck, and
every record that the sequencer publishes is signed and appended to a real log, which refuses what does not follow.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from peer.identity import Identity
from peer.log.chain import contribution_fault
from peer.rounds.leases import LeaseBook
from peer.rounds.ranges import Ranges
from peer.rounds.sequencer import (
    TRAINING,
    Checked,
    Effect,
    Event,
    Heard,
    Leased,
    Left,
    Offered,
    Publish,
    Refuse,
    Rules,
    Sequencer,
    Submission,
    Tick,
    tick,
)
from protos import log_pb2
from protos.signing import sign
from tests.small_run import contribution, start_log

pytestmark = pytest.mark.timeout(400)

COORDINATOR = Identity.new()
PEERS = [Identity.new() for _ in range(4)]
BATCH = 4  # sequences of a training step
TIMING = {"heartbeat_seconds": 1.0, "silence_seconds": 10.0, "lease_seconds": 20.0, "first_deadline_seconds": 10.0}
ROUND = {"target_tokens": 40 * 32, "inner_steps": 0, "max_seconds": 60.0}

numbers = st.integers(0, len(PEERS) - 1)


@dataclass
class Player:
    """One peer: what it believes to hold, what of it is trained, and what it handed in."""

    identity: Identity
    alive: bool = True
    held: Ranges = Ranges()  # trained ones included
    trained: Ranges = Ranges()
    handed_in: log_pb2.Contribution | None = None
    payloads: int = 0

    @property
    def key(self) -> bytes:
        return self.identity.peer_id.public_key


@dataclass
class Game:
    """A sequencer, its log and its peers, with a clock that obeys."""

    now: float = 0.0
    players: list[Player] = field(default_factory=lambda: [Player(identity) for identity in PEERS])
    accepted_sequences: int = 0
    published: int = 0

    def __post_init__(self) -> None:
        self.log = start_log(COORDINATOR, timing=TIMING, round=ROUND, codec={"name": "fp16"}, run={"rounds": 0})
        self.rules = Rules.of(self.log.spec)
        self.restart()

    def restart(self, rank: int = 0) -> None:
        """Somebody begins to lead who knows nothing but the log: the coordinator, or a peer that stands in for it."""
        accounts, rules, resumed = self.log.accounts, self.rules, self.log.head.round > 0
        until = self.now + (rules.lease_seconds if rank else rules.silence_seconds)
        self.state = Sequencer(
            rules=rules,
            round=self.log.head.round + 1,
            opened=self.now,
            leases=LeaseBook.take_over(accounts.data_cursor, accounts.accepted, rank * rules.gap_sequences, until),
            leases_from=self.now + (3 * rules.heartbeat_seconds if resumed else 0),
        )

    def say(self, event: Event) -> list[Effect]:
        self.state, effects = tick(self.state, event, self.now)
        for effect in effects:
            if isinstance(effect, Publish):
                self._publish(effect)
        return effects

    def heartbeat(self, player: Player, lost: bool = False, claimed: Ranges | None = None, tokens: int = -1) -> None:
        tokens = len(player.trained) * 32 if tokens < 0 else tokens
        held = player.held if claimed is None else claimed
        accepted = self.log.accounts.accepted
        effects = self.say(Heard(player.key, self.log.head.round, tokens, 200.0, TRAINING, held, 20, accepted))
        (leased,) = (effect for effect in effects if isinstance(effect, Leased))
        if not lost:
            player.held = (player.held | leased.positions) - leased.revoked
            player.trained -= leased.revoked

    def train(self, player: Player) -> None:
        player.trained |= (player.held - player.trained - self._pending(player)).first(BATCH)

    def hand_in(self, player: Player) -> None:
        """Make a contribution of what is trained, or repeat the one that is on its way."""
        if player.handed_in is None and player.trained:
            player.payloads += 1
            name = bytes([player.payloads % 256, player.payloads // 256]).ljust(32, player.key[:1])
            player.handed_in = contribution(self.log, name, 100, consumed=player.trained.pairs)
            player.trained = Ranges()
        if player.handed_in is not None:
            self.offer(player, player.handed_in)

    def offer(self, player: Player, item: log_pb2.Contribution) -> None:
        """As the leader's shell does it: a header that the log refuses never reaches the sequencer."""
        consumed = Ranges.from_protos(item.consumed)
        refused = [Refuse(player.key, reason)] if (reason := contribution_fault(item, self.log)) else []
        if not refused:
            submission = Submission(player.key, item.payload_hash, item.tokens, consumed, item.payload_bytes, 300)
            refused = [effect for effect in self.say(Offered(submission)) if isinstance(effect, Refuse)]
        if refused and player.handed_in is item:
            self._take_back(player)

    def check(self, player: Player, good: bool = True) -> None:
        """The payload arrives, and is looked at."""
        if player.handed_in is not None:
            reason = "" if good else "not finite"
            self.say(Checked(player.key, player.handed_in.payload_hash, norm=1.0, reason=reason))

    def _publish(self, effect: Publish) -> None:
        """Sign and append: the log refuses whatever does not follow. Every living peer hears of it."""
        by_key = {player.key: player for player in self.players}
        items = {player.key: player.handed_in for player in self.players if player.handed_in is not None}
        record = log_pb2.Record(
            run_id=self.log.run_id,
            round=effect.round,
            previous_hash=self.log.head.hash,
            base_digest=self.log.origin.genesis.state_digest,
            accepted=[
                log_pb2.Accepted(contribution=sign(items[item.peer], by_key[item.peer].identity.private_key), norm=1.0)
                for item in effect.accepted
            ],
            data_cursor=effect.data_cursor,
            deadline_seconds=effect.deadline_seconds,
        )
        merged = {item.peer for item in effect.accepted}
        self.log.append(sign(record, COORDINATOR.private_key))
        self.published += 1
        self.accepted_sequences += sum(len(item.consumed) for item in effect.accepted)
        for player in self.players:
            if player.handed_in is not None and player.key in merged:
                player.held -= Ranges.from_protos(player.handed_in.consumed)
                player.handed_in = None
            elif player.handed_in is not None:
                self._take_back(player)

    def _take_back(self, player: Player) -> None:
        assert player.handed_in is not None
        player.trained |= Ranges.from_protos(player.handed_in.consumed) & player.held
        player.handed_in = None

    def _pending(self, player: Player) -> Ranges:
        return Ranges.from_protos(player.handed_in.consumed) if player.handed_in is not None else Ranges()

    def die(self, player: Player) -> None:
        """As SIGKILL: what it held, had trained and was handing in is forgotten by it, not by the sequencer."""
        player.alive, player.held, player.trained = False, Ranges(), Ranges()

    def fair_second(self) -> None:
        """Everybody lives, trains, hands in and is heard."""
        for player in self.players:
            player.alive = True
            self.heartbeat(player)
            self.train(player)
            if self.state.closing is not None or player.handed_in is not None or len(player.trained) >= 3 * BATCH:
                self.hand_in(player)
                self.check(player)
        self.now += 1.0
        self.say(Tick())


class AnyOrder(RuleBasedStateMachine):
    """Joins, deaths, late and doubled submissions, lost answers, lies, restarts from the log, clock jumps."""

    def __init__(self) -> None:
        super().__init__()
        self.game = Game()
        self.old: list[tuple[Player, log_pb2.Contribution]] = []  # of earlier rounds, to be replayed
        self.cursor = 0

    def living(self, number: int) -> Player | None:
        player = self.game.players[number]
        return player if player.alive else None

    @rule(number=numbers, lost=st.booleans())
    def heartbeat(self, number: int, lost: bool) -> None:
        if player := self.living(number):
            self.game.heartbeat(player, lost)

    @rule(number=numbers, steps=st.integers(1, 4))
    def train(self, number: int, steps: int) -> None:
        if player := self.living(number):
            for _ in range(steps):
                self.game.train(player)

    @rule(number=numbers, times=st.integers(1, 2))
    def hand_in(self, number: int, times: int) -> None:
        if player := self.living(number):
            for _ in range(times):
                self.game.hand_in(player)
            if player.handed_in is not None:
                self.old.append((player, player.handed_in))

    @rule(number=numbers, good=st.booleans())
    def check(self, number: int, good: bool) -> None:
        """Also of a peer that is dead by now: the payload had arrived."""
        self.game.check(self.game.players[number], good)

    @precondition(lambda self: self.old)
    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        """Somebody sends again what was merged, refused or forgotten long ago."""
        player, item = data.draw(st.sampled_from(self.old))
        if player.handed_in is not item:
            before = self.game.state.submissions
            self.game.offer(player, item)
            if item.round != self.game.state.round:
                assert self.game.state.submissions == before

    @rule(number=numbers, claimed=st.lists(st.tuples(st.integers(0, 300), st.integers(1, 1 << 40)), max_size=3))
    def lie(self, number: int, claimed: list[tuple[int, int]]) -> None:
        """Of leases it does not have, and of more tokens than anybody could train on."""
        positions = Ranges.of((start, start + length) for start, length in claimed)
        self.game.heartbeat(self.game.players[number], lost=True, claimed=positions, tokens=1 << 60)

    @rule(number=numbers)
    def die(self, number: int) -> None:
        if player := self.living(number):
            self.game.die(player)

    @rule(number=numbers)
    def come_back(self, number: int) -> None:
        """With the same identity, and nothing in its hands: what it was handing in before is not its own any more."""
        player = self.game.players[number]
        if not player.alive:
            player.alive = True

    @rule(number=numbers)
    def leave(self, number: int) -> None:
        if player := self.living(number):
            self.game.say(Left(player.key))
            self.game.die(player)

    @rule(rank=st.integers(0, 2))
    def restart(self, rank: int) -> None:
        self.game.restart(rank)

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, 11.0, 61.0, 600.0, 1e6]))
    def wait(self, seconds: float) -> None:
        self.game.now += seconds
        self.game.say(Tick())

    @rule(seconds=st.sampled_from([-1e6, -600.0, 600.0, 1e6]))
    def restart_with_another_clock(self, seconds: float) -> None:
        self.game.now += seconds
        self.game.restart()

    @invariant()
    def the_log_and_the_sequencer_agree(self) -> None:
        """The open round follows the head, the cursor never goes back, and every position is merged at most once."""
        game = self.game
        assert game.state.round == game.log.head.round + 1 == game.published + 1
        assert self.cursor <= game.log.accounts.data_cursor
        self.cursor = game.log.accounts.data_cursor
        assert len(game.log.accounts.accepted) == game.accepted_sequences

    @invariant()
    def every_position_is_somewhere_once(self) -> None:
        """Below the cursor: merged, free, or leased to one peer. Nothing is lost, nothing is leased twice."""
        book, accepted = self.game.state.leases, self.game.log.accounts.accepted
        parts = [accepted, book.returned, book.withheld, *(lease.positions for lease in book.held.values())]
        assert sum(map(len, parts)) == book.cursor == len(Ranges.of(pair for part in parts for pair in part))

    @invariant()
    def credit_is_the_fold(self) -> None:
        game, credit = self.game, {}  # type: ignore[var-annotated]
        for entry in game.log.entries:
            for signer, item in entry.contributions:
                credit[signer] = credit.get(signer, 0) + item.tokens
        assert game.log.accounts.credit == credit and sum(credit.values()) == game.log.accounts.tokens

    @invariant()
    def deadlines_are_bounded(self) -> None:
        """Nobody waits longer for the missing than a whole round may take, whatever happened in rounds before."""
        state, rules = self.game.state, self.game.rules
        most = max(rules.max_seconds, rules.first_deadline_seconds)
        assert 0 < state.deadline_seconds <= most
        if state.closing is not None:
            assert state.deadline <= self.game.now + most

    def teardown(self) -> None:
        """Then the world is fair again: a record within a few deadlines, and all that was lost is merged."""
        game = self.game
        lost, start, waited = Ranges.of([(0, game.state.leases.cursor)]), game.published, 0.0
        limit = game.rules.max_seconds + 3 * game.state.deadline_seconds + game.rules.silence_seconds
        while game.published == start:
            game.fair_second()
            waited += 1
            assert waited <= limit, f"no record in {waited:g} fair seconds"
        for _ in range(int(3 * game.rules.lease_seconds) + 5 * len(lost)):
            if not lost - game.log.accounts.accepted:
                break
            game.fair_second()
            self.every_position_is_somewhere_once()
        left = lost - game.log.accounts.accepted
        assert not left, f"positions that nobody gets any more: {left}; {game.state.leases}; {game.players}"


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)


def test_a_game_with_fair_play_publishes_rounds_at_the_token_target() -> None:
    """The machine above plays the real game: fair peers alone make rounds, each with work of several of them."""
    game = Game()
    for _ in range(60):
        game.fair_second()
    assert game.published >= 5
    merged = [len(entry.contributions) for entry in game.log.entries[1:]]
    assert max(merged) > 1 and len(game.log.accounts.accepted) == game.accepted_sequences
