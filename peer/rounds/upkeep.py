"""Keeping a replica at the head of the swarm's log: fetch records, apply them, change over to a better chain.

The log grows in two ways: this node leads and appends, or it follows and fetches. Either way what is in the log and not
in the state yet is applied here, one record at a time. Two chains meet here too: the other one is fetched whole from
where they part, checked, compared (`forks`), and if it wins, log and state go back to the common record and on from
there. What that means for a node's own work is its `Host`'s business.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from peer.background import whole
from peer.errors import DataError, Refused, UnreachableError, VerificationError
from peer.identity import PeerId
from peer.log.chain import Entry, Log, common
from peer.log.forks import wins
from peer.log.replica import Diverged, Forked, Replica
from peer.log.rules import equivocation
from peer.rounds.leader import Leader
from peer.rounds.link import MAX_ROUND, Link
from protos import log_pb2, swarm_pb2

logger = logging.getLogger(__name__)

RETRY_SECONDS = 2.0
LOOK_SECONDS = 5.0  # between two looks, when nothing seems to change
MENDABLE = (UnreachableError, Refused, VerificationError, DataError)  # by waiting, or by asking somebody else
MAX_REMEMBERED = 256


class Host(Protocol):
    """What a node does with its own work while theta moves under it."""

    async def apply(self) -> None:
        """Bring the state over the next record."""

    async def after_round(self, entry: Entry) -> None:
        """A record was applied."""

    async def change_over(self, change: Callable[[], Awaitable[list[Entry]]]) -> None:
        """Run `change`, which replaces the state and returns the records that the log has given up for others."""


class Upkeep:
    def __init__(
        self, replica: Replica, link: Link, leader: Leader, host: Host, on_event: Callable[[str], None]
    ) -> None:
        self.replica = replica
        self.link = link
        self.leader = leader
        self.host = host
        self.on_event = on_event
        self.look: Callable[[swarm_pb2.WatchReply], None] = lambda view: None  # at a view, when in step with it
        self.online: Callable[[], bool] = lambda: True  # whether the network may be used: payloads are large
        self.on_proof: Callable[[log_pb2.Equivocation], None] = lambda proof: None
        self._at_odds: float | None = None  # loop time since when the leader has had a chain that is not better
        self._stuck = False  # the newest records cannot be applied: nobody within reach has their payloads
        self._forward = asyncio.Lock()  # held while the state moves
        self._complaint = ""  # the last reason why the run could not be followed
        self._lost: dict[bytes, None] = {}  # heads of chains that were looked at, and are not better

    async def run(self) -> None:
        """Follow the log until cancelled."""
        while True:
            view = self.link.view
            if not self.online():
                await self.link.changed.wait(LOOK_SECONDS)
                continue
            try:
                await self._follow(view)
                await self.bring_up()
                self.look(view)
                self._compare_digests(view)
                self._complaint = ""
            except Diverged as error:
                await self._reload(error)
            except MENDABLE as error:
                await self._complain(f"cannot follow the run at the moment, trying again: {error}")
            if self.link.view is view:
                await self.link.changed.wait(LOOK_SECONDS)

    async def bring_up(self) -> None:
        """Apply every record of the log that the state does not have yet.

        Raises:
            Diverged: a record starts from another state than this one.
            UnreachableError, VerificationError: a payload, or the state, cannot be had at the moment.
        """
        log, replica = self.replica.log, self.replica
        while replica.state.round < log.head.round:
            if replica.state.round < 0:
                await self._load()
                continue
            entry = log.entries[replica.state.round + 1]
            try:
                await replica.fetch_payloads(entry)
                self._stuck = False
            except UnreachableError:
                self._stuck = True
                if log.head.round - entry.round < log.spec.snapshots.every_rounds:
                    raise
                await self._load()  # nobody keeps payloads for ever
                await replica.keep_snapshot(1)  # nor can a replay of this folder start before
                continue
            async with self._forward:
                if log.entries[replica.state.round + 1 : replica.state.round + 2] != [entry]:
                    continue  # somebody else was faster, or the log has changed
                await self.host.apply()
                await self.host.after_round(entry)

    async def catch_up_with(self, peer: PeerId, head_round: int = MAX_ROUND, head_hash: bytes = b"") -> bool:
        """Take over what `peer` has beyond this log, or instead of its end; whether there was any such thing.

        Its head, where it is known, saves asking for what is known.

        Raises:
            VerificationError: what it has is wrong.
            UnreachableError, Refused: it did not answer, or would not.
        """
        log = self.replica.log
        if self.holds(head_round, head_hash) or head_hash in self._lost:
            return False
        if head_round > log.head.round and not self.leader.leading:
            with contextlib.suppress(Forked):
                return bool(await self.replica.fetch_records(self.link.swarm, peer, head_round))
        branch = await self.replica.fetch_branch(self.link.swarm, peer)
        self._look_for_lies(branch)
        ours = log.branch(self.replica.state.round) if self._stuck else log  # what nobody can apply counts for nothing
        if not await asyncio.to_thread(wins, branch, ours):
            self._lost[branch.head.hash] = None
            while len(self._lost) > MAX_REMEMBERED:
                del self._lost[next(iter(self._lost))]
            return False
        await self._change_over(branch)
        return True

    async def step_back(self) -> None:
        """Give up the records that cannot be applied, to go on from the state there is: payloads may be on the other
        side of a cut, and those there go on with them."""
        log, round_ = self.replica.log, self.replica.state.round
        if 0 <= round_ < log.head.round:
            given_up = log.head.hash
            await self._change_over(log.branch(round_))
            self._lost[given_up] = None  # not again from somebody who has no more than this node had

    def holds(self, round_: int, hash_: bytes) -> bool:
        """Whether a record is one of this log's."""
        return self.replica.log.holds(round_, hash_)

    @property
    def odds_seconds(self) -> float:
        """For how long the leader has been one that does not give up a chain which has lost."""
        return 0.0 if self._at_odds is None else asyncio.get_running_loop().time() - self._at_odds

    async def _follow(self, view: swarm_pb2.WatchReply) -> None:
        if view.head_hash and not self.leader.leading and view.leader != self.link.swarm.peer_id.public_key:
            await self.catch_up_with(PeerId(view.leader), view.head_round, view.head_hash)
            if not self.holds(view.head_round, view.head_hash):
                self._at_odds = self._at_odds or asyncio.get_running_loop().time()
                return
            if self._stuck and view.head_round < self.replica.log.head.round:
                await self.step_back()  # the new leader could not apply them either
        self._at_odds = None

    def _look_for_lies(self, branch: Log) -> None:
        ours, theirs = self.replica.log.entries, branch.entries
        shared = common(ours, theirs)
        for one, other in zip(ours[shared + 1 :], theirs[shared + 1 :], strict=False):
            if (proof := equivocation(one, other)) is not None:
                self.on_proof(proof)

    async def _change_over(self, branch: Log) -> None:
        log, replica = self.replica.log, self.replica
        self.leader.resign()
        self._lost.clear()
        undone: list[Entry] = []

        async def change() -> list[Entry]:
            undone.extend(log.adopt(branch))
            if undone:
                await replica.roll_back(undone[0].round - 1)
            return undone

        async with self._forward:
            await whole(self.host.change_over(change))
        if undone:
            self.on_event(
                f"{len(undone)} rounds from {undone[0].round} on are taken back, the swarm goes on without them; the "
                f"log ends with round {log.head.round} now, own work in what was taken back is handed in again"
            )

    def _compare_digests(self, view: swarm_pb2.WatchReply) -> None:
        replica = self.replica
        same_head = view.head_hash == replica.log.head.hash and view.head_round == replica.state.round
        if same_head and view.head_digest not in (b"", replica.digest):
            raise Diverged(f"after round {view.head_round} this node's state is not the swarm's")

    async def _reload(self, reason: Diverged) -> None:
        """Take the swarm's state instead of this one. What was settled stays in the error-feedback buffer."""
        self.on_event(f"{reason}; loading it again")
        try:
            await self._load()
        except MENDABLE as error:
            await self._complain(f"the state could not be loaded, trying again: {error}")
            return
        self.on_event(f"in sync again at round {self.replica.state.round}")

    async def _load(self) -> None:
        view, head = self.link.view, self.replica.log.head

        async def change() -> list[Entry]:
            digest = view.head_digest if view.head_hash == head.hash else b""
            await self.replica.reload(self.link.swarm, digest)
            return []

        async with self._forward:
            await self.host.change_over(change)

    async def _complain(self, reason: str) -> None:
        """Say it once, and wait a little before the next attempt."""
        if reason != self._complaint:
            self._complaint = reason
            self.on_event(reason)
        await asyncio.sleep(RETRY_SECONDS)
