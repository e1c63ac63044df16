"""Contribution accounting: a fold over the log, which anyone who holds the log can repeat.

Credit of a peer = sum of its accepted tokens. Nothing else goes in: no self-reported figure, no server's table.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from peer.rounds.ranges import Ranges
from protos import log_pb2


@dataclass
class PeerAccount:
    """What the log says about one peer."""

    credit_tokens: int = 0
    contributions: int = 0
    first_round: int = 0
    last_round: int = 0
    refused: int = 0
    last_refusal: str = ""
    last_refusal_round: int = 0


@dataclass
class Accounts:
    """The fold: everything about the run so far that is a function of its records alone."""

    tokens: int = 0
    peers: dict[bytes, PeerAccount] = field(default_factory=dict)  # by public key
    accepted: Ranges = Ranges()  # positions of the data order that are merged
    data_cursor: int = 0
    loss: float | None = None  # token-weighted mean over the newest record with contributions, nats per token
    losses: list[tuple[int, float]] = field(default_factory=list)  # (round, loss)
    banned: set[bytes] = field(default_factory=set)  # public keys of sequencers that were proven to equivocate
    recent: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=16))  # (Unix seconds, tokens so far)

    def add(self, record: log_pb2.Record, contributions: list[tuple[bytes, log_pb2.Contribution]]) -> None:
        """Fold in one validated record; `contributions` are its accepted ones, opened, with their signers."""
        for signer, contribution in contributions:
            account = self.peers.setdefault(signer, PeerAccount(first_round=record.round))
            account.credit_tokens += contribution.tokens
            account.contributions += 1
            account.first_round = account.first_round or record.round
            account.last_round = record.round
            self.tokens += contribution.tokens
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
        self.data_cursor = max(self.data_cursor, record.data_cursor)
        self.recent.append((record.time_seconds, self.tokens))

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
