"""The life of a peer: sync, then train, contribute and apply, round after round, until the run or the person ends it.

Five tasks share the event loop. `_work` trains and hands in; `_report` sends heartbeats and takes leases; `link`
watches whoever leads; `upkeep` applies records as they come, between `apply` and `change_over` here, which rebase the
local weights; `helm` sees to it that somebody leads, this node itself if it must. Heavy work runs in two threads, one
for the device and one for the state, so that heartbeats are never late because of a matrix product. What happens to the
weights and to work that was not merged is `contributor`'s business.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

from peer.background import Background, cancel, unless, whole
from peer.data.feed import Feed
from peer.errors import CommonweightsError, Refused, UnreachableError
from peer.log.chain import Entry
from peer.log.replica import Diverged, Replica
from peer.log.terms import Terms
from peer.manners.steward import Permission, Unrestrained
from peer.presence import Labels, Tally
from peer.pulse import Pulse
from peer.rounds.contacts import Contacts
from peer.rounds.contributor import Contributor
from peer.rounds.directory import ANNOUNCE_SECONDS, announce_peer
from peer.rounds.helm import Helm
from peer.rounds.leader import Leader
from peer.rounds.link import Link
from peer.rounds.prefetch import Prefetch
from peer.rounds.ranges import Ranges
from peer.rounds.sequencer import PAUSED, TRAINING
from peer.rounds.upkeep import Upkeep
from peer.rounds.work import Work
from protos import log_pb2, swarm_pb2
from protos.signing import open_signed

logger = logging.getLogger(__name__)

FAREWELL_SECONDS = 4.0  # for handing in what there is when told to stop
RETRY_SECONDS = 2.0
CATCH_UP_SECONDS = 1.0  # of rest that was longer than it had to be


class Node:
    """One peer. `replica` is at some round of the log; `contributor` has the trainer and whatever was kept from
    before."""

    def __init__(
        self,
        replica: Replica,
        link: Link,
        contributor: Contributor,
        feed: Feed,
        labels: Labels,
        max_rounds: int = 0,
        permission: Permission | None = None,
    ) -> None:
        self.replica = replica
        self.link = link
        self.contributor = contributor
        self.feed = feed
        self.labels = labels
        self.max_rounds = max_rounds  # contribute to so many rounds, then leave; 0: until the run ends
        self.permission: Permission = permission or Unrestrained()  # of the machine's owner
        self.spec = replica.log.spec
        self.tally = Tally()
        self.phase = "syncing"
        self.synced_round = 0  # where it came into step with the run at this start
        self.admission: log_pb2.Signed | None = None  # to an invite-only run, as long as the log does not say so
        self.on_event: Callable[[str], None] = link.on_event
        self.changed: Pulse = link.changed
        self.leader = Leader(replica, link.swarm, contributor.identity, on_event=link.on_event)
        self.upkeep = Upkeep(replica, link, self.leader, self, link.on_event)
        folder = contributor.folder
        contacts = Contacts(folder / "contacts.json")
        self.helm = Helm(self.upkeep, link, self.leader, contacts, Terms(folder), link.on_event)
        self._encoding = False  # a contribution is being made
        self._not_before = 0.0  # loop time; after a refusal, the next attempt waits
        self._undone: list[Entry] | None = []  # given up by the log before the local weights were there; None: they are
        self._rest_until = 0.0  # loop time; the owner wants the device to rest between steps
        self._paused_for = ""  # the owner's reason against training
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()  # report now, not at the next heartbeat
        self._handing_in: asyncio.Task[None] | None = None
        self._beside = Background()
        self.upkeep.look = Prefetch(replica, self._beside).look
        self.upkeep.online = self.helm.willing = lambda: not self.permission.verdict.offline

    # --- the story --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Take part until the run is finished, `max_rounds` are contributed or `stop` is called.

        Raises:
            CommonweightsError: something that waiting does not mend, such as a full disk.
        """
        try:
            if not await unless(self._stopping, self._sync()):
                return
            work, *helpers = [
                asyncio.create_task(task)
                for task in (self._work(), self._report(), self.link.follow(), self.upkeep.run(), self.helm.run())
            ]
            try:
                failed = self._beside.failed
                await asyncio.wait([work, *helpers, failed], return_when=asyncio.FIRST_COMPLETED)
                for task in (failed, *helpers, work):
                    if task.done():
                        task.result()  # helpers only end with an error
                await self._farewell()
            finally:
                self.phase = "leaving"
                await cancel(work, *helpers)
        finally:
            await self._beside.end()
        async with self.contributor.lock:
            await self.replica.keep_snapshot(self.spec.snapshots.keep)
            await self.contributor.save()

    def stop(self) -> None:
        """End soon: finish the step, hand in what there is, keep the rest for the next start."""
        self._stopping.set()
        self.changed.beat()

    async def _sync(self) -> None:
        """Come to the head: records, then state, then the local weights."""
        while (verdict := self.permission.verdict).offline:
            if not self._paused_for:
                self._paused_for = verdict.reason
                self.on_event(f"paused: {verdict.reason}")
            self.phase = PAUSED
            await self.changed.wait(5.0)
        while not await self._fetch_log_and_state():
            await asyncio.sleep(RETRY_SECONDS)
            await self.helm.find()
        if not self.replica.snapshots.rounds():  # where a replay of this folder starts
            await self.replica.keep_snapshot(self.spec.snapshots.keep)
        contributor = self.contributor
        await contributor.load()
        await contributor.undo(self._undone or [])
        await contributor.account()
        await contributor.begin()
        self._undone = None
        if (submitted := contributor.backlog.submitted) is not None:  # before a restart, and its round is still open
            signed = log_pb2.Signed.FromString(submitted.header)
            self._handing_in = self._beside.start(self._submit(signed, submitted.round))
        self.synced_round = self.replica.state.round
        self.on_event(f"in sync at round {self.synced_round}")

    async def _fetch_log_and_state(self) -> bool:
        """From whoever leads; whether that worked."""
        replica, swarm, link = self.replica, self.link.swarm, self.link
        try:
            await self.upkeep.catch_up_with(link.sequencer)
            digest = link.view.head_digest if link.view.head_hash == replica.log.head.hash else b""
            try:
                await replica.join(swarm, digest)
            except Diverged as error:
                self.on_event(f"{error}; loading the swarm's state instead")
                await replica.reload(swarm, digest)
        except (UnreachableError, Refused) as error:
            self.on_event(f"the run's state cannot be had at the moment, trying again: {error}")
            return False
        return True

    async def _work(self) -> None:
        """Train until the round closes, hand in, and again."""
        while not self._over:
            if self._time_to_contribute():
                await self._contribute()
            elif self.permission.verdict.reason:
                await self._pause()
            elif (rest_seconds := self._rest_until - asyncio.get_running_loop().time()) > 0:
                await self.changed.wait(rest_seconds)  # the round may close meanwhile
            elif self._must_wait():
                self.phase = "waiting"
                await self.changed.wait(1.0)
            else:
                await self._train()

    async def _pause(self) -> None:
        """Hand in what there is and give the leases back: nobody waits for this peer. It follows the run meanwhile."""
        reason = self.permission.verdict.reason
        if reason != self._paused_for:
            self._paused_for = reason
            self.on_event(f"paused: {reason}")
        if self.contributor.backlog.unsent.tokens and self._can_contribute() and self._rested():
            await self._contribute(early=True)
        elif not self._encoding:
            self.phase = PAUSED
        if self.feed.stock:
            self.feed.release()
            self._hurry.set()
        await self.changed.wait(1.0)

    async def _train(self) -> None:
        """One inner step on the next leased positions."""
        if self._paused_for:
            self._paused_for = ""
            self._hurry.set()
            self.on_event("training goes on")
        self.phase = TRAINING  # or about to: the round should count on this peer
        try:
            batch = await self.feed.batch(self.spec.train.batch_sequences)
        except CommonweightsError as error:
            self.on_event(f"no training data at the moment, trying again: {error}")
            await asyncio.sleep(RETRY_SECONDS)
            return
        if batch is None:
            self._hurry.set()
            await self.changed.wait(1.0)
            return
        positions, rows = batch
        self._beside.start(self.feed.look_ahead(self.spec.train.batch_sequences))
        contributor = self.contributor
        tokens_before = self.replica.log.accounts.tokens + contributor.backlog.tokens
        started = asyncio.get_running_loop().time()
        result = await contributor.on_device(contributor.trainer.step, rows, tokens_before)
        self.feed.used(positions)
        if result.skipped:
            self.on_event("a step was skipped: its loss or gradient was not finite")
            return  # the positions go back with the next heartbeat
        step = Work(positions, result.tokens, 1, result.loss * result.tokens, result.seconds)
        contributor.backlog = contributor.backlog.train(step)
        rest_seconds = self.permission.rest_seconds(result.seconds)
        # From step to step: what else happens in between is part of the rest, and a little too much may be made up for.
        self._rest_until = max(self._rest_until, started - CATCH_UP_SECONDS) + result.seconds + rest_seconds
        self.tally.add(result.tokens, result.loss, result.seconds, rest_seconds)

    async def _contribute(self, early: bool = False) -> None:
        """Hand in beside training, which goes on as soon as the weights are read."""
        read = asyncio.Event()
        self._handing_in = self._beside.start(self._hand_in(early, read))
        await read.wait()

    async def _hand_in(self, early: bool, read: asyncio.Event) -> None:
        try:
            async with self.contributor.lock:  # until encoded: no record may move theta in between
                if not self._can_contribute() or not (early or self._time_to_contribute()):
                    return  # a record came in while waiting for the lock
                round_ = self.replica.state.round + 1
                signed = await whole(self._encode(round_, read))
        finally:
            read.set()
        await self._submit(signed, round_)

    async def _encode(self, round_: int, read: asyncio.Event) -> log_pb2.Signed:
        self._encoding = True
        try:
            local = await self.contributor.read_weights()
            read.set()
            self.phase = "encoding"
            return await self.contributor.contribution(local, round_, self.feed.private_data)
        finally:
            self._encoding = False
            self.changed.beat()

    async def _submit(self, signed: log_pb2.Signed, round_: int) -> None:
        """Hand a contribution in, again and again until its round is over: a restarted sequencer has forgotten it."""
        self.phase = "submitting"
        self._hurry.set()
        heartbeat, payload = self.spec.timing.heartbeat_seconds, open_signed(signed, log_pb2.Contribution).payload_hash
        while self.replica.state.round < round_:
            try:
                self.replica.exchange.uplink.watch(payload, self.link.sequencer)
                reply = await self.link.submit(signed)
                if reply.fetched and self._stopping.is_set():
                    return
                pause = 5 * heartbeat if reply.fetched else min(heartbeat, 0.5)
            except Refused as error:
                async with self.contributor.lock:
                    await whole(self.contributor.take_back(round_, str(error)))
                self._not_before = asyncio.get_running_loop().time() + RETRY_SECONDS
                self.changed.beat()
                return
            except UnreachableError:
                pause = RETRY_SECONDS
            await asyncio.sleep(pause)

    # --- records ----------------------------------------------------------------------------------------------------

    async def apply(self) -> None:
        """Bring theta, feedback, backlog and local weights over one record, together."""
        async with self.contributor.lock:
            self.phase = "applying"
            await whole(self._apply())

    async def _apply(self) -> None:
        await self.contributor.settle_now()
        await self.replica.apply_next()
        await self.contributor.account()
        await self.contributor.rebase()

    async def after_round(self, entry: Entry) -> None:
        self._hurry.set()
        self.changed.beat()
        if entry.round % self.spec.snapshots.every_rounds == 0:
            self._beside.start(self._keep_snapshot())

    async def _keep_snapshot(self) -> None:
        await self.replica.keep_snapshot(self.spec.snapshots.keep)
        await asyncio.to_thread(self.replica.drop_old_payloads)

    async def change_over(self, change: Callable[[], Awaitable[list[Entry]]]) -> None:
        """Another state instead of this one. What was settled stays in the error-feedback buffer, and what the log gave
        up returns to it."""
        if self._undone is not None:  # no weights yet that would have to follow
            self._undone += await change()
            return
        self.phase = "syncing"
        async with self.contributor.lock:
            await whole(self.contributor.settle_now())
            undone = await change()
            await whole(self._take_up(undone))
        self.changed.beat()

    async def _take_up(self, undone: list[Entry]) -> None:
        await self.contributor.undo(undone)
        await self.contributor.account()
        await self.contributor.rebase()

    # --- heartbeats -------------------------------------------------------------------------------------------------

    async def _report(self) -> None:
        """Tell the sequencer how it goes, about once a heartbeat, and take the leases that it gives."""
        announced = -ANNOUNCE_SECONDS
        while True:
            await self._heartbeat()
            if time.monotonic() - announced > ANNOUNCE_SECONDS:
                announced = time.monotonic()
                self._beside.start(announce_peer(self.link.swarm, self.presence()))
            try:
                async with asyncio.timeout(self.spec.timing.heartbeat_seconds):
                    await self._hurry.wait()
                await asyncio.sleep(0.05)  # several reasons to hurry make one heartbeat
            except TimeoutError:
                pass
            self._hurry.clear()

    async def _heartbeat(self) -> None:
        asked = self.feed.stock
        idle = self._stopping.is_set() or bool(self.permission.verdict.reason)
        wanted = 0 if idle else self.feed.wanted(self.tally.tokens_per_second)
        presence = self.presence()
        if self.admission is not None:
            presence.admission.CopyFrom(self.admission)
        reply = await self.link.heartbeat(presence, wanted)
        if reply is None:
            return
        if reply.revoked:
            revoked = Ranges.from_protos(reply.revoked)
            self.contributor.backlog = self.contributor.backlog.without(revoked, self.spec.data.sequence_length)
        if self.feed.take(reply, asked):
            self.changed.beat()

    def presence(self) -> swarm_pb2.Presence:
        exchange, backlog, offline = self.replica.exchange, self.contributor.backlog, self.permission.verdict.offline
        return swarm_pb2.Presence(
            run_id=self.replica.log.run_id,
            name=self.labels.name,
            team=self.labels.team,
            hardware=self.labels.hardware,
            addresses=self.link.swarm.addresses[:16],
            head_round=max(0, self.replica.state.round),
            state_digest=self.replica.digest,
            round=max(0, self.replica.state.round) + 1,
            # What it cannot hand in now, nobody should wait for.
            tokens=0 if offline else backlog.unsent.tokens,
            inner_steps=backlog.unsent.inner_steps,
            loss=self.tally.loss,
            tokens_per_second=self.tally.tokens_per_second,
            phase=self.phase,
            can_serve=bool(self.link.swarm.addresses) and not offline,
            bytes_sent=exchange.bytes_sent,
            bytes_received=exchange.bytes_received,
            held=(self.feed.stock | backlog.positions).to_protos(),
        )

    # --- the end ----------------------------------------------------------------------------------------------------

    async def _farewell(self) -> None:
        """Hand in what can be handed in, and say goodbye."""
        try:
            async with asyncio.timeout(FAREWELL_SECONDS):
                if self._can_contribute() and self.contributor.backlog.unsent.tokens:
                    await self._contribute(early=True)
                if self._handing_in is not None:
                    await asyncio.wait([self._handing_in])
        except (TimeoutError, CommonweightsError) as error:
            logger.info("could not hand in the last work, it is kept: %s", error)
        if self.replica.log.finished:
            await self.helm.linger()
        self.phase = "leaving"
        self.helm.leave()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2.0):
                await self.link.heartbeat(self.presence(), 0)

    # --- conditions -------------------------------------------------------------------------------------------------

    @property
    def _over(self) -> bool:
        enough = 0 < self.max_rounds <= self.contributor.merged_rounds
        finished = self.replica.log.finished and self.replica.state.round == self.replica.log.head.round
        return self._stopping.is_set() or enough or finished

    def _can_contribute(self) -> bool:
        """The open round is the one after this node's state, and nothing was handed in to it yet."""
        return (
            not self._encoding
            and not self.permission.verdict.offline
            and self.contributor.backlog.submitted is None
            and self.replica.state.round == self.replica.log.head.round
            and self.replica.log.head.hash == self.link.view.head_hash
            and not self.replica.log.finished
        )

    def _time_to_contribute(self) -> bool:
        due = self.link.view.closing or self._at_cap()
        return due and self._rested() and self.contributor.backlog.unsent.tokens > 0 and self._can_contribute()

    def _rested(self) -> bool:
        """Some time has passed since the last refusal."""
        return asyncio.get_running_loop().time() >= self._not_before

    def _at_cap(self) -> bool:
        return 0 < self.spec.round.inner_steps <= self.contributor.backlog.unsent.inner_steps

    def _must_wait(self) -> bool:
        """Nothing to train now: the round's own steps are done, or the run does not overlap training and exchange."""
        handed_in = self._encoding or self.contributor.backlog.submitted is not None
        closed = self.link.view.paused or self.replica.log.finished
        return (handed_in and not self.spec.round.overlap) or self._at_cap() or closed
