"""Contribution accounting: a fold over the log, which anyone who holds the log can repeat.

Credit of a peer = sum of its accepted tokens that were not voided. Nothing else goes in: no self-reported figure, no
server's table. A contribution is pending for `PENDING_ROUNDS` rounds, in which the coordinator may void it by a verdict
in a later record; then it is confirmed for good. Voiding takes credit back, not weights: what was merged stays merged.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

from peer.rounds.ranges import Ranges
from protos import log_pb2

REPLAY_ROUNDS = 1000  # so far back, a payload that was merged before is known again
PENDING_ROUNDS = 8  # a verdict on a contribution must stand in one of so many records after it


@dataclass
class PeerAccount:
    """What the log says about one peer."""

    credit_tokens: int = 0  # confirmed and pending
    contributions: int = 0
    first_round: int = 0
    last_round: int = 0
    refused: int = 0
    last_refusal: str = ""
    last_refusal_round: int = 0
    voided_tokens: int = 0
    name: str = ""  # what it last called itself in a contribution
    team: str = ""


@dataclass
class TeamAccount:
    """Contributions signed with one team's name; the empty name is a team too."""

    credit_tokens: int = 0
    contributions: int = 0
    peers: set[bytes] = field(default_factory=set)


@dataclass(frozen=True)
class Work:
    """A contribution that can still be voided."""

    tokens: int
    team: str
    payload_hash: bytes
    void: bool = False


@dataclass
class Accounts:
    """The fold: everything about the run so far that is a function of its records alone."""

    tokens: int = 0  # merged into the weights, voided ones included
    peers: dict[bytes, PeerAccount] = field(default_factory=dict)  # by public key
    teams: dict[str, TeamAccount] = field(default_factory=dict)
    pending: dict[int, dict[bytes, Work]] = field(default_factory=dict)  # by round and public key
    merged: dict[bytes, int] = field(default_factory=dict)  # lately, the oldest first: round by payload hash
    accepted: Ranges = Ranges()  # positions of the data order that are merged
    data_cursor: int = 0
    loss: float | None = None  # token-weighted mean over the newest record with contributions, nats per token
    losses: list[tuple[int, float]] = field(default_factory=list)  # (round, loss)
    banned: set[bytes] = field(default_factory=set)  # public keys of sequencers that were proven to equivocate
    admitted: set[bytes] = field(default_factory=set)  # to an invite-only run, as far as they have contributed
    barred: dict[bytes, str] = field(default_factory=dict)  # by the coordinator; the reason by public key
    recent: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=16))  # (Unix seconds, tokens so far)

    def add(
        self,
        record: log_pb2.Record,
        contributions: list[tuple[bytes, log_pb2.Contribution]],
        admitted: tuple[bytes, ...] = (),
        verdicts: tuple[log_pb2.Verdict, ...] = (),
    ) -> None:
        """Fold in one validated record, opened: its accepted contributions with their signers, the keys it admits, and
        the verdicts in it.
        """
        for signer, contribution in contributions:
            self._credit(record.round, signer, contribution)
        for refused in record.refused:
            account = self.peers.setdefault(refused.peer, PeerAccount())
            account.refused += 1
            account.last_refusal = f"round {record.round}: {refused.reason}"
            account.last_refusal_round = record.round
        if contributions:
            self.accepted |= Ranges.of(
                (item.start, item.stop) for _, contribution in contributions for item in contribution.consumed
            )
            total = sum(contribution.tokens for _, contribution in contributions)
            self.loss = sum(item.mean_loss * item.tokens for _, item in contributions) / total
            self.losses.append((record.round, self.loss))
        self.banned.update(proof.first.signer for proof in record.equivocations)
        self.admitted.update(admitted)
        for verdict in verdicts:
            self._judge(verdict)
        self.data_cursor = max(self.data_cursor, record.data_cursor)
        self.recent.append((record.time_seconds, self.tokens))
        for round_ in [it for it in self.pending if it <= record.round - PENDING_ROUNDS or record.final]:
            del self.pending[round_]
        while self.merged and self.merged[oldest := next(iter(self.merged))] <= record.round - REPLAY_ROUNDS:
            del self.merged[oldest]

    def _credit(self, round_: int, signer: bytes, contribution: log_pb2.Contribution) -> None:
        account = self.peers.setdefault(signer, PeerAccount(first_round=round_))
        account.credit_tokens += contribution.tokens
        account.contributions += 1
        account.first_round = account.first_round or round_
        account.last_round = round_
        account.name, account.team = contribution.name, contribution.team
        team = self.teams.setdefault(contribution.team, TeamAccount())
        team.credit_tokens += contribution.tokens
        team.contributions += 1
        team.peers.add(signer)
        self.tokens += contribution.tokens
        self.merged.pop(contribution.payload_hash, None)
        self.merged[contribution.payload_hash] = round_
        self.pending.setdefault(round_, {})[signer] = Work(
            contribution.tokens, contribution.team, contribution.payload_hash
        )

    def _judge(self, verdict: log_pb2.Verdict) -> None:
        if not verdict.round:
            self.barred[verdict.peer] = verdict.reason
            return
        work = self.pending[verdict.round][verdict.peer]
        self.pending[verdict.round][verdict.peer] = replace(work, void=True)
        self.peers[verdict.peer].credit_tokens -= work.tokens
        self.peers[verdict.peer].voided_tokens += work.tokens
        self.teams[work.team].credit_tokens -= work.tokens

    def pending_tokens(self, peer: bytes) -> int:
        """Of the peer's credit: what a verdict may still void."""
        works = (round_.get(peer) for round_ in self.pending.values())
        return sum(work.tokens for work in works if work is not None and not work.void)

    @property
    def credit(self) -> dict[bytes, int]:
        """Accepted tokens by public key, of peers that have any."""
        return {key: account.credit_tokens for key, account in self.peers.items() if account.credit_tokens}

    def credit_of(self, key: bytes) -> int:
        """Accepted tokens of one public key; 0 for a stranger's."""
        account = self.peers.get(key)
        return account.credit_tokens if account else 0

    @property
    def tokens_per_second(self) -> float:
        """Accepted tokens per second over the newest records; 0 until there are two."""
        if len(self.recent) < 2:
            return 0.0
        (start, before), (end, now) = self.recent[0], self.recent[-1]
        return (now - before) / (end - start) if end > start else 0.0
