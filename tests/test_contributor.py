"""A peer's work on its way: what is sent, what comes back, and the arithmetic of training on meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from peer.background import whole
from peer.codecs import encode, open_payload
from peer.errors import CommonweightsError
from peer.identity import Identity
from peer.log.replica import Replica
from peer.rounds.contributor import Contributor
from peer.rounds.ranges import Ranges
from peer.rounds.work import Backlog, Work
from peer.swarm.memory import MemoryNetwork
from peer.training.trainer import Trainer
from protos import log_pb2
from protos.signing import open_signed, sign
from tests.small_run import PARAMETERS, replica_of, start_log

COORDINATOR = Identity.new()


class Weights:
    """The flat parameters of a model that is nothing but its weights."""

    def __init__(self) -> None:
        self.vector = torch.zeros(PARAMETERS)

    def read(self) -> torch.Tensor:
        return self.vector.clone()

    def write(self, vector: torch.Tensor) -> None:
        self.vector = vector.clone()

    def change(self, change: Callable[[torch.Tensor, slice], torch.Tensor]) -> None:
        self.vector = change(self.vector.clone(), slice(0, PARAMETERS)).clone()


class FakeTrainer:
    """A step moves the weights towards a target, so that what is learnt depends on where it began."""

    def __init__(self) -> None:
        self.parameters = Weights()

    def step(self, number: int) -> None:
        target = torch.randn(PARAMETERS, generator=torch.Generator().manual_seed(number))
        self.parameters.vector += 0.1 * (target - self.parameters.vector)

    def save_optimizer(self, path: Path) -> None:
        path.write_bytes(b"moments")

    def load_optimizer(self, path: Path) -> bool:
        return path.exists()


class Peer:
    """A contributor, and a coordinator's key to make records with."""

    def __init__(self, replica: Replica, contributor: Contributor, trainer: FakeTrainer) -> None:
        self.replica, self.contributor, self.trainer = replica, contributor, trainer
        self.steps = 0
        self.learnt = torch.zeros(PARAMETERS)  # in all steps together, as a pseudo-gradient

    def train(self) -> None:
        self.learnt += self.trainer.parameters.vector
        self.trainer.step(self.steps)
        self.learnt -= self.trainer.parameters.vector
        tokens = 4 * self.replica.log.spec.data.sequence_length
        positions = Ranges.of([(4 * self.steps, 4 * self.steps + 4)])
        self.contributor.backlog = self.contributor.backlog.train(Work(positions, tokens, 1, 5.0 * tokens, 1.0))
        self.steps += 1

    async def hand_in(self) -> log_pb2.Signed:
        contributor = self.contributor
        return await contributor.contribution(await contributor.read_weights(), self.replica.state.round + 1)

    async def publish(self, *signed: log_pb2.Signed, refused: str = "") -> None:
        """A record with these contributions, applied as a node does it."""
        log = self.replica.log
        accepted = [
            log_pb2.Accepted(contribution=item, norm=1.0) for item in sorted(signed, key=lambda item: item.signer)
        ]
        own = self.contributor.identity.peer_id.public_key
        record = log_pb2.Record(
            run_id=log.run_id,
            round=log.head.round + 1,
            previous_hash=log.head.hash,
            time_seconds=1.0,
            base_digest=self.replica.digest,
            accepted=accepted,
            refused=[log_pb2.Refused(peer=own, reason=refused)] if refused else [],
            data_cursor=1000,
            deadline_seconds=1.0,
        )
        log.append(sign(record, COORDINATOR.private_key))
        await self.contributor.settle_now()
        await self.replica.apply_next()
        await self.contributor.account()
        await self.contributor.rebase()


@contextlib.asynccontextmanager
async def peer(folder: Path, identity: Identity | None = None, **changes: dict[str, Any]) -> AsyncIterator[Peer]:
    identity = identity or Identity.new()
    changes.setdefault("outer", {"learning_rate": 1.0, "momentum": 0.0})
    changes.setdefault("codec", {"name": "fp16", "keep_unsent": 0.0})
    replica = replica_of(start_log(COORDINATOR, None, **changes), folder, MemoryNetwork().node(identity))
    trainer = FakeTrainer()
    contributor = Contributor(folder, identity, replica, cast(Trainer, trainer))
    await contributor.load()
    await contributor.begin()
    try:
        yield Peer(replica, contributor, trainer)
    finally:
        contributor.close()
        replica.close()


