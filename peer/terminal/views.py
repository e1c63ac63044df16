"""What a person is shown, as plain data: the console draws it, the code that runs things fills it in.

Nothing here knows of rich, sockets or torch. `None` means "not known yet", never zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Curve = Sequence[tuple[int, float]]  # (round, nats per token), by round


@dataclass(frozen=True)
class PeerView:
    """One row of the table of peers."""

    name: str  # what the peer calls itself, or its short id
    phase: str = ""  # "training", "submitting" ...
    round_tokens: int = 0  # in the open round
    tokens_per_second: float | None = None
    credit_tokens: int = 0  # confirmed and pending
    pending_tokens: int = 0  # of the credit: what a verdict may still void
    loss: float | None = None
    bytes_sent: int | None = None
    bytes_received: int | None = None
    silent_seconds: float = 0.0  # since it was last heard of


@dataclass(frozen=True)
class SwarmView:
    """A run as the coordinator sees it."""

    run_name: str
    state: str = ""  # in words: "2 of 3 peers submitted; closing in 14 s"
    round: int = 0  # the head: the last finished round
    target_rounds: int = 0  # 0: open-ended
    tokens: int = 0  # accepted since the start
    target_tokens: int = 0  # 0: open-ended
    round_tokens: int = 0  # reported in the open round
    round_target_tokens: int = 0
    tokens_per_second: float | None = None
    eta_seconds: float | None = None
    loss: float | None = None
    eval_loss: float | None = None
    losses: Curve = ()
    eval_losses: Curve = ()
    peers: Sequence[PeerView] = ()
    address: str = ""  # of the web page


@dataclass(frozen=True)
class JoinView:
    """A run as one peer sees it."""

    run_name: str
    peer: PeerView
    state: str = ""  # in words: "training", "fetching chunk 12 of 40 of the state of round 120"
    device: str = ""
    round: int = 0  # the last record applied
    target_rounds: int = 0
    tokens: int = 0  # this peer's, since it started now
    rounds_contributed: int = 0
    swarm_tokens: int = 0
    target_tokens: int = 0
    round_tokens: int = 0  # of the whole swarm in the open round
    round_target_tokens: int = 0
    swarm_tokens_per_second: float | None = None
    swarm_peers: int | None = None
    eta_seconds: float | None = None
    loss: float | None = None  # of the last finished round
    losses: Curve = ()
    up_bytes_per_second: float | None = None  # over the last seconds
    down_bytes_per_second: float | None = None
    codec: str = ""  # of this peer's newest contribution, or of its next one
    payload_bytes: int | None = None  # of a contribution as that, about
    uplink_bytes_per_second: float | None = None  # as its contributions measured it, or as the owner allows
    compute_seconds: float = 0.0  # spent in steps since it started now


@dataclass(frozen=True)
class Summary:
    """A finished demo on one screen."""

    run_name: str
    rounds: int
    tokens: int
    seconds: float
    losses: Curve
    eval_losses: Curve
    peers: Sequence[PeerView]  # round_tokens: trained on in this run
    state_digest: str  # hex
    digests_equal: bool  # every peer and the coordinator hold the same weights, to the last bit
    checkpoint: str  # folder
    prompt: str = ""
    sample: str = ""  # what the checkpoint goes on with after the prompt
    next_steps: Sequence[tuple[str, str]] = ()  # (command or place, what it is for)
