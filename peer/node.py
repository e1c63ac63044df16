"""The life of a peer: sync, then train, contribute and apply, round after round, until the run or the person ends it.

Three tasks share the event loop. `_work` trains and hands in; `_keep_up` applies records as they come and rebases the
local weights; `_report` sends heartbeats and takes leases. Heavy work runs in two threads, one for the device and one
for the state, so that heartbeats are never late because of a matrix product. The two arithmetic facts to know:

    contribute:  e <- beta e + (anchor - local);  c = encode(e);  e <- e - decode(c)
    rebase:      local <- theta_r + (local - anchor);  anchor = theta_r

`anchor` is what the not yet contributed local progress is measured from: theta, or the local weights at the last
contribution.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from peer.codecs import open_payload
from peer.errors import CommonweightsError, Refused, UnreachableError
from peer.feedback import ErrorFeedback
from peer.identity import Identity, PeerId
from peer.link import Link
from peer.log import Entry
from peer.pulse import Pulse
from peer.ranges import Ranges
from peer.replica import Diverged, Replica
from peer.sequencer import TRAINING
from peer.trainer import Trainer
from peer.work import Backlog, Work
from protos import log_pb2, swarm_pb2
from protos.signing import sign

logger = logging.getLogger(__name__)
T = TypeVar("T")

LEASE_HORIZON_SECONDS = 30.0  # how much work a peer likes to have in stock
FAREWELL_SECONDS = 5.0  # for handing in what there is when told to stop
RETRY_SECONDS = 2.0


class RowReader(Protocol):
    async def rows(self, positions: Any) -> npt.NDArray[Any]: ...


@dataclass(frozen=True)
class Labels:
    """What a peer says about itself. Shown, never trusted."""

    name: str = ""
    team: str = ""
    hardware: str = ""


@dataclass
class Tally:
    """What this process did, for the summary at its end."""

    rounds_contributed: int = 0
    tokens: int = 0
    compute_seconds: float = 0.0
    started: float = field(default_factory=time.monotonic)
    loss: float = 0.0
    tokens_per_second: float = 0.0  # of the last steps, smoothed

    def add(self, tokens: int, loss: float, seconds: float) -> None:
        self.tokens += tokens
        self.compute_seconds += seconds
        self.loss = loss
        speed = tokens / seconds if seconds > 0 else 0.0
        self.tokens_per_second = speed if not self.tokens_per_second else 0.8 * self.tokens_per_second + 0.2 * speed


class Node:
    """One peer. `replica` is at some round of the log, `trainer` holds any weights, `feedback` and `backlog` what was
    kept."""

    def __init__(
        self,
        folder: Path,
        identity: Identity,
        replica: Replica,
        link: Link,
        trainer: Trainer,
        feedback: ErrorFeedback,
        rows: RowReader,
        labels: Labels,
    ) -> None:
        self.folder = folder
        self.identity = identity
        self.replica = replica
        self.link = link
        self.trainer = trainer
        self.feedback = feedback
        self.rows = rows
        self.labels = labels
        self.spec = replica.log.spec
        self.tally = Tally()
        self.phase = "syncing"
        self.max_rounds = 0  # contribute to so many rounds, then leave; 0: until the run ends
        self.on_event: Callable[[str], None] = lambda text: None
        self.changed: Pulse = link.changed
        self.backlog = Backlog.load(folder / "backlog.json")
        self._leased = Ranges()  # not trained on yet
        self._anchor: torch.Tensor | None = None  # None: theta
        self._exchange = asyncio.Lock()  # held while theta, anchor and feedback do not fit together
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()  # report now, not at the next heartbeat
        self._device = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._encoding = False  # a contribution is being made
        self._not_before = 0.0  # loop time; after a refusal, the next attempt waits
        self._handing_in: asyncio.Task[None] | None = None
        self._prefetching: set[asyncio.Task[None]] = set()

    # --- the story --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Take part until the run is finished, `max_rounds` are contributed or `stop` is called.

        Raises:
            CommonweightsError: something that waiting does not mend, such as a full disk.
        """
        try:
            await self._sync()
            helpers = [asyncio.create_task(task) for task in (self.link.follow(), self._keep_up(), self._report())]
            work = asyncio.create_task(self._work())
            try:
                await asyncio.wait([work, *helpers], return_when=asyncio.FIRST_COMPLETED)
                for task in (*helpers, work):
                    if task.done():
                        task.result()  # a helper only ends with an error
                await self._farewell()
            finally:
                await _cancel(work, *helpers, *self._prefetching, *([self._handing_in] if self._handing_in else []))
            await self._keep()
        finally:
            self._device.shutdown(wait=True, cancel_futures=True)

    def stop(self) -> None:
        """End soon: finish the step, hand in what there is, keep the rest for the next start."""
        self._stopping.set()
        self.changed.beat()

    async def _sync(self) -> None:
        """Come to the head: records, then state, then the local weights."""
        await self.replica.fetch_records(self.link.swarm, self.link.sequencer)
        await self.replica.join(self.link.swarm, self.link.view.head_digest)
        await self._account_for(*self.replica.log.entries)
        await self._on_device(self.trainer.parameters.write, self.replica.state.theta)
        if (submitted := self.backlog.submitted) is not None:  # handed in before a restart, and its round is still open
            self._handing_in = asyncio.create_task(
                self._submit(log_pb2.Signed.FromString(submitted.header), submitted.round)
            )
        self.on_event(f"in sync at round {self.replica.state.round}")

    async def _work(self) -> None:
        """Train until the round closes, hand in, and again."""
        while not self._over:
            if self._time_to_contribute():
                await self._contribute()
            elif self._must_wait():
                self.phase = "waiting"
                await self.changed.wait(1.0)
            else:
                await self._train()

    async def _train(self) -> None:
        """One inner step on the next leased positions."""
        batch = self._leased.first(self.spec.train.batch_sequences)
        if len(batch) < self.spec.train.batch_sequences:
            self.phase = TRAINING  # it is about to: the round should count on it
            self._hurry.set()
            await self.changed.wait(1.0)
            return
        self.phase = TRAINING
        try:
            rows = await self.rows.rows(np.concatenate([np.arange(start, stop) for start, stop in batch]))
        except CommonweightsError as error:
            self.on_event(f"no training data at the moment, trying again: {error}")
            await asyncio.sleep(RETRY_SECONDS)
            return
        tokens_before = self.replica.log.accounts.tokens + self.backlog.tokens
        result = await self._on_device(self.trainer.step, rows, tokens_before)
        self._leased -= batch
        if result.skipped:
            self.on_event("a step was skipped: its loss or gradient was not finite")
            return  # the positions go back with the next heartbeat
        step = Work(batch, result.tokens, 1, result.loss * result.tokens, result.seconds)
        self.backlog = self.backlog.train(step)
        self.tally.add(result.tokens, result.loss, result.seconds)

    async def _contribute(self, early: bool = False) -> None:
        """Read the weights at once, so that training may go on; settling, encoding and handing in happen beside it."""
        await self._exchange.acquire()  # until encoded: no record may move theta in between
        if not self._can_contribute() or not (early or self._time_to_contribute()):
            self._exchange.release()  # a record came in while waiting for the lock
            return
        self._encoding = True
        local = await self._read_weights()
        self._handing_in = asyncio.create_task(self._hand_in(local, self.replica.state.round + 1))

    async def _hand_in(self, local: torch.Tensor, round_: int) -> None:
        """Settle, encode, sign, submit."""
        try:
            self.phase = "encoding"
            await self._settle(local)
            payload = await self.replica.compute(self.feedback.encode, self.spec.codec.name)
            payload_hash = await asyncio.to_thread(self.replica.blobs.put, payload)
            work = self.backlog.settled
            contribution = log_pb2.Contribution(
                run_id=self.replica.log.run_id,
                round=round_,
                previous_hash=self.replica.log.entries[round_ - 1].hash,
                base_digest=self.replica.digest,
                consumed=work.positions.to_protos(),
                tokens=work.tokens,
                inner_steps=work.inner_steps,
                mean_loss=work.mean_loss,
                codec=self.spec.codec.name,
                payload_hash=payload_hash,
                payload_bytes=len(payload),
                train_seconds=work.train_seconds,
            )
            signed = sign(contribution, self.identity.private_key)
            self.backlog = self.backlog.hand_in(round_, payload_hash, signed.SerializeToString(deterministic=True))
        finally:
            self._encoding = False
            self._exchange.release()
            self.changed.beat()
        await self._submit(signed, round_)

    async def _submit(self, signed: log_pb2.Signed, round_: int) -> None:
        """Hand a contribution in, again and again until its round is over: a sequencer may forget it when it
        restarts."""
        self.phase = "submitting"
        self._hurry.set()
        pause = self.spec.timing.heartbeat_seconds
        while self.replica.state.round < round_:
            try:
                reply = await self.link.submit(signed)
                pause = self.spec.timing.heartbeat_seconds * (5 if reply.fetched else 1)
                if reply.fetched and self._stopping.is_set():
                    return
            except Refused as error:
                await self._take_back(round_, str(error))
                return
            except UnreachableError:
                pause = RETRY_SECONDS
            await asyncio.sleep(pause)

    async def _take_back(self, round_: int, reason: str) -> None:
        """A contribution will not be merged: its values return to the error feedback, its tokens to the backlog."""
        async with self._exchange:
            submitted = self.backlog.submitted
            if submitted is None or submitted.round != round_:
                return
            self.on_event(f"contribution to round {round_} was not merged: {reason}; kept for the next")
            self._not_before = asyncio.get_running_loop().time() + RETRY_SECONDS
            await self.replica.compute(self._restore, submitted.payload_hash)
            self.backlog = self.backlog.returned()
        self.changed.beat()

    def _restore(self, payload_hash: bytes) -> None:
        if self.replica.blobs.check(payload_hash):
            payload = open_payload(self.replica.blobs.read(payload_hash), self.replica.state.theta.numel())
            self.feedback.put_back(payload)

    async def _read_weights(self) -> torch.Tensor:
        """The local weights between two steps, fp32 [parameters]; their steps count as settled from here on."""
        local = await self._on_device(self.trainer.parameters.read)
        self.backlog = self.backlog.settle()
        return local

    async def _settle(self, local: torch.Tensor) -> None:
        """Move the local progress into the error-feedback buffer. `local` fp32 [parameters] becomes the anchor."""
        base = self.replica.state.theta if self._anchor is None else self._anchor
        await self.replica.compute(self.feedback.add, base - local)
        self._anchor = local

    # --- records ----------------------------------------------------------------------------------------------------

    async def _keep_up(self) -> None:
        """Apply records as they are published; load the state again if it turns out not to be the swarm's."""
        while True:
            view = self.link.view
            try:
                if view.head_round > self.replica.log.head.round:
                    await self.replica.fetch_records(self.link.swarm, self.link.sequencer)
                if self.replica.state.round < self.replica.log.head.round:
                    await self._apply_next()
                    continue
                self._prefetch(view)
                if view.head_round == self.replica.state.round and view.head_digest not in (b"", self.replica.digest):
                    raise Diverged(f"after round {view.head_round} this peer's state is not the swarm's")
            except Diverged as error:
                await self._reload(error)
            except (UnreachableError, Refused) as error:
                self.on_event(f"cannot follow the run at the moment, trying again: {error}")
                await asyncio.sleep(RETRY_SECONDS)
            if self.link.view is view:
                await self.changed.wait(5.0)

    async def _apply_next(self) -> None:
        entry = self.replica.log.entries[self.replica.state.round + 1]
        await self.replica.fetch_payloads(entry)
        async with self._exchange:
            self.phase = "applying"
            if self._anchor is None and not entry.record.final:
                await self._settle(await self._read_weights())
            await self.replica.apply_next()
            await self._account_for(entry)
            await self._on_device(self._rebase)
        await self._after_round(entry)

    def _rebase(self) -> None:
        """Move the local weights to the new theta, keeping what was trained since the anchor."""
        theta = self.replica.state.theta
        if self._anchor is None:
            return
        local = self.trainer.parameters.read()
        progress = local.sub_(self._anchor)
        self._anchor = None
        self.trainer.parameters.write(progress.add_(theta))

    async def _account_for(self, *entries: Entry) -> None:
        """See whether the submitted contribution was merged; if its round is over without it, take the work back."""
        own = self.identity.peer_id.public_key
        for entry in entries:
            submitted = self.backlog.submitted
            if submitted is None or entry.round != submitted.round:
                continue
            if any(
                signer == own and item.payload_hash == submitted.payload_hash for signer, item in entry.contributions
            ):
                self.backlog = self.backlog.merged()
                self.tally.rounds_contributed += 1
                continue
            reasons = [refused.reason for refused in entry.record.refused if refused.peer == own]
            why = reasons[0] if reasons else "it came too late"
            self.on_event(f"contribution to round {entry.round} was not merged: {why}; kept for the next")
            await self.replica.compute(self._restore, submitted.payload_hash)
            self.backlog = self.backlog.returned()

    async def _after_round(self, entry: Entry) -> None:
        self._hurry.set()
        self.changed.beat()
        snapshots = self.spec.snapshots
        if entry.round % snapshots.every_rounds == 0:
            await self.replica.keep_snapshot(snapshots.keep)
            await asyncio.to_thread(self._drop_old_payloads)

    def _drop_old_payloads(self) -> None:
        """Payloads older than the oldest snapshot are the archive's business."""
        oldest = self.replica.snapshots.rounds()[0]
        for entry in self.replica.log.entries[max(1, oldest - 2 * self.spec.snapshots.every_rounds) : oldest + 1]:
            for _, item in entry.contributions:
                self.replica.blobs.delete(item.payload_hash)

    async def _reload(self, reason: Diverged) -> None:
        """Take the swarm's state instead of this one. What was settled stays in the error-feedback buffer."""
        self.on_event(f"{reason}; loading it again")
        self.phase = "syncing"
        async with self._exchange:
            if self._anchor is None:
                await self._settle(await self._read_weights())
            try:
                await self.replica.reload(self.link.swarm, self.link.view.head_digest)
            except (UnreachableError, Diverged) as error:
                self.on_event(f"the state could not be loaded, trying again: {error}")
                await asyncio.sleep(RETRY_SECONDS)
                return
            await self._account_for(*self.replica.log.entries)
            await self._on_device(self._rebase)
        self.on_event(f"in sync again at round {self.replica.state.round}")

    def _prefetch(self, view: swarm_pb2.WatchReply) -> None:
        """Fetch contributions to the open round before its record exists."""
        for item in view.announced:
            if len(item.payload_hash) == len(item.peer) == 32 and not self.replica.blobs.has(item.payload_hash):
                self._start_prefetch(self.replica.fetch_blob(item.payload_hash, item.payload_bytes, PeerId(item.peer)))

    def _start_prefetch(self, fetch: Coroutine[Any, Any, None]) -> None:
        async def quietly() -> None:
            try:
                await fetch
            except CommonweightsError as error:
                logger.debug(
                    "prefetch: %s", error
                )  # it is fetched again, and asked for loudly, when the record is there

        task = asyncio.create_task(quietly())
        self._prefetching.add(task)
        task.add_done_callback(self._prefetching.discard)

    # --- heartbeats -------------------------------------------------------------------------------------------------

    async def _report(self) -> None:
        """Tell the sequencer how it goes, about once a heartbeat, and take the leases that it gives."""
        while True:
            await self._heartbeat()
            try:
                await asyncio.wait_for(self._hurry.wait(), self.spec.timing.heartbeat_seconds)
                await asyncio.sleep(0.05)  # several reasons to hurry make one heartbeat
            except TimeoutError:
                pass
            self._hurry.clear()

    async def _heartbeat(self) -> None:
        asked = self._leased
        reply = await self.link.heartbeat(self.presence(), self._wanted_sequences())
        if reply is None:
            return
        leased, revoked = Ranges.from_protos(reply.leased), Ranges.from_protos(reply.revoked)
        self._leased |= leased
        if revoked:
            self._leased -= revoked & asked
            self.backlog = self.backlog.without(revoked, self.spec.data.sequence_length)
        if leased or revoked:
            self.changed.beat()

    def presence(self) -> swarm_pb2.Presence:
        exchange = self.replica.exchange
        return swarm_pb2.Presence(
            run_id=self.replica.log.run_id,
            name=self.labels.name,
            team=self.labels.team,
            hardware=self.labels.hardware,
            addresses=self.link.swarm.addresses,
            head_round=self.replica.state.round,
            state_digest=self.replica.digest,
            round=self.replica.state.round + 1,
            tokens=self.backlog.unsent.tokens,
            inner_steps=self.backlog.unsent.inner_steps,
            loss=self.tally.loss,
            tokens_per_second=self.tally.tokens_per_second,
            phase=self.phase,
            can_serve=bool(self.link.swarm.addresses),
            bytes_sent=exchange.bytes_sent,
            bytes_received=exchange.bytes_received,
            held=(self._leased | self.backlog.positions).to_protos(),
        )

    def _wanted_sequences(self) -> int:
        """So many more that the stock lasts for the next `LEASE_HORIZON_SECONDS`."""
        if self._stopping.is_set():
            return 0
        by_speed = int(self.tally.tokens_per_second * LEASE_HORIZON_SECONDS / self.spec.data.sequence_length)
        stock = max(4 * self.spec.train.batch_sequences, by_speed)
        return max(0, stock - len(self._leased))

    # --- the end ----------------------------------------------------------------------------------------------------

    async def _farewell(self) -> None:
        """Hand in what can be handed in, and say goodbye."""
        self.phase = "leaving"
        try:
            async with asyncio.timeout(FAREWELL_SECONDS):
                if self._can_contribute() and self.backlog.unsent.tokens:
                    await self._contribute(early=True)
                if self._handing_in is not None:
                    await asyncio.wait([self._handing_in])
        except (TimeoutError, CommonweightsError) as error:
            logger.info("could not hand in the last work, it is kept: %s", error)
        self.phase = "leaving"
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.link.heartbeat(self.presence(), 0), 2.0)

    async def _keep(self) -> None:
        """Save what the next start needs: state, error feedback, inner optimizer, backlog."""
        async with self._exchange:
            if self.backlog.fresh.tokens:
                await self._settle(await self._read_weights())
            await self.replica.keep_snapshot(self.spec.snapshots.keep)
            await self.replica.compute(self.feedback.save, self.folder / "feedback.safetensors")
            await self._on_device(self.trainer.save_optimizer, self.folder / "optimizer.safetensors")
            self.backlog.save(self.folder / "backlog.json")

    # --- conditions -------------------------------------------------------------------------------------------------

    @property
    def _over(self) -> bool:
        enough = 0 < self.max_rounds <= self.tally.rounds_contributed
        return self._stopping.is_set() or enough or self.replica.log.finished

    def _can_contribute(self) -> bool:
        """The open round is the one after this node's state, and nothing was handed in to it yet."""
        return (
            not self._encoding
            and self.backlog.submitted is None
            and self.replica.state.round == self.replica.log.head.round == self.link.view.head_round
            and not self.replica.log.finished
        )

    def _time_to_contribute(self) -> bool:
        due = self.link.view.closing or self._at_cap()
        rested = asyncio.get_running_loop().time() >= self._not_before
        return due and rested and self.backlog.unsent.tokens > 0 and self._can_contribute()

    def _at_cap(self) -> bool:
        return 0 < self.spec.round.inner_steps <= self.backlog.unsent.inner_steps

    def _must_wait(self) -> bool:
        """Nothing to train now: the round's own steps are done, or the run does not overlap training with the
        exchange."""
        waiting_for_record = (self._encoding or self.backlog.submitted is not None) and not self.spec.round.overlap
        return waiting_for_record or self._at_cap() or self.link.view.paused

    async def _on_device(self, function: Callable[..., T], *arguments: object) -> T:
        """Run something in the one thread that touches the model."""
        return await asyncio.get_running_loop().run_in_executor(self._device, function, *arguments)


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
