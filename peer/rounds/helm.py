"""Who leads, as one node sees it: follow, take over, look around, hand over, come back.

Every node runs this loop beside its work. It asks and is asked (`standing`: where are you, whom do you follow?), and
lets `succession` decide. What it does about the answers:

    following   silent leader -> ask those in line -> follow another, or lead with a new term
                the coordinator answers again -> follow it;  at the coordinator: ask the leader to hand over
    leading     every few seconds, and always after a nap: is there another leader? -> the better chain, or the higher
                term, stays
    both        exchange standings with a few others: forks and lies are found that way
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Iterable

from peer.background import Background, cancel
from peer.errors import Refused, UnreachableError, VerificationError
from peer.identity import PeerId
from peer.log.replica import CALL_SECONDS
from peer.log.rules import MAX_CURSOR_STEP, MAX_PROOF_BYTES, may_sequence, proof_fault
from peer.log.terms import Terms
from peer.messages import parse
from peer.rounds.contacts import Contacts
from peer.rounds.guests import MAX_ADDRESSES
from peer.rounds.leader import Leader
from peer.rounds.link import Link
from peer.rounds.neighbours import MAX_ASKED, Neighbours, Standings
from peer.rounds.reception import Reception
from peer.rounds.succession import Decision, Follow, Lead, Word, decide, line_of_succession, yields
from peer.rounds.upkeep import MENDABLE, Upkeep
from protos import log_pb2, swarm_pb2

logger = logging.getLogger(__name__)

GOSSIPED = 2  # nodes that are asked now and then for no reason
REFRESH_SECONDS = 10.0  # between two looks into the DHT for nodes that can be dialled
ALONE_SECONDS = 2.0  # the same while it knows of none but the coordinator
FEW = 2  # known nodes; with more, a look is dearer and less urgent
DAMAGED_SECONDS = 60.0  # for which it listens when its log is damaged
OBSERVE_SECONDS = 1.5  # for which a coordinator that comes back listens before it leads
LINGER_SECONDS = 15.0  # for which a leader stays after the end, so that others fetch the last record
MAX_BANNED = 64


class Helm:
    def __init__(
        self,
        upkeep: Upkeep,
        link: Link,
        leader: Leader,
        contacts: Contacts,
        terms: Terms,
        on_event: Callable[[str], None],
    ) -> None:
        self.upkeep, self.link, self.leader = upkeep, link, leader
        self.contacts, self.terms, self.on_event = contacts, terms, on_event
        self.log = upkeep.replica.log
        self.own = leader.identity.peer_id
        self.coordinator = self.log.origin.coordinator
        timing = self.log.spec.timing
        self.silence_seconds = timing.silence_seconds
        patience = min(3.0, timing.silence_seconds / 3)
        self.neighbours = Neighbours(link.swarm, self.log, contacts, self.standing, patience)
        self.gossip_seconds = min(5.0, timing.silence_seconds / 2)  # between two questions to others
        self.tick_seconds = min(1.0, timing.heartbeat_seconds)
        self.leaving = False
        self.willing: Callable[[], bool] = lambda: True  # the owner lets this node lead
        self._banned: set[bytes] = set()  # whose lies this node has seen
        self._due = dict.fromkeys(("gossip", "refresh", "coordinator"), 0.0)  # loop time of the next one
        self._leading: asyncio.Task[None] | None = None
        self._beside = Background()
        leader.bring_up, leader.elsewhere = upkeep.bring_up, self.view
        leader.nap_seconds = 0.8 * timing.silence_seconds
        upkeep.on_proof = self.accuse
        link.watch_seconds = min(link.watch_seconds, timing.silence_seconds / 2)
        link.others = lambda: list(contacts.addresses)

    def serve(self) -> None:
        """Answer other nodes from now on."""
        swarm = self.link.swarm
        swarm.serve("standing", self.neighbours.told, max_request_bytes=8 << 10)
        swarm.serve("handover", self._on_handover, max_request_bytes=1024)
        swarm.serve("accuse", self._on_accuse, max_request_bytes=MAX_PROOF_BYTES)
        Reception(self.leader).serve()

    # --- the story --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled.

        Raises:
            CommonweightsError: this node led, and could not go on for a reason that waiting does not mend.
        """
        try:
            if self.own == self.coordinator:
                await self._come_back()
            while True:
                await self._once()
                if self._leading is not None and self._leading.done():
                    self._leading.result()
                    self._leading = None
                await asyncio.sleep(self.tick_seconds)
        finally:
            self.contacts.save()
            if self._leading is not None:
                self._leading.cancel()
                await asyncio.gather(self._leading, return_exceptions=True)
            await self._beside.end()

    async def _once(self) -> None:
        try:
            if self._is_due("refresh", self._refresh_seconds()):
                guests = {peer: guest.presence for peer, guest in self.leader.guests.items()}
                self._beside.start(self.neighbours.refresh(guests))
            if self.leader.leading and not self.willing():
                self.leader.resign()
            if self.leader.leading:
                await self._look_around()
            elif not self.leaving:
                await self._follow()
            if self._is_due("gossip", self.gossip_seconds):
                await self._hear(await self.neighbours.ask([self.link.sequencer, *self.neighbours.some(GOSSIPED)]))
                await self._pass_on_proofs()
            await self._hear(self.neighbours.take_news())
        except MENDABLE as error:
            logger.info("at the helm: %s", error)

    def _refresh_seconds(self) -> float:
        """Until the next look into the DHT. Several nodes answer it with all who are there: so that its traffic does
        not grow with the square of the swarm, the more are known, the longer it may wait."""
        known = len(self.contacts.addresses.keys() - {self.own, self.coordinator})
        return min(REFRESH_SECONDS, self.silence_seconds) * max(1.0, known / FEW) if known else ALONE_SECONDS

    async def _come_back(self) -> None:
        """The coordinator starts. Whoever leads meanwhile is followed first; else it leads at once.

        Raises:
            VerificationError: its log is damaged, and nobody is there who has the rest.
        """
        known = [peer for peer in self.contacts.addresses if peer != self.own]
        answers = await self.neighbours.ask([*known, *await self.link.swarm.peers()])
        if self.log.head.round or known or self.log.damage:
            # Whom it does not know has to call; a leader does so about once in `gossip_seconds`.
            patience = OBSERVE_SECONDS if known else max(OBSERVE_SECONDS, 1.5 * self.gossip_seconds)
            patience = DAMAGED_SECONDS if self.log.damage else patience
            end = asyncio.get_running_loop().time() + patience
            while not answers and asyncio.get_running_loop().time() < end:
                await asyncio.sleep(0.1)
                answers = self.neighbours.take_news() or await self.neighbours.ask(await self.link.swarm.peers())
        if self.log.damage and not answers:
            self.log.put_back()
            raise VerificationError(
                f"{self.log.damage}; no peer that has it answered within {DAMAGED_SECONDS:.0f} s: start again when "
                "peers are there, or restore the folder from a backup"
            )
        with contextlib.suppress(*MENDABLE):
            await self._decide(answers, 2 * self.silence_seconds)

    async def _follow(self) -> None:
        silent = max(self.link.silent_seconds, self.upkeep.odds_seconds, math.inf if self._is_banned() else 0)
        if self.link.sequencer == self.own or silent > self.silence_seconds:
            await self._decide(await self.neighbours.ask([PeerId(key) for key in self._line()[:MAX_ASKED]]), silent)
        elif self.coordinator.public_key in self._banned | self.log.accounts.banned:
            pass  # it is not looked out for any more, and does not ask
        elif self.own == self.coordinator:
            await self._ask_for_handover()
        elif self.link.sequencer != self.coordinator and self._is_due("coordinator", self.gossip_seconds):
            for standing in (await self.neighbours.ask([self.coordinator])).values():
                if standing.leader == self.coordinator.public_key:
                    self._turn_to(self.coordinator, standing.term)

    async def _look_around(self) -> None:
        """Does anybody else lead? Now and then, and at once after a nap, when others have given this node up."""
        holding = self.leader.holding
        if holding:
            asked = [PeerId(key) for key in self._line()[:MAX_ASKED]]
        elif self._is_due("coordinator", self.gossip_seconds):
            asked = [self.coordinator, *self.neighbours.some(GOSSIPED), *await self.neighbours.announced_leaders()]
        else:
            return
        await self._hear(await self.neighbours.ask(asked))
        if holding and self.leader.leading:
            self.leader.go_on()

    async def _decide(self, answers: Standings, silent_seconds: float) -> None:
        decision = self._decision(answers, silent_seconds)
        if isinstance(decision, Lead) and await self._catch_up_with_all(answers):
            decision = self._decision(answers, silent_seconds)  # the log may know the leader only now
        match decision:
            case Follow(leader, term):
                told = [it for it in answers.values() if it.leader == leader]
                self._turn_to(PeerId(leader), term, told[0].leader_addresses if told else ())
            case Lead(rank):
                await self._lead(rank)

    def _decision(self, answers: Standings, silent_seconds: float) -> Decision:
        words = [_word(peer, standing) for peer, standing in answers.items()]
        followed = b"" if self._is_banned() else self.link.sequencer.public_key
        line = self._line([*answers, *(PeerId(word.leader) for word in words if word.leader)])
        return decide(self.own.public_key, followed, line, words, silent_seconds, self.silence_seconds)

    async def _catch_up_with_all(self, answers: Standings) -> bool:
        """Whether anybody had more than this node."""
        news = False
        for peer, standing in sorted(answers.items(), key=lambda item: -item[1].tokens):
            with contextlib.suppress(*MENDABLE):
                news |= await self.upkeep.catch_up_with(peer, standing.head_round, standing.head_hash)
        return news

    async def _lead(self, rank: int, cursor: int = 0) -> None:
        """Take the lead, from the head of the log as this node has it; after a long way there, look around first."""
        began = asyncio.get_running_loop().time()
        await self._apply_all()
        if asyncio.get_running_loop().time() - began > self.silence_seconds:
            return
        if self.leader.leading or self.leaving or not may_sequence(self.own.public_key, self.log):
            return
        if self.upkeep.replica.state.round != self.log.head.round:
            return
        term = self.terms.next(max(self.log.head.record.term, self.link.term, self.neighbours.highest_term))
        self.leader.begin(term, rank, min(cursor, self.log.accounts.data_cursor + MAX_CURSOR_STEP // 2))
        self.neighbours.highest_term = term
        self.link.turn_to(self.own, term, [])
        self._leading = asyncio.create_task(self.leader.lead())
        if self.log.head.round:
            self.on_event(f"this node leads the run now, from round {self.log.head.round + 1} on")

    async def _apply_all(self) -> None:
        """Bring the state to the head of the log, however long the computing takes. What nobody within reach has the
        payloads of is given up."""
        replica = self.upkeep.replica
        work = asyncio.create_task(self.upkeep.bring_up())
        try:
            while True:
                reached = replica.state.round
                await asyncio.wait([work], timeout=self.silence_seconds)
                if work.done():
                    return work.result()
                if replica.state.round == reached and replica.lacks_payloads():
                    raise UnreachableError(f"payloads of round {reached + 1} do not arrive")
        except UnreachableError as error:
            logger.info("the newest records cannot be applied, they are given up: %s", error)
            await cancel(work)
            await self.upkeep.step_back()
        finally:
            await cancel(work)

    async def _ask_for_handover(self) -> None:
        """The coordinator, caught up with whoever led in its absence, takes the lead back."""
        view, sequencer = self.link.view, self.link.sequencer
        if view.leader != sequencer.public_key or not self.upkeep.holds(view.head_round, view.head_hash):
            return
        if self.upkeep.replica.state.round < self.log.head.round or not self._is_due("coordinator", 1.0):
            return
        request = swarm_pb2.HandoverRequest(run_id=self.log.run_id, head_round=self.log.head.round)
        swarm = self.link.swarm
        reply = await swarm.call(sequencer, "handover", request.SerializeToString(), timeout_seconds=CALL_SECONDS)
        standing = self.neighbours.checked(parse(reply, swarm_pb2.Standing))
        await self.upkeep.catch_up_with(sequencer, standing.head_round, standing.head_hash)
        if self.upkeep.holds(standing.head_round, standing.head_hash):  # else it would lead from behind who led
            await self._lead(0, standing.data_cursor)

    async def find(self) -> None:
        """Somebody to follow, for a node that starts while its leader does not answer."""
        answers = await self.neighbours.ask([self.link.sequencer, *self.contacts.addresses])
        await self._catch_up_with_all(answers)
        await self._decide(answers, 0.0)

    def leave(self) -> None:
        """This node goes: it stops leading, and does not begin to."""
        self.leaving = True
        self.leader.resign()

    async def linger(self) -> None:
        """After the end of the run: a leader stays until everybody it knows of has the last record."""
        end = asyncio.get_running_loop().time() + LINGER_SECONDS
        while self.leader.leading and asyncio.get_running_loop().time() < end:
            behind = [peer for peer, guest in self.leader.guests.items()
                      if peer != self.own and guest.presence.head_round < self.log.head.round]  # fmt: skip
            if not behind:
                return
            await asyncio.sleep(self.tick_seconds)

    # --- what others say --------------------------------------------------------------------------------------------

    async def _hear(self, standings: Standings) -> None:
        """Compare logs with others, and who leads."""
        for peer, standing in standings.items():
            if not self.upkeep.holds(standing.head_round, standing.head_hash):
                with contextlib.suppress(*MENDABLE):
                    await self.upkeep.catch_up_with(peer, standing.head_round, standing.head_hash)
            word = _word(peer, standing)
            same = standing.head_hash == self.log.head.hash
            if self.leader.leading and same and yields(self._own_word(), word, self._line()):
                self.leader.resign()
            lost = not self.leader.leading and self.link.sequencer == self.own  # this node led, and does not any more
            if lost and word.leader in self._line() and word.silent_seconds < self.silence_seconds:
                self._turn_to(PeerId(word.leader), word.term, standing.leader_addresses)

    def _turn_to(self, leader: PeerId, term: int, addresses: Iterable[str] = ()) -> None:
        if leader == self.link.sequencer or leader == self.own:
            return
        self.link.turn_to(leader, term, [*addresses] or self.contacts.addresses.get(leader, []))
        who = "the coordinator" if leader == self.coordinator else f"{leader.short}"
        self.on_event(f"{who} leads the run now")

    # --- what this node says ----------------------------------------------------------------------------------------

    def standing(self) -> swarm_pb2.Standing:
        head, view = self.log.head, self.view()
        leading = self.leader.leading
        return swarm_pb2.Standing(
            run_id=self.log.run_id,
            head_round=head.round,
            head_hash=head.hash,
            tokens=self.log.accounts.tokens,
            term=self.leader.term if leading else view.term,
            leader=self.own.public_key if leading else view.leader,
            leader_addresses=[] if leading else view.leader_addresses,
            silent_seconds=0.0 if leading else self.link.silent_seconds,
            data_cursor=self.leader.state.leases.cursor if leading else 0,
        )

    def view(self) -> swarm_pb2.WatchReply:
        """What a node that does not lead says to those who think it does: whom it follows itself, if it hears it."""
        head, sequencer = self.log.head, self.link.sequencer
        lost = sequencer == self.own or self._is_banned() or self.link.silent_seconds > self.silence_seconds
        return swarm_pb2.WatchReply(
            version=self.leader.version,
            term=self.link.term,
            head_round=head.round,
            head_hash=head.hash,
            leader=b"" if lost else sequencer.public_key,
            leader_addresses=[] if lost else self.link.addresses[:MAX_ADDRESSES],
            state_words="nobody leads at the moment" if lost else "another node leads",
        )

    def accuse(self, proof: log_pb2.Equivocation) -> None:
        """Two records of one round and term: nothing of that signer is believed any more, here at once, and everywhere
        when the proof is in the log."""
        signer = proof.first.signer
        if signer in self._banned or len(self._banned) >= MAX_BANNED:
            return
        self._banned.add(signer)
        self.leader.accuse(proof)
        self.on_event(f"{PeerId(signer).short} signed two different records of one round and is banned")
        self.link.changed.beat()

    # --- handlers ---------------------------------------------------------------------------------------------------

    async def _on_handover(self, sender: PeerId, body: bytes) -> bytes:
        request = parse(body, swarm_pb2.HandoverRequest)
        if sender != self.coordinator or request.run_id != self.log.run_id:
            raise Refused("only the run's coordinator is handed the lead")
        if sender.public_key in self._banned | self.log.accounts.banned:
            raise Refused("this node signed two different records of one round and is banned from the run")
        if not self.leader.leading or self.log.finished:
            raise Refused("this node does not lead, or the run is finished")
        if request.head_round + 1 < self.log.head.round:
            raise Refused(f"the log is at round {self.log.head.round} already; catch up first")
        cursor = self.leader.state.leases.cursor
        self.leader.resign()
        self._turn_to(sender, self.leader.term)
        standing = self.standing()
        standing.data_cursor = cursor
        return standing.SerializeToString()

    async def _on_accuse(self, sender: PeerId, body: bytes) -> bytes:
        proof = parse(body, log_pb2.Equivocation)
        if reason := proof_fault(proof, self.log.run_id):
            raise Refused(f"this proves nothing: {reason}")
        self.accuse(proof)
        return b""

    async def _pass_on_proofs(self) -> None:
        """To the leader, until they are in the log."""
        for signer, proof in list(self.leader.accused.items()):
            if signer in self.log.accounts.banned:
                del self.leader.accused[signer]
            elif not self.leader.leading and self.link.sequencer.public_key != signer:
                body = proof.SerializeToString()
                await self.link.swarm.call(self.link.sequencer, "accuse", body, timeout_seconds=CALL_SECONDS)

    # --- who there is -----------------------------------------------------------------------------------------------

    def _line(self, answered: Iterable[PeerId] = ()) -> list[bytes]:
        reachable = {peer.public_key for peer in (*self.contacts.addresses, *answered)} | set(self.link.view.sources)
        if self.link.swarm.addresses:
            reachable.add(self.own.public_key)
        if not self.willing():
            reachable.discard(self.own.public_key)
        accounts = self.log.accounts
        return line_of_succession(
            self.coordinator.public_key, accounts.credit, reachable, self._banned | accounts.banned
        )

    def _is_banned(self) -> bool:
        """Whether the leader was caught lying."""
        return self.link.sequencer.public_key in self._banned | self.log.accounts.banned

    def _own_word(self) -> Word:
        return Word(self.own.public_key, self.own.public_key, self.leader.term, 0.0)

    def _is_due(self, what: str, seconds: float) -> bool:
        now = asyncio.get_running_loop().time()
        if now < self._due[what]:
            return False
        self._due[what] = now + seconds
        return True


def _word(peer: PeerId, standing: swarm_pb2.Standing) -> Word:
    return Word(peer.public_key, standing.leader, standing.term, standing.silent_seconds)
