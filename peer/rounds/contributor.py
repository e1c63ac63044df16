"""A peer's unmerged work: from local weights to a signed contribution, and back when a round went on without it.

The two arithmetic facts to know:

    contribute:  e <- beta e + (anchor - local);  c = encode(e);  e <- e - decode(c)
    rebase:      start <- theta_r - k e;  local <- start + (local - anchor);  anchor = start

`anchor` is what the local progress not yet in `e` is measured from: `start`, which follows from theta and `e` and is
not kept, or the local weights when they were settled last, the one copy of the weights beside theta and `e`. k is
`codec.keep_unsent`: a peer goes on from weights that still hold a part of what it learnt and could not send yet; its
next steps then fit to what it will send. Nothing is ever lost but by a kill: what was not merged is in the local
weights, in `e`, or in a payload that goes back into `e`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch

from peer.codecs import open_payload
from peer.errors import CommonweightsError
from peer.identity import Identity
from peer.log.chain import Entry, most_private_tokens
from peer.log.replica import Replica
from peer.presence import Labels
from peer.rounds.feedback import ErrorFeedback
from peer.rounds.ranges import Ranges
from peer.rounds.rung import Rung
from peer.rounds.work import Backlog, Work
from peer.training.trainer import Trainer
from protos import log_pb2
from protos.signing import sign

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Contributor:
    """Error feedback, anchor and backlog of one peer. `lock` is held while theta, anchor and feedback do not fit
    together."""

    def __init__(self, folder: Path, identity: Identity, replica: Replica, trainer: Trainer) -> None:
        self.folder = folder
        self.identity = identity
        self.replica = replica
        self.trainer = trainer
        self.rung = Rung(replica.log, replica.exchange, identity.peer_id.public_key)
        self.feedback = ErrorFeedback(replica.state.theta.numel(), replica.log.spec.codec.feedback_decay)
        self.backlog = Backlog()
        self.merged_rounds = 0
        self.labels = Labels()
        self.lock = asyncio.Lock()
        self.on_event: Callable[[str], None] = lambda text: None
        self.keep_unsent = replica.log.spec.codec.keep_unsent
        self._anchor: torch.Tensor | None = None  # None: theta - k e
        self._settled = False  # since theta last changed
        self._device = ThreadPoolExecutor(1, thread_name_prefix="device")

    async def on_device(self, function: Callable[..., T], *arguments: object) -> T:
        """Run something in the one thread that touches the model."""
        return await asyncio.get_running_loop().run_in_executor(self._device, function, *arguments)

    def close(self) -> None:
        self._device.shutdown(wait=True, cancel_futures=True)

    # --- out --------------------------------------------------------------------------------------------------------

    async def read_weights(self) -> torch.Tensor:
        """The local weights between two steps, fp32 [parameters]; their steps belong to it from here on."""
        local = await self.on_device(self.trainer.parameters.read)
        self.backlog = self.backlog.read()
        return local

    async def settle(self, local: torch.Tensor) -> None:
        """Move the local progress into the error-feedback buffer. `local` fp32 [parameters] becomes the anchor.

        Progress that is not finite is dropped, with its tokens: it would spoil everything that comes after it.
        """
        base, keep = (self.replica.state.theta, self.keep_unsent) if self._anchor is None else (self._anchor, 0.0)
        try:
            await self.replica.compute(self.feedback.add, base, local, keep)
            self.backlog = self.backlog.settle()
        except CommonweightsError as error:
            self.on_event(f"this round's work is dropped: {error}")
            self.backlog = self.backlog.spoilt()
            local = torch.sub(base, self.feedback.buffer, alpha=keep)
            await self.on_device(self.trainer.parameters.write, local)
        self._anchor = local
        self._settled = True

    async def settle_now(self) -> None:
        """Bring everything trained so far into the buffer, unless that was done since theta last changed."""
        if not self._settled:
            await self.settle(await self.read_weights())

    async def contribution(self, local: torch.Tensor, round_: int, private_data: str = "") -> log_pb2.Signed:
        """Settle, encode, store the payload and sign the header. The caller holds the lock.

        Raises:
            CommonweightsError: the payload could not be stored; the work is in the error-feedback buffer.
        """
        await self.settle(local)
        if words := self.rung.move():
            self.on_event(words)
        codec = self.rung.present
        payload_hash, payload_bytes = await self.replica.compute(self._encode, codec)
        self._forget_kept()
        work = self.backlog.settled
        if private_data:
            work = work.at_most(most_private_tokens(self.replica.log.spec))
        signed = sign(
            log_pb2.Contribution(
                run_id=self.replica.log.run_id,
                round=round_,
                previous_hash=self.replica.log.entries[round_ - 1].hash,
                base_digest=self.replica.digest,
                consumed=work.positions.to_protos(),
                tokens=work.tokens,
                inner_steps=work.inner_steps,
                mean_loss=work.mean_loss,
                codec=codec,
                payload_hash=payload_hash,
                payload_bytes=payload_bytes,
                train_seconds=work.train_seconds,
                private_data=private_data,
                name=self.labels.name,
                team=self.labels.team,
            ),
            self.identity.private_key,
        )
        self.backlog = self.backlog.hand_in(round_, payload_hash, signed.SerializeToString(deterministic=True))
        return signed

    # --- and back ---------------------------------------------------------------------------------------------------

    async def account(self) -> None:
        """See whether the submitted contribution was merged; if its round is over without it, take the work back.

        A function of the log alone, so that it does not matter how the state came past that round. The caller holds the
        lock.
        """
        submitted = self.backlog.submitted
        if submitted is None or submitted.round > self.replica.state.round:
            return
        own = self.identity.peer_id.public_key
        entry = self.replica.log.entries[submitted.round]
        if (own, submitted.payload_hash) in [(signer, item.payload_hash) for signer, item in entry.contributions]:
            self.backlog = self.backlog.merged()
            self.merged_rounds += 1
            return
        reasons = [refused.reason for refused in entry.record.refused if refused.peer == own]
        await self.take_back(entry.round, reasons[-1] if reasons else "it came too late")

    async def take_back(self, round_: int, reason: str) -> None:
        """A contribution will not be merged: its values return to the error feedback, its tokens to the backlog.

        The caller holds the lock.
        """
        submitted = self.backlog.submitted
        if submitted is None or submitted.round != round_:
            return
        self.rung.missed()
        if await self.replica.compute(self._put_back, submitted.payload_hash):
            self.on_event(f"contribution to round {round_} was not merged: {reason}; kept for the next")
            self.backlog = self.backlog.returned()
        else:  # its tokens must not be credited without it
            self.on_event(f"contribution to round {round_} was not merged: {reason}; it is lost, its file is gone")
            self.backlog = self.backlog.merged()

    async def undo(self, records: Sequence[Entry]) -> None:
        """The log has given up `records` for others: own contributions in them return to the error feedback, with those
        of their positions that the new chain has not accepted. The caller holds the lock, and has settled.
        """
        own, log = self.identity.peer_id.public_key, self.replica.log
        for entry in records:
            merged = [item.payload_hash for _, item in log.entries[entry.round].contributions] \
                if entry.round <= log.head.round else []  # fmt: skip
            waiting = (
                self.backlog.submitted.payload_hash if self.backlog.submitted else b""
            )  # its record was not applied
            for signer, item in entry.contributions:
                if signer == own and item.payload_hash not in (waiting, *merged):
                    await self._take_in_again(item)
        submitted = self.backlog.submitted
        if submitted is not None and records and submitted.round > records[0].round:
            await self.take_back(submitted.round, "the swarm went on without the round before it")

    async def _take_in_again(self, item: log_pb2.Contribution) -> None:
        self.merged_rounds = max(0, self.merged_rounds - 1)
        if not await self.replica.compute(self._put_back, item.payload_hash):
            self.on_event(f"contribution to round {item.round} was taken back, and is lost: its file is gone")
            return
        positions = Ranges.from_protos(item.consumed)
        work = Work(positions, item.tokens, item.inner_steps, item.mean_loss * item.tokens, item.train_seconds)
        sequence_tokens = self.replica.log.spec.data.sequence_length
        work = work.without(self.replica.log.accounts.accepted, sequence_tokens)
        self.backlog = self.backlog.undone(work)

    async def begin(self) -> None:
        """Start training from the present theta."""
        self._anchor, self._settled = None, False
        await self.on_device(self.trainer.parameters.change, lambda weights, part: self._start(part))

    async def rebase(self) -> None:
        """Move the local weights to the present theta, keeping what was trained since they were settled."""
        await self.on_device(self._rebase)

    def _rebase(self) -> None:
        if not self._settled:  # the final record: theta is the same
            return
        anchor = self._anchor
        assert anchor is not None, "settled weights have an anchor"
        self.trainer.parameters.change(lambda weights, part: weights.sub_(anchor[part]).add_(self._start(part)))
        self._anchor, self._settled = None, False
        if self.replica.log.spec.resets_momentum:
            self.trainer.forget_direction()

    def _start(self, part: slice) -> torch.Tensor:
        """Where a peer goes on from: theta, less a part of what was not sent."""
        return torch.sub(self.replica.state.theta[part], self.feedback.buffer[part], alpha=self.keep_unsent)

    def _encode(self, codec: str) -> tuple[bytes, int]:
        """Move what the codec can say from the buffer into a stored payload: its hash and size in bytes."""
        payload = self.feedback.encode(codec)
        try:
            return self.replica.blobs.put(payload), len(payload)
        except CommonweightsError:
            self.feedback.put_back(open_payload(payload, self.feedback.buffer.numel()))
            raise

    def _put_back(self, payload_hash: bytes) -> bool:
        blobs = self.replica.blobs
        if not blobs.check(payload_hash):
            return False
        self.feedback.put_back(open_payload(blobs.view(payload_hash), self.feedback.buffer.numel()))
        blobs.delete(payload_hash)
        return True

    # --- across restarts --------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Take up what an earlier start kept."""
        self.rung.resume()
        self.backlog = Backlog.load(self.folder / "backlog.json")
        try:
            self.feedback.load(self.folder / "feedback.safetensors")
        except CommonweightsError as error:
            if self.backlog.settled.tokens:
                self.on_event(f"work of the last start is lost: {error}")
            self.backlog = self.backlog.dropped()  # tokens without their values
        if (path := self.folder / "optimizer.safetensors").exists():
            await self.on_device(self.trainer.load_optimizer, path)

    async def save(self) -> None:
        """Keep error feedback, inner optimizer and backlog for the next start."""
        if self.backlog.fresh.tokens:
            await self.settle(await self.read_weights())
        await self.replica.compute(self.feedback.save, self.folder / "feedback.safetensors")
        await self.on_device(self.trainer.save_optimizer, self.folder / "optimizer.safetensors")
        self.backlog.save(self.folder / "backlog.json")

    def _forget_kept(self) -> None:
        """What the last start kept is on its way. After a kill it would be sent a second time."""
        for name in ("backlog.json", "feedback.safetensors"):
            (self.folder / name).unlink(missing_ok=True)
