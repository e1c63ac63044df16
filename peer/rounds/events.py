"""What the sequencer is told, and what it answers: plain facts and plain orders, between `sequencer` and its shell."""

from __future__ import annotations

from dataclasses import dataclass

from peer.rounds.ranges import Ranges

# --- events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Heard:
    """A heartbeat: where the peer is and what it did in the open round."""

    peer: bytes
    head_round: int
    round_tokens: int  # trained on and not yet merged
    tokens_per_second: float
    phase: str
    held: Ranges
    wanted_sequences: int
    accepted: Ranges  # positions that are in the log, for checking what it claims to hold


@dataclass(frozen=True)
class Left:
    peer: bytes


@dataclass(frozen=True)
class Submission:
    """A contribution whose header is in order. `norm` is known once its payload was fetched and checked."""

    peer: bytes
    payload_hash: bytes
    tokens: int
    consumed: Ranges
    payload_bytes: int = 0
    header_bytes: int = 0
    norm: float | None = None


@dataclass(frozen=True)
class Offered:
    submission: Submission


@dataclass(frozen=True)
class Checked:
    """The payload was fetched and decodes; or `reason` says why not."""

    peer: bytes
    payload_hash: bytes
    norm: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class Tick:
    """Nothing happened but time."""


@dataclass(frozen=True)
class Pause:
    paused: bool


@dataclass(frozen=True)
class End:
    """The open round is the last one: close it as soon as there is something in it."""


Event = Heard | Left | Offered | Checked | Tick | Pause | End


# --- effects ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Leased:
    peer: bytes
    positions: Ranges
    revoked: Ranges


@dataclass(frozen=True)
class Fetch:
    """Get the payload of this submission and answer with `Checked`."""

    submission: Submission


@dataclass(frozen=True)
class Refuse:
    peer: bytes
    reason: str


@dataclass(frozen=True)
class Closing:
    round: int
    deadline_seconds: float


@dataclass(frozen=True)
class Refusal:
    peer: bytes
    payload_hash: bytes
    tokens: int
    reason: str


@dataclass(frozen=True)
class Publish:
    round: int
    accepted: tuple[Submission, ...]  # in order of public key
    refused: tuple[Refusal, ...]
    data_cursor: int
    deadline_seconds: float


@dataclass(frozen=True)
class Gone:
    """Not heard of for too long."""

    peer: bytes


Effect = Leased | Fetch | Refuse | Closing | Publish | Gone
