"""Who is here, as the sequencer sees it: the newest presence of every live peer, bounded in number and size.

Everything in a presence is said by the peer itself. It is shown to people and decides nothing that the log decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from peer.identity import PeerId
from peer.log.accounting import Accounts
from peer.rounds.ranges import well_formed
from protos import swarm_pb2

MAX_GUESTS = 1024  # peers without credit beyond are turned away; who has credit always has a place
PROBATION_SECONDS = 120.0  # for which a newcomer may keep a place that another wants, without any credit yet
MAX_RANGES = 2000  # that a heartbeat may claim to hold
MAX_LABEL_CHARACTERS = 60
MAX_ADDRESSES = 32
MAX_ADDRESS_CHARACTERS = 300
MAX_TOKENS_PER_SECOND = 1e12


@dataclass
class Guest:
    """The newest presence of a peer, for people to look at. Nothing in it is trusted."""

    presence: swarm_pb2.Presence
    seen: float  # loop time
    since: float  # loop time; when it came

    @classmethod
    def of(cls, presence: swarm_pb2.Presence, seen: float, before: Guest | None = None) -> Guest:
        """Without the leases: they are long, and in the lease book."""
        short = swarm_pb2.Presence()
        short.CopyFrom(presence)
        del short.held[:]
        short.ClearField("admission")
        return cls(short, seen, before.since if before else seen)


def has_place(
    peer: PeerId, guests: Mapping[PeerId, Guest], accounts: Accounts, now: float
) -> tuple[bool, list[PeerId]]:
    """Whether `peer` may take part now, and who has to go for it.

    Any number of keys can be made, so somebody has to be turned away. Keys that do no work must not keep those out that
    would: a newcomer takes the place of the one that has been here longest, past its probation, without any credit.
    """
    if peer in guests or accounts.credit_of(peer.public_key) > 0:
        return True, []
    strangers = [(guest.since, other) for other, guest in guests.items() if not accounts.credit_of(other.public_key)]
    if len(strangers) < MAX_GUESTS:
        return True, []
    since, oldest = min(strangers)
    return (True, [oldest]) if now - since > PROBATION_SECONDS else (False, [])


def presence_fault(presence: swarm_pb2.Presence, run_id: bytes) -> str:
    """Why a presence from outside makes no sense; empty when it does."""
    if presence.run_id != run_id:
        return "this node sequences another run; check the ticket"
    if not math.isfinite(presence.loss) or not 0 <= presence.tokens_per_second <= MAX_TOKENS_PER_SECOND:
        return "a figure of the heartbeat is not a finite number, or makes no sense"
    labels = (presence.name, presence.team, presence.phase, presence.hardware)
    if any(len(label) > MAX_LABEL_CHARACTERS or not label.isprintable() for label in labels):
        return f"names have at most {MAX_LABEL_CHARACTERS} printable characters"
    if len(presence.addresses) > MAX_ADDRESSES or any(len(it) > MAX_ADDRESS_CHARACTERS for it in presence.addresses):
        return "the heartbeat lists too many addresses, or too long ones"
    if len(presence.held) > MAX_RANGES or not well_formed(presence.held):
        return "the heartbeat lists too many ranges, or ranges that are not sorted and disjoint"
    return ""
