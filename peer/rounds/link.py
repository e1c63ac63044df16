"""A peer's line to the sequencer: watch, heartbeat, submit. Reconnects by itself, never raises for a lost line.

`Link.view` is always the newest answer. Every call has a deadline; between failures it waits longer and longer, up to
`MAX_PAUSE_SECONDS`.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable

from peer.errors import CommonweightsError, Refused, UnreachableError
from peer.identity import PeerId
from peer.messages import parse
from peer.pulse import Pulse
from peer.rounds import directory
from peer.rounds.ranges import well_formed
from peer.swarm import Swarm
from protos import log_pb2, swarm_pb2
from protos.signing import HASH_BYTES, PUBLIC_KEY_BYTES

logger = logging.getLogger(__name__)

CALL_SECONDS = 10.0
WATCH_SECONDS = 15.0
FIRST_PAUSE_SECONDS = 0.5
MAX_PAUSE_SECONDS = 15.0
MAX_SOURCES = 64  # that a blob is asked of
MAX_ROUND = 1 << 32
MAX_WORDS = 500


class Link:
    """The sequencer, as one peer sees it."""

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
        self.sequencer = sequencer
        self.addresses = addresses
        self.on_event = on_event
        self.view = swarm_pb2.WatchReply()
        self.reachable = True
        self.changed = changed  # beats with every new view
        self._complaint = ""  # the last reason why a heartbeat was refused

    async def connect(self, timeout_seconds: float = 20.0) -> None:
        """First contact.

        Raises:
            UnreachableError: nobody answers at these addresses.
            Refused: somebody does, but it sequences another run.
        """
        await self.swarm.connect(self.sequencer, self.addresses, timeout_seconds=timeout_seconds)
        self._take(await self._watch(wait_seconds=0))

    async def follow(self) -> None:
        """Keep the view fresh until cancelled."""
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                self._take(await self._watch(WATCH_SECONDS))
                pause = FIRST_PAUSE_SECONDS
                if not self.reachable:
                    self.reachable = True
                    self.on_event("the coordinator answers again")
            except CommonweightsError as error:
                if self.reachable:
                    self.reachable = False
                    self.on_event(f"the coordinator does not answer; trying again and again ({error})")
                    self.changed.beat()
                await asyncio.sleep(pause)
                pause = min(2 * pause, MAX_PAUSE_SECONDS)
                await self._reconnect()

    async def heartbeat(self, presence: swarm_pb2.Presence, wanted_sequences: int) -> swarm_pb2.HeartbeatReply | None:
        """Report, and get leases; None when the sequencer could not be reached or would not listen."""
        request = swarm_pb2.HeartbeatRequest(presence=presence, wanted_sequences=wanted_sequences)
        try:
            reply = await self.swarm.call(
                self.sequencer, "heartbeat", request.SerializeToString(), timeout_seconds=CALL_SECONDS
            )
            answer = parse(reply, swarm_pb2.HeartbeatReply)
            if not (well_formed(answer.leased) and well_formed(answer.revoked)):
                raise Refused("the answer lists ranges that are not sorted and disjoint")
            self._complaint = ""
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
                await self.swarm.call(
                    self.sequencer, "submit", request.SerializeToString(), timeout_seconds=2 * CALL_SECONDS
                ),
                swarm_pb2.SubmitReply,
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
        return [peer for peer in dict.fromkeys([self.sequencer, *others]) if peer != self.swarm.peer_id]

    async def _watch(self, wait_seconds: float) -> swarm_pb2.WatchReply:
        request = swarm_pb2.WatchRequest(run_id=self.run_id, version=self.view.version, wait_seconds=wait_seconds)
        reply = await self.swarm.call(
            self.sequencer, "watch", request.SerializeToString(), timeout_seconds=wait_seconds + CALL_SECONDS
        )
        view = parse(reply, swarm_pb2.WatchReply)
        if reason := view_fault(view):
            raise Refused(f"the answer of the sequencer makes no sense: {reason}")
        return view

    async def _reconnect(self) -> None:
        try:
            pointer = await directory.head(self.swarm, self.run_id, self.sequencer)
            if pointer is not None and pointer.addresses:  # it may have moved since the ticket was written
                self.addresses = list(dict.fromkeys([*pointer.addresses[:8], *self.addresses]))[:16]
            await self.swarm.connect(self.sequencer, self.addresses, timeout_seconds=CALL_SECONDS)
        except CommonweightsError as error:
            logger.debug("reconnect: %s", error)

    def _take(self, view: swarm_pb2.WatchReply) -> None:
        self.view = view
        self.changed.beat()


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
    if len(view.state_words) > MAX_WORDS or not view.state_words.isprintable():
        return "its words are not fit to print"
    return ""
