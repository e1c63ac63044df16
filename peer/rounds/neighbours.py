"""The nodes that this one can ask where they stand, and what they say.

Standings from outside are checked here: sizes, numbers, the run. What follows from them is `helm`'s to decide.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable

from peer.errors import CommonweightsError, Refused, UnreachableError
from peer.identity import PeerId
from peer.log.chain import Log
from peer.log.rules import may_sequence
from peer.messages import parse
from peer.rounds import directory
from peer.rounds.contacts import Contacts
from peer.rounds.guests import MAX_ADDRESS_CHARACTERS, MAX_ADDRESSES
from peer.rounds.link import MAX_ROUND
from peer.swarm import Swarm
from protos import swarm_pb2
from protos.signing import HASH_BYTES, PUBLIC_KEY_BYTES

logger = logging.getLogger(__name__)

MAX_ASKED = 16  # nodes at once
MAX_NEWS = 64  # standings that came and were not looked at yet

Standings = dict[PeerId, swarm_pb2.Standing]


class Neighbours:
    """`say` is what this node tells about itself whenever it asks."""

    def __init__(
        self, swarm: Swarm, log: Log, contacts: Contacts, say: Callable[[], swarm_pb2.Standing], patience_seconds: float
    ) -> None:
        self.swarm, self.log, self.contacts, self.say = swarm, log, contacts, say
        self.patience_seconds = patience_seconds  # for one answer
        self.highest_term = 0  # of anybody who may lead, as far as was heard
        self._news: Standings = {}

    async def ask(self, peers: Iterable[PeerId]) -> dict[PeerId, swarm_pb2.Standing]:
        """Standings of those that answer in time."""
        asked = [peer for peer in dict.fromkeys(peers) if peer != self.swarm.peer_id][:MAX_ASKED]
        answers = await asyncio.gather(*(self._ask_one(peer) for peer in asked))
        return {peer: answer for peer, answer in zip(asked, answers, strict=True) if answer is not None}

    async def _ask_one(self, peer: PeerId) -> swarm_pb2.Standing | None:
        swarm, request, patience = self.swarm, self.say().SerializeToString(), self.patience_seconds
        try:
            async with asyncio.timeout(patience):
                try:
                    reply = await swarm.call(peer, "standing", request, timeout_seconds=patience)
                except UnreachableError:
                    await swarm.connect(peer, self.contacts.addresses.get(peer, []), timeout_seconds=patience)
                    reply = await swarm.call(peer, "standing", request, timeout_seconds=patience)
            return self.checked(parse(reply, swarm_pb2.Standing))
        except (CommonweightsError, TimeoutError) as error:
            logger.debug("no standing from %s: %s", peer.short, error)
            return None

    def checked(self, standing: swarm_pb2.Standing) -> swarm_pb2.Standing:
        if reason := standing_fault(standing, self.log.run_id):
            raise Refused(reason)
        if may_sequence(standing.leader, self.log):
            self.highest_term = max(self.highest_term, min(standing.term, self.log.head.record.term + (1 << 31)))
        return standing

    def take_news(self) -> dict[PeerId, swarm_pb2.Standing]:
        news, self._news = self._news, {}
        return news

    async def told(self, sender: PeerId, body: bytes) -> bytes:
        """Somebody asks, and says where it stands itself."""
        standing = self.checked(parse(body, swarm_pb2.Standing))
        if len(self._news) < MAX_NEWS:
            self._news[sender] = standing
        return self.say().SerializeToString()

    def some(self, count: int) -> list[PeerId]:
        known = [peer for peer in self.contacts.addresses if peer != self.swarm.peer_id]
        return random.sample(known, min(count, len(known)))

    async def announced_leaders(self) -> list[PeerId]:
        found = await directory.heads(self.swarm, self.log.run_id)
        for peer, pointer in found.items():
            if may_sequence(peer.public_key, self.log):
                self.contacts.add(peer, pointer.addresses)
        return [peer for peer in found if peer in self.contacts.addresses][:MAX_ASKED]

    async def refresh(self, guests: dict[PeerId, swarm_pb2.Presence]) -> None:
        """Learn whom one could dial: from the DHT, and from those that are here."""
        found = await directory.peers(self.swarm, self.log.run_id)
        for peer, presence in {**found, **guests}.items():
            if presence.can_serve and peer != self.swarm.peer_id and may_sequence(peer.public_key, self.log):
                self.contacts.add(peer, presence.addresses)
        self.contacts.save()


def standing_fault(standing: swarm_pb2.Standing, run_id: bytes) -> str:
    """Why a standing from outside makes no sense; empty when it does."""
    if standing.run_id != run_id:
        return "this node takes part in another run"
    if standing.head_round > MAX_ROUND or len(standing.head_hash) != HASH_BYTES:
        return "its head is not one"
    if len(standing.leader) not in (0, PUBLIC_KEY_BYTES) or not standing.silent_seconds >= 0:
        return "the leader it names is not one"
    addresses = standing.leader_addresses
    if len(addresses) > MAX_ADDRESSES or any(len(it) > MAX_ADDRESS_CHARACTERS for it in addresses):
        return "the leader's addresses are not addresses"
    return ""
