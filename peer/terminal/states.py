"""What a peer is doing, in words."""

from __future__ import annotations

from dataclasses import dataclass

from peer.terminal.quantities import clean, duration


@dataclass(frozen=True)
class Doing:
    """The facts that the words are made of."""

    phase: str
    round: int  # applied here
    head_round: int  # of the swarm
    reason: str = ""  # against training, by the owner's settings
    reachable: bool = True
    closing: bool = False  # the open round
    left_tokens: float = 0.0  # until the open round closes
    tokens_per_second: float = 0.0  # of the whole swarm
    swarm_words: str = ""  # the sequencer's own


def in_words(doing: Doing) -> str:
    """One line: "training round 41, closing in about 2 min"."""
    words = _own(doing)
    return words if doing.reachable else f"{words}; the coordinator does not answer, trying again and again"


def _own(doing: Doing) -> str:
    open_round, swarm = doing.round + 1, clean(doing.swarm_words)
    match doing.phase:
        case _ if doing.reason:
            return f"paused: {doing.reason}"
        case "syncing":
            behind = (
                f": at round {doing.round:,} of {doing.head_round:,}" if 0 <= doing.round < doing.head_round else ""
            )
            return f"catching up with the run{behind}"
        case "training":
            return f"training round {open_round:,}{_when(doing)}"
        case "encoding":
            return f"packing the contribution to round {open_round:,}"
        case "submitting":
            return f"handing in the contribution to round {open_round:,}" + (f"; {swarm}" if swarm else "")
        case "waiting":
            return f"done with round {open_round:,}, waiting for its record" + (f"; {swarm}" if swarm else "")
        case "applying":
            return f"applying round {open_round:,}"
        case "leaving":
            return "leaving"
    return doing.phase


def _when(doing: Doing) -> str:
    if doing.closing:
        return ", which is closing"
    if doing.left_tokens <= 0 or doing.tokens_per_second <= 0:
        return ""
    seconds = doing.left_tokens / doing.tokens_per_second
    if seconds < 90:
        return f", closing in about {max(seconds, 1):.0f} s"
    return f", closing in about {seconds / 60:.0f} min" if seconds < 5400 else f", closing in about {duration(seconds)}"
