"""A node's line to whoever leads: watch, heartbeat, submit. Reconnects by itself, never raises for a lost line.

`Link.view` is always the newest answer of a node that leads. Every call has a deadline; between failures it waits
longer and longer, up to `MAX_PAUSE_SECONDS`. Who is followed may change at any time (`turn_to`): calls to the one
before are given up then. A node that leads has a line to itself, and does not notice the difference.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping

from peer.errors import CommonweightsError, Refused, UnreachableError
from peer.identity import PeerId
from peer.messages import parse
from peer.pulse import Pulse
from peer.rounds import directory
from peer.rounds.guests import MAX_ADDRESS_CHARACTERS, MAX_ADDRESSES
from peer.rounds.ranges import well_formed
from peer.swarm import Swarm
from protos import log_pb2, swarm_pb2
from protos.signing import HASH_BYTES, PUBLIC_KEY_BYTES

logger = logging.getLogger(__name__)

CALL_SECONDS = 10.0
WATCH_SECONDS = 15.0
FIRST_PAUSE_SECONDS = 0.5
MAX_PAUSE_SECONDS = 15.0
NO_NEWS_SECONDS = 0.2  # before a leader is asked again that answered at once and had nothing new
MAX_SOURCES = 64  # that a blob is asked of
MAX_TRIED = 16  # nodes on the way into a run whose coordinator is away
MAX_ROUND = 1 << 32
MAX_WORDS = 500


class Link:
    """The sequencer, as one node sees it."""

    def __init__(
        self,
        swarm: Swarm,
        run_id: bytes,
        sequencer: PeerId,
        addresses: list[str],
        changed: Pulse,
        on_event: Callable[[str], None],
    ) -> None:
        self.swarm = swarm
        self.run_id = run_id
        self.sequencer = sequencer  # whom this node follows
        self.addresses = addresses
        self.on_event = on_event
        self.view = swarm_pb2.WatchReply()
        self.reachable = True
        self.changed = changed  # beats with every new view
        self.heard = asyncio.get_running_loop().time()  # when the sequencer last answered as one that leads
        self.term = 0  # of the sequencer, as far as it is known
        self.watch_seconds = WATCH_SECONDS  # how long one watch lasts; its answer may take as long again
        self.others: Callable[[], list[PeerId]] = list  # more nodes that serve blobs
        self._turned = asyncio.Event()
        self._calls: set[asyncio.Timeout] = set()  # under way to the node that is followed
        self._complaint = ""  # the last reason why a heartbeat was refused

    async def connect(self, timeout_seconds: float = 20.0) -> None:
        """First contact.

        Raises:
            UnreachableError: nobody answers at these addresses.
            Refused: somebody does, but it sequences another run.
        """
        await self.swarm.connect(self.sequencer, self.addresses, timeout_seconds=timeout_seconds)
        self._take(await self._watch(wait_seconds=0))

    async def connect_through(self, contacts: Mapping[PeerId, list[str]]) -> bool:
        """First contact while the sequencer does not answer: over one of these nodes, to whom it follows, or to itself
        when nobody leads. Whether one answered."""
        for peer, addresses in list(contacts.items())[-MAX_TRIED:]:
            self.turn_to(peer, 0, addresses)
            try:
                await self.swarm.connect(peer, addresses, timeout_seconds=CALL_SECONDS)
                self._take(await self._watch(wait_seconds=0))
                if self.sequencer != peer:
                    await self.swarm.connect(self.sequencer, self.addresses, timeout_seconds=CALL_SECONDS)
                    self._take(await self._watch(wait_seconds=0))
            except CommonweightsError as error:
                logger.info("no way into the run through %s: %s", peer.short, error)
            else:
                return True
        return False

    def turn_to(self, sequencer: PeerId, term: int, addresses: list[str]) -> None:
        """Follow another node from now on. It counts as heard when it has answered."""
        if sequencer == self.sequencer:
            return
        self.sequencer, self.term, self.addresses = sequencer, term, addresses
        self.view.version = 0
        turned, self._turned = self._turned, asyncio.Event()
        turned.set()
        calls, self._calls = self._calls, set()
        for call in calls:
            call.reschedule(asyncio.get_running_loop().time())
        self.changed.beat()

    @property
    def silent_seconds(self) -> float:
        """Since the sequencer was last heard."""
        return asyncio.get_running_loop().time() - self.heard

    async def follow(self) -> None:
        """Keep the view fresh until cancelled."""
        pause, turned = FIRST_PAUSE_SECONDS, self._turned
        while True:
            if turned is not self._turned:
                pause, turned = FIRST_PAUSE_SECONDS, self._turned
            try:
                version = self.view.version
                view = await self._watch(self.watch_seconds)
                if turned is not self._turned:
                    continue
                self._take(view)
                pause = FIRST_PAUSE_SECONDS
                if not self._leads(view):
                    await self._pause(FIRST_PAUSE_SECONDS)
                    continue
                if not self.reachable:
                    self.reachable = True
                    self.on_event("the sequencer answers again")
                if view.version == version:
                    await self._pause(NO_NEWS_SECONDS)
            except CommonweightsError as error:
                if turned is not self._turned:
                    continue
                if self.reachable:
                    self.reachable = False
                    self.on_event(f"the sequencer does not answer; trying again and again ({error})")
                    self.changed.beat()
                await self._pause(pause)
                pause = min(2 * pause, MAX_PAUSE_SECONDS)
                await self._reconnect()

    async def heartbeat(self, presence: swarm_pb2.Presence, wanted_sequences: int) -> swarm_pb2.HeartbeatReply | None:
        """Report, and get leases; None when the sequencer could not be reached or would not listen."""
        request = swarm_pb2.HeartbeatRequest(presence=presence, wanted_sequences=wanted_sequences)
        try:
            reply = await self._call("heartbeat", request.SerializeToString(), CALL_SECONDS)
            answer = parse(reply, swarm_pb2.HeartbeatReply)
            if not (well_formed(answer.leased) and well_formed(answer.revoked)):
                raise Refused("the answer lists ranges that are not sorted and disjoint")
            self._complaint = ""
            self.heard = asyncio.get_running_loop().time()
            return answer
        except Refused as error:
            if str(error) != self._complaint:  # once, not at every heartbeat
                self._complaint = str(error)
                self.on_event(f"heartbeat refused: {error}")
        except UnreachableError as error:
            logger.debug("heartbeat: %s", error)
        return None

    async def submit(self, contribution: log_pb2.Signed) -> swarm_pb2.SubmitReply:
        """Hand a contribution's header in; the sequencer then fetches the payload. May be repeated.

        Raises:
            UnreachableError: no answer, or none about the contribution (too busy, say): it may be in the round or not.
            Refused: with the reason; it will not be merged.
        """
        request = swarm_pb2.SubmitRequest(contribution=contribution)
        try:
            reply = parse(
                await self._call("submit", request.SerializeToString(), 2 * CALL_SECONDS), swarm_pb2.SubmitReply
            )
        except Refused as error:  # not the sequencer's word on the contribution, which comes in the reply
            raise UnreachableError(f"the sequencer does not take it at the moment: {error}") from None
        if reply.refusal:
            raise Refused(reply.refusal)
        return reply

    @property
    def sources(self) -> list[PeerId]:
        """Who serves blobs: the sequencer first, then peers that can be dialled."""
        others = [PeerId(key) for key in self.view.sources[:MAX_SOURCES]]
        known = dict.fromkeys([self.sequencer, *others, *self.others()])
        return [peer for peer in known if peer != self.swarm.peer_id][:MAX_SOURCES]

    async def _watch(self, wait_seconds: float) -> swarm_pb2.WatchReply:
        request = swarm_pb2.WatchRequest(run_id=self.run_id, version=self.view.version, wait_seconds=wait_seconds)
        patience = min(wait_seconds, CALL_SECONDS) if wait_seconds else CALL_SECONDS
        reply = await self._call("watch", request.SerializeToString(), wait_seconds + patience)
        view = parse(reply, swarm_pb2.WatchReply)
        if reason := view_fault(view):
            raise Refused(f"the answer of the sequencer makes no sense: {reason}")
        return view

    async def _call(self, method: str, request: bytes, timeout_seconds: float) -> bytes:
        """One question to the sequencer, given up when this node turns to another."""
        call = asyncio.timeout(None)  # ends when this node turns; cheaper than tasks, and there are many calls
        self._calls.add(call)
        try:
            async with call:
                return await self.swarm.call(self.sequencer, method, request, timeout_seconds=timeout_seconds)
        except TimeoutError:
            raise UnreachableError("another node leads now") from None
        finally:
            self._calls.discard(call)

    async def _pause(self, seconds: float) -> None:
        """So long, or until this node turns to another."""
        try:
            async with asyncio.timeout(seconds):
                await self._turned.wait()
        except TimeoutError:
            pass

    async def _reconnect(self) -> None:
        try:
            pointer = await directory.head(self.swarm, self.run_id, self.sequencer)
            if pointer is not None and pointer.addresses:  # it may have moved since the ticket was written
                self.addresses = list(dict.fromkeys([*pointer.addresses[:8], *self.addresses]))[:16]
            await self.swarm.connect(self.sequencer, self.addresses, timeout_seconds=CALL_SECONDS)
        except CommonweightsError as error:
            logger.debug("reconnect: %s", error)

    def _take(self, view: swarm_pb2.WatchReply) -> None:
        """The word of a node that leads is the view; of another, where to go instead."""
        if self._leads(view):
            self.view, self.term = view, view.term
            self.heard = asyncio.get_running_loop().time()
            self.changed.beat()
        elif view.leader not in (b"", self.swarm.peer_id.public_key):
            self.turn_to(PeerId(view.leader), view.term, list(view.leader_addresses))

    def _leads(self, view: swarm_pb2.WatchReply) -> bool:
        return view.leader == self.sequencer.public_key


def view_fault(view: swarm_pb2.WatchReply) -> str:
    """Why a view makes no sense; empty when it does. A sequencer may be of another version, or worse."""
    if not (math.isfinite(view.closes_in_seconds) and math.isfinite(view.tokens_per_second)):
        return "a figure is not a finite number"
    if view.head_round > MAX_ROUND or len(view.head_digest) not in (0, HASH_BYTES):
        return "its head is not one"
    if any(len(key) != PUBLIC_KEY_BYTES for key in view.sources):
        return "a source is not a peer"
    if any(len(it.payload_hash) != HASH_BYTES or len(it.peer) != PUBLIC_KEY_BYTES for it in view.announced):
        return "an announcement names no payload or no peer"
    if len(view.leader) not in (0, PUBLIC_KEY_BYTES) or len(view.leader_addresses) > MAX_ADDRESSES:
        return "the leader it names is not one"
    if any(len(address) > MAX_ADDRESS_CHARACTERS for address in view.leader_addresses):
        return "the leader's addresses are not addresses"
    if len(view.state_words) > MAX_WORDS or not view.state_words.isprintable():
        return "its words are not fit to print"
    return ""
