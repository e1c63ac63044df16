"""What a peer has trained on and not yet seen merged: the bookkeeping beside the error-feedback buffer."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from peer.durable import write_durably
from peer.rounds.ranges import Ranges
from protos import log_pb2
from protos.signing import strict_parse


@dataclass(frozen=True)
class Work:
    """Some inner steps: which positions, how many tokens, at what loss."""

    positions: Ranges = Ranges()  # empty for private data
    tokens: int = 0
    inner_steps: int = 0
    loss_sum: float = 0.0  # nats, summed over `tokens`
    train_seconds: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.positions | other.positions,
            self.tokens + other.tokens,
            self.inner_steps + other.inner_steps,
            self.loss_sum + other.loss_sum,
            self.train_seconds + other.train_seconds,
        )

    @property
    def mean_loss(self) -> float:
        """Nats per token."""
        return self.loss_sum / self.tokens if self.tokens else 0.0

    def without(self, positions: Ranges, sequence_tokens: int) -> Work:
        """Give up the claim to `positions` (the lease was lost); what was learnt from them stays in the weights."""
        lost = self.positions & positions
        if not lost:
            return self
        if lost == self.positions:  # nor are its steps any that wait to be handed in
            return Work()
        left = self.at_most(self.tokens - len(lost) * sequence_tokens)
        return replace(left, positions=self.positions - lost)

    def at_most(self, tokens: int) -> Work:
        """Claim no more than so many tokens, at the same mean loss."""
        return replace(self, tokens=tokens, loss_sum=self.mean_loss * tokens) if tokens < self.tokens else self


@dataclass(frozen=True)
class Submitted:
    """A contribution that waits for its record. Its payload lies in the blob store until then."""

    round: int
    payload_hash: bytes
    header: bytes  # the signed contribution, to hand it in again after a restart
    work: Work


@dataclass(frozen=True)
class Backlog:
    """All of a peer's work that is not in the log yet."""

    fresh: Work = field(default_factory=Work)  # only in the local weights so far
    moving: Work = field(default_factory=Work)  # in local weights that were read, on its way into the buffer
    settled: Work = field(default_factory=Work)  # in the error-feedback buffer
    submitted: Submitted | None = None

    @property
    def unsent(self) -> Work:
        return self.settled + self.moving + self.fresh

    @property
    def tokens(self) -> int:
        return self.unsent.tokens + (self.submitted.work.tokens if self.submitted else 0)

    @property
    def positions(self) -> Ranges:
        return self.unsent.positions | (self.submitted.work.positions if self.submitted else Ranges())

    def train(self, step: Work) -> Backlog:
        return replace(self, fresh=self.fresh + step)

    def read(self) -> Backlog:
        """The local weights were read; what is trained from here on is not in them."""
        return replace(self, fresh=Work(), moving=self.moving + self.fresh)

    def settle(self) -> Backlog:
        return replace(self, moving=Work(), settled=self.settled + self.moving)

    def spoilt(self) -> Backlog:
        """What was read turned out to be worthless; what was settled before is not."""
        return replace(self, moving=Work())

    def dropped(self) -> Backlog:
        """The buffer is lost."""
        return replace(self, settled=Work())

    def hand_in(self, round_: int, payload_hash: bytes, header: bytes) -> Backlog:
        assert self.submitted is None, "one contribution at a time"
        return replace(self, settled=Work(), submitted=Submitted(round_, payload_hash, header, self.settled))

    def merged(self) -> Backlog:
        return replace(self, submitted=None)

    def returned(self) -> Backlog:
        """The submitted contribution was not merged: its work counts with the next one."""
        assert self.submitted is not None
        return replace(self, settled=self.submitted.work + self.settled, submitted=None)

    def undone(self, work: Work) -> Backlog:
        """Merged work that a change of chains took back: its values are in the buffer again."""
        return replace(self, settled=work + self.settled)

    def without(self, positions: Ranges, sequence_tokens: int) -> Backlog:
        return replace(
            self,
            fresh=self.fresh.without(positions, sequence_tokens),
            moving=self.moving.without(positions, sequence_tokens),
            settled=self.settled.without(positions, sequence_tokens),
        )

    def save(self, path: Path) -> None:
        """Keep it for the next start (the caller has settled)."""
        assert not self.fresh.tokens and not self.moving.tokens, "settle first"
        submitted = self.submitted
        value = {
            "settled": _plain(self.settled),
            "submitted": submitted
            and {
                "round": submitted.round,
                "payload_hash": submitted.payload_hash.hex(),
                "header": submitted.header.hex(),
                "work": _plain(submitted.work),
            },
        }
        write_durably(path, json.dumps(value).encode())

    @classmethod
    def load(cls, path: Path) -> Backlog:
        """What `save` kept; nothing if there is no such file or it is damaged (then only that work is lost)."""
        try:
            value = json.loads(path.read_text())
            submitted = value["submitted"]
            return cls(
                settled=_work(value["settled"]),
                submitted=submitted
                and Submitted(
                    submitted["round"],
                    bytes.fromhex(submitted["payload_hash"]),
                    _header(submitted["header"]),
                    _work(submitted["work"]),
                ),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return cls()


def _header(text: str) -> bytes:
    """Raises SignatureError, a ValueError, when these are not the bytes of a signed message."""
    header = bytes.fromhex(text)
    strict_parse(header, log_pb2.Signed)
    return header


def _plain(work: Work) -> dict[str, object]:
    return {**asdict(work), "positions": list(work.positions)}


def _work(value: dict[str, Any]) -> Work:
    return Work(**{**value, "positions": Ranges.of((start, stop) for start, stop in value["positions"])})