def close(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(actual, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("keep", [0.0, 0.5])
async def test_overlapped_rounds_are_the_textbooks(tmp_path: Path, keep: float) -> None:
    """Training goes on between hand-in and record: weights, buffer, global state and tokens are those of a reference
    that does it in the plainest way."""
    codec = {"name": "sign", "keep_unsent": keep, "feedback_decay": 1.0}
    async with peer(tmp_path, codec=codec) as one:
        theta, e = torch.ones(PARAMETERS), torch.zeros(PARAMETERS)
        local, mirror = theta.clone(), FakeTrainer()
        anchor, steps = theta.clone(), 0
        tokens = 0

        def train(count: int) -> None:
            nonlocal local, steps
            for _ in range(count):
                one.train()
                mirror.parameters.vector = local
                mirror.step(steps)
                local, steps = mirror.parameters.vector, steps + 1

        for round_ in range(1, 6):
            train(3)
            signed = await one.hand_in()
            e, anchor = e + (anchor - local), local.clone()
            sent = open_payload(encode("sign", e), PARAMETERS).vector()
            e = e - sent
            train(2)  # while the record is made
            await one.publish(signed)
            theta = theta - sent
            start = theta - keep * e
            local, anchor = start + (local - anchor), start
            tokens += open_signed(signed, log_pb2.Contribution).tokens

            assert close(one.replica.state.theta, theta) and close(one.contributor.feedback.buffer, e)
            assert close(one.trainer.parameters.vector, local)
            assert one.contributor.backlog.unsent.inner_steps == 2 and one.contributor.backlog.submitted is None
            assert one.replica.log.accounts.tokens == tokens == (5 * round_ - 2) * 4 * 32
        assert one.replica.log.accounts.accepted.pairs == ((0, 4 * (5 * 5 - 2)),), "each position once"


async def test_work_that_misses_its_round_comes_with_the_next_exactly_once(tmp_path: Path) -> None:
    """Handed in, refused, taken back, handed in again: values and tokens are those of all its steps, once."""
    async with peer(tmp_path) as one:
        other = await _contribution_of_another(one)
        one.train()
        await one.hand_in()
        one.train()
        await one.publish(other, refused="its payload had not arrived at the deadline")
        assert one.contributor.backlog.submitted is None and one.contributor.backlog.tokens == 2 * 4 * 32
        one.train()
        signed = await one.hand_in()
        sent = open_signed(signed, log_pb2.Contribution)
        assert sent.tokens == 3 * 4 * 32 and sent.inner_steps == 3
        values = open_payload(one.replica.blobs.read(sent.payload_hash), PARAMETERS).vector()
        assert close(values + one.contributor.feedback.buffer, one.learnt)
        await one.publish(signed)
        assert one.contributor.backlog == Backlog()


async def _contribution_of_another(one: Peer) -> log_pb2.Signed:
    content = encode("fp16", torch.full((PARAMETERS,), 0.01))
    log = one.replica.log
    stranger = log_pb2.Contribution(
        run_id=log.run_id,
        round=log.head.round + 1,
        previous_hash=log.head.hash,
        base_digest=one.replica.digest,
        consumed=[log_pb2.Range(start=900, stop=904)],
        tokens=4 * 32,
        codec="fp16",
        payload_hash=one.replica.blobs.put(content),
        payload_bytes=len(content),
    )
    return sign(stranger, Identity.new().private_key)


async def test_a_payload_that_is_gone_takes_its_tokens_with_it(tmp_path: Path) -> None:
    """Credit for values that nobody will ever see would be a lie."""
    async with peer(tmp_path) as one:
        one.train()
        signed = await one.hand_in()
        one.replica.blobs.delete(open_signed(signed, log_pb2.Contribution).payload_hash)
        await one.contributor.take_back(1, "refused")
        assert one.contributor.backlog == Backlog()


async def test_a_payload_that_cannot_be_stored_stays_in_the_buffer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full: nothing is submitted, and nothing of the work is lost."""

    def full(content: bytes) -> bytes:
        raise CommonweightsError("the disk is full")

    async with peer(tmp_path) as one:
        one.train()
        monkeypatch.setattr(one.replica.blobs, "put", full)
        with pytest.raises(CommonweightsError, match="full"):
            await one.hand_in()
        assert close(one.contributor.feedback.buffer, one.learnt)
        assert one.contributor.backlog.submitted is None and one.contributor.backlog.tokens == 4 * 32


async def test_a_clean_end_keeps_everything_and_a_kill_sends_nothing_twice(tmp_path: Path) -> None:
    """What an earlier start kept is taken up once: after it was handed in, a kill must not bring it back."""
    identity = Identity.new()
    async with peer(tmp_path, identity) as one:
        one.train()
        await one.contributor.save()
        kept = one.contributor.feedback.buffer.clone()
    for _ in range(2):  # killed before anything was handed in: still there
        async with peer(tmp_path, identity) as one:
            assert one.contributor.backlog.tokens == 4 * 32 and close(one.contributor.feedback.buffer, kept)
    async with peer(tmp_path, identity) as one:
        await one.hand_in()
    async with peer(tmp_path, identity) as one:
        assert one.contributor.backlog == Backlog() and not one.contributor.feedback.buffer.any()


async def test_tokens_do_not_outlive_the_values_they_stand_for(tmp_path: Path) -> None:
    """The buffer's file is damaged: the backlog that belongs to it is dropped."""
    identity = Identity.new()
    async with peer(tmp_path, identity) as one:
        one.train()
        await one.contributor.save()
    (tmp_path / "feedback.safetensors").write_bytes(b"damaged")
    async with peer(tmp_path, identity) as one:
        assert one.contributor.backlog == Backlog()


async def test_private_data_claims_no_more_than_a_round(tmp_path: Path) -> None:
    """What is merged of a long absence counts as one round's tokens, or it would be refused for ever."""
    async with peer(tmp_path, round={"target_tokens": 200}, train={"batch_sequences": 4, "learning_rate": 0.01}) as one:
        for _ in range(3):
            one.trainer.step(1)
            one.contributor.backlog = one.contributor.backlog.train(Work(Ranges(), 128, 1, 640.0, 1.0))
        contributor = one.contributor
        signed = await contributor.contribution(await contributor.read_weights(), 1, "notes")
        sent = open_signed(signed, log_pb2.Contribution)
        assert sent.tokens == 200 and sent.mean_loss == pytest.approx(5.0)
        await one.publish(signed)


async def test_a_cancelled_change_is_finished_before_the_cancellation_goes_on() -> None:
    """Half a hand-in would lose what it had taken out of the buffer."""
    going, done = asyncio.Event(), []

    async def change() -> None:
        going.set()
        await asyncio.sleep(0.05)
        done.append(True)

    task = asyncio.create_task(whole(change()))
    await going.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done
