"""Who may train on which positions of the data order: leases, as an immutable book.

Positions are given out in order, first those that came back, then new ones from the cursor. A lease ends when its
positions are accepted, when it expires or when its holder leaves; what was contributed to the open round is pinned
until that is decided, or two peers could bring the same positions into one record. Nothing here knows a clock: `now` is
passed in, in seconds of any monotonic origin.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from peer.rounds.ranges import Ranges

MAX_FRAGMENTS = 64  # ranges in one grant: what is leased must fit into the header of a contribution
REACH = 64  # how many peers' whole leases may lie above the cursor of the last record when a sequencer starts anew


@dataclass(frozen=True)
class Lease:
    positions: Ranges
    expires: float  # seconds
    pinned: Ranges = Ranges()  # contributed to the open round: they stay, whatever becomes of the holder
    unclaimed: Ranges = Ranges()  # the holder has said nothing of them since `unclaimed_since`
    unclaimed_since: float = 0.0  # seconds


@dataclass(frozen=True)
class LeaseBook:
    cursor: int = 0  # no position at or above was ever leased
    returned: Ranges = Ranges()  # below the cursor, neither leased nor accepted
    held: Mapping[bytes, Lease] = field(default_factory=dict)  # by public key
    withheld: Ranges = Ranges()  # below the cursor; may be leased by somebody else who leads, out of our sight
    withheld_until: float = 0.0  # seconds

    @classmethod
    def resume(cls, cursor: int, accepted: Ranges) -> LeaseBook:
        """The book from the log alone: what was leased and never accepted counts as returned, until its holder presents
        it (`present`)."""
        return cls(cursor=cursor, returned=Ranges.of([(0, cursor)]) - accepted)

    @classmethod
    def take_over(cls, cursor: int, accepted: Ranges, gap: int, until: float) -> LeaseBook:
        """The book of somebody who has just begun to lead.

        Those who hold leases need time to present them: what may be leased is given out to nobody else before `until`.
        And who leads because nobody answers may be wrong about that: beyond a cut others may go on, leasing from
        `cursor`. Whatever both sides lease counts for one of them only, so it starts `gap` positions further on.
        """
        withheld = Ranges.of([(0, cursor + gap)]) - accepted
        return cls(cursor=cursor + gap, withheld=withheld, withheld_until=until)

    def positions(self, peer: bytes) -> Ranges:
        lease = self.held.get(peer)
        return lease.positions if lease else Ranges()

    def grant(
        self, peer: bytes, count: int, now: float, lease_seconds: float, only_new: bool = False
    ) -> tuple[LeaseBook, Ranges]:
        """Lease `count` more positions to `peer` and renew what it has; returns the newly leased ones.

        `only_new`: none that came back; who let them go before would only hold them up again.
        """
        if count <= 0:
            return self.renew(peer, now, lease_seconds), Ranges()
        again = Ranges(self.returned.first(0 if only_new else count).pairs[:MAX_FRAGMENTS])
        new = Ranges.of([(self.cursor, self.cursor + count - len(again))])
        granted = again | new
        book = replace(
            self,
            cursor=max(self.cursor, new.stop),
            returned=self.returned - again,
            held=self._with(peer, granted, expires=now + lease_seconds),
        )
        return book, granted

    def renew(self, peer: bytes, now: float, lease_seconds: float) -> LeaseBook:
        lease = self.held.get(peer)
        if lease is None:
            return self
        return replace(self, held={**self.held, peer: replace(lease, expires=now + lease_seconds)})

    def refusal(self, peer: bytes, positions: Ranges) -> str:
        """Why `peer` may not contribute `positions`; empty when it may."""
        strange = positions - self.positions(peer)
        if not strange:
            return ""
        start, stop = strange.pairs[0]
        return f"positions {start} to {stop - 1} are not leased to this peer (the lease expired, or was never given)"

    def pin(self, peer: bytes, positions: Ranges) -> LeaseBook:
        """`peer` contributed `positions`, all of them its own, to the open round."""
        lease = self.held.get(peer)
        return replace(self, held={**self.held, peer: replace(lease, pinned=positions)}) if lease else self

    def unpin(self, peer: bytes) -> LeaseBook:
        """Its contribution will not be merged."""
        return self.pin(peer, Ranges())

    def accept(self, peer: bytes, positions: Ranges) -> LeaseBook:
        """`positions` are in the log now: nobody holds them and nobody gets them again."""
        held = self._without(peer, positions)
        return replace(
            self,
            returned=self.returned - positions,
            withheld=self.withheld - positions,
            held=held,
            cursor=max(self.cursor, positions.stop),
        )

    def release(self, peer: bytes, positions: Ranges | None = None) -> LeaseBook:
        """`peer` gives back `positions`, or everything it holds, but for what is pinned."""
        lease = self.held.get(peer)
        if lease is None:
            return self
        back = (lease.positions if positions is None else positions & lease.positions) - lease.pinned
        return replace(self, returned=self.returned | back, held=self._without(peer, back))

    def expire(self, now: float) -> tuple[LeaseBook, list[bytes]]:
        """Take back every lease whose time is over, and what was withheld for long enough; returns whose leases."""
        late = [peer for peer, lease in self.held.items() if lease.expires <= now]
        book = self
        if self.withheld and self.withheld_until <= now:
            book = replace(self, returned=self.returned | self.withheld, withheld=Ranges())
        for peer in late:
            book = book.release(peer)
        return book, late

    def present(
        self,
        peer: bytes,
        claimed: Ranges,
        accepted: Ranges,
        now: float,
        lease_seconds: float,
        grace_seconds: float,
        most: int,
    ) -> tuple[LeaseBook, Ranges]:
        """Bring the book and what `peer` says it holds into line; returns what the peer must drop.

        Positions that it claims and nobody else holds become its own again (the sequencer was restarted, or the lease
        had expired unnoticed), as long as it holds no more than `most` and does not reach absurdly far ahead.
        Positions that it does not claim for more than `grace_seconds` come back: the answer that carried them was lost.
        """
        own = self.positions(peer)
        strange, adopted = claimed - own, Ranges()
        if strange:  # rarely, and others' leases are many
            others = Ranges.of(pair for other, lease in self.held.items() if other != peer for pair in lease.positions)
            within_reach = Ranges.of([(0, self.cursor + REACH * most)])
            adopted = ((strange - others - accepted) & within_reach).first(most - len(own))
        book = self
        if adopted:
            gap = Ranges.of([(self.cursor, adopted.stop)]) - adopted  # skipped over: somebody may still present them
            book = replace(
                self,
                cursor=max(self.cursor, adopted.stop),
                returned=(self.returned | gap) - adopted,
                withheld=self.withheld - adopted,
                held=self._with(peer, adopted, expires=now + lease_seconds),
            )
        return book._heard_of(peer, claimed, now, grace_seconds), strange - adopted

    def _heard_of(self, peer: bytes, claimed: Ranges, now: float, grace_seconds: float) -> LeaseBook:
        """Take back what went unclaimed for too long. Each position has a clock of its own, or nearly: a peer that gets
        new leases with every heartbeat would else keep for ever what it never heard of."""
        lease = self.held.get(peer)
        if lease is None:
            return self
        unclaimed, since = lease.unclaimed - claimed, lease.unclaimed_since
        book = self
        if unclaimed and now - since > grace_seconds:
            book, unclaimed = self.release(peer, unclaimed), Ranges()
        if peer not in book.held:
            return book
        if not unclaimed:
            unclaimed, since = book.positions(peer) - claimed, now
        current = replace(book.held[peer], unclaimed=unclaimed, unclaimed_since=since)
        return replace(book, held={**book.held, peer: current})

    def _with(self, peer: bytes, positions: Ranges, expires: float) -> dict[bytes, Lease]:
        lease = self.held.get(peer, Lease(Ranges(), expires))
        return {**self.held, peer: replace(lease, positions=lease.positions | positions, expires=expires)}

    def _without(self, peer: bytes, positions: Ranges) -> dict[bytes, Lease]:
        held = dict(self.held)
        lease = held.pop(peer, None)
        if lease is not None and (left := lease.positions - positions):
            held[peer] = replace(
                lease, positions=left, pinned=lease.pinned - positions, unclaimed=lease.unclaimed - positions
            )
        return held
