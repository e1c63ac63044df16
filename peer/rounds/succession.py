"""Who leads when the one who led is silent: a pure function of the log, of who can be dialled, and of what they say.

The line of succession is the coordinator, then peers that can be dialled by credit in the log, then by key. Everybody
computes it; nobody sends it. Lines may differ a little between nodes that know of different peers. That costs a second
leader now and then, which they notice (`helm`), and never a record that others would not follow.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

STAGGER = 1 / 3  # of the silence: how much longer one waits for each node ahead in line that is alive
GULLIBLE = 4  # silences, after which nobody is believed any more who says that the leader is well


@dataclass(frozen=True)
class Word:
    """What a node says about itself and its leader."""

    peer: bytes  # public key
    leader: bytes  # whom it follows; itself when it leads; empty: nobody
    term: int  # of its leader
    silent_seconds: float  # since it heard of its leader

    @property
    def leads(self) -> bool:
        return self.peer == self.leader


@dataclass(frozen=True)
class Follow:
    leader: bytes
    term: int


@dataclass(frozen=True)
class Lead:
    rank: int  # own place in the line, 0 the first


@dataclass(frozen=True)
class Wait:
    reason: str


Decision = Follow | Lead | Wait


def line_of_succession(
    coordinator: bytes, credit: Mapping[bytes, int], reachable: Collection[bytes], banned: Collection[bytes]
) -> list[bytes]:
    """Public keys, first in line first. A peer without credit is not in it, nor one that told two tales."""
    peers = (key for key in set(reachable) if credit.get(key, 0) > 0 and key != coordinator)
    line = [coordinator, *sorted(peers, key=lambda key: (-credit[key], key))]
    return [key for key in line if key not in banned]


def decide(
    own: bytes,
    followed: bytes,
    line: Sequence[bytes],
    words: Sequence[Word],
    silent_seconds: float,
    silence_seconds: float,
) -> Decision:
    """What a node does that has not heard `followed`, its leader, for `silent_seconds`.

    Args:
        line: see `line_of_succession`; who is not in it is not believed to lead either.
        words: answers that came just now, from anybody.
        silence_seconds: of the run: a leader that is silent for so long is given up.
    """
    leaders = [word for word in words if word.leads and word.peer in line and word.peer != own]
    if leaders:
        best = max(leaders, key=lambda word: (word.term, -line.index(word.peer)))
        return Follow(best.peer, best.term)
    gullible = silent_seconds < GULLIBLE * silence_seconds
    fresh = [word for word in words if gullible and word.leader in line and word.silent_seconds < silence_seconds]
    if others := [word for word in fresh if word.leader not in (own, followed)]:
        best = max(others, key=lambda word: (word.term, -line.index(word.leader)))
        return Follow(best.leader, best.term)
    if any(word.leader == followed != own for word in fresh):
        return Wait("others hear the leader; only the way to it is cut")
    if own not in line:
        return Wait("nobody leads; this node cannot (no credit yet, or it cannot be dialled)")
    rank = line.index(own)
    ahead = sum(word.peer in line[:rank] for word in words)
    if silent_seconds < silence_seconds * (1 + STAGGER * ahead):
        return Wait("nobody leads yet")
    return Lead(rank)


def yields(own: Word, other: Word, line: Sequence[bytes]) -> bool:
    """Of two nodes that lead and have the same log: whether the one with `own` word stops."""
    return other.leads and (other.term, -_place(other.peer, line)) > (own.term, -_place(own.peer, line))


def _place(peer: bytes, line: Sequence[bytes]) -> int:
    return line.index(peer) if peer in line else len(line)
