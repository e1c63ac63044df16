"""The sequencer's shell against peers that lie: every lie is refused with its reason, and the run goes on."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from peer.codecs import encode
from peer.errors import CommonweightsError, Refused
from peer.rounds import guests, reception
from peer.rounds.ranges import Ranges
from protos import log_pb2, swarm_pb2
from tests.small_run import PARAMETERS, payload, small_run


async def test_two_peers_make_a_round(tmp_path: Path) -> None:
    """Heartbeat, lease, submit, record: the smallest run there is."""
    async with small_run(tmp_path) as run:
        peers = [run.stranger(), run.stranger()]
        for peer in peers:
            await peer.heartbeat()
        for number, peer in enumerate(peers):
            assert (await peer.settled(peer.offer(payload(number)))).fetched
        await run.until_round(1)
        assert len(run.log.head.contributions) == 2


async def test_an_end_that_was_ordered_while_another_led_keeps_the_open_rounds_work(tmp_path: Path) -> None:
    """It takes effect when this node leads again: it waits for those who were here, merges what they have, and ends."""
    timing = {"heartbeat_seconds": 1.0, "silence_seconds": 4, "first_deadline_seconds": 10}
    async with small_run(tmp_path, timing=timing) as run:
        peer, leader = run.stranger(), run.leader
        await peer.heartbeat()
        assert (await peer.settled(peer.offer(payload(1)))).fetched
        await run.until_round(1)
        leader.resign()
        await run.lead
        leader.finish()
        assert not run.log.finished and not leader.leading
        leader.begin(term=2)
        run.lead = asyncio.create_task(leader.lead())
        await peer.heartbeat(tokens=4 * run.log.spec.data.sequence_length)
        assert (await peer.settled(peer.offer(payload(2)))).fetched
        await run.until_round(3)
        assert [len(entry.contributions) for entry in run.log.entries[1:]] == [1, 1, 0] and run.log.finished


async def test_a_size_that_is_not_the_payloads_is_refused_although_the_payload_is_here(tmp_path: Path) -> None:
    """Otherwise every other peer would wait for so many bytes for ever, and the run with them."""
    async with small_run(tmp_path) as run:
        peer = run.stranger()
        await peer.heartbeat()
        content = payload(1)
        run.leader.replica.blobs.put(content)
        reply = await peer.settled(peer.offer(content, payload_bytes=len(content) - 1))
        assert "its header says" in reply.refusal
        assert run.leader.replica.blobs.has(peer.blobs.put(content)), "what was here before stays"


async def test_refused_payloads_leave_nothing_on_the_disk(tmp_path: Path) -> None:
    """Garbage, zeros and another codec are refused with the reason and forgotten."""
    async with small_run(tmp_path) as run:
        peer = run.stranger()
        await peer.heartbeat()
        nothing = encode("fp16", torch.zeros(PARAMETERS))
        for content, reason in [
            (bytes(100), "not a payload"),
            (payload(1, "dense8"), "its header says"),
            (nothing, "all zeros"),
        ]:
            assert reason in (await peer.settled(peer.offer(content))).refusal
            await asyncio.sleep(0)
        assert list(run.leader.replica.blobs.hashes()) == [] and not run.leader.headers


async def test_a_copy_is_refused_and_the_original_merged(tmp_path: Path) -> None:
    """Also when the copier brings the bytes itself."""
    async with small_run(tmp_path) as run:
        maker, copier = run.stranger(), run.stranger()
        for peer in (maker, copier):
            await peer.heartbeat()
        original = maker.offer(payload(1))
        assert (await maker.settled(original)).fetched
        assert "copy" in (await copier.settled(copier.offer(payload(1)))).refusal
        await copier.heartbeat(phase="leaving")
        await run.until_round(1)
        assert [item.payload_hash for _, item in run.log.head.contributions] == [original.payload_hash]


async def test_old_contributions_are_not_merged_again(tmp_path: Path) -> None:
    """Neither its maker nor anybody else gets credit twice: not for the same message, not for the payload under a new
    header. The record names who tried, and the payload, which others need, stays."""
    async with small_run(tmp_path) as run:
        maker, copier = run.stranger(), run.stranger()
        await maker.heartbeat()
        original = maker.offer(payload(1))
        assert (await maker.settled(original)).fetched
        await run.until_round(1)
        await maker.submit(original)
        for peer in (maker, copier):
            await peer.heartbeat()
            peer.leased -= Ranges.from_protos(original.consumed)
            assert "merged in round 1 already" in (await peer.settled(peer.offer(payload(1)))).refusal
        assert (await maker.settled(maker.offer(payload(2)))).fetched
        await copier.heartbeat(phase="leaving")
        await run.until_round(2)
        assert [item.payload_hash for _, item in run.log.head.contributions] != [original.payload_hash]
        refused = {item.peer: item.reason for item in run.log.head.record.refused}
        assert refused.keys() == {peer.identity.peer_id.public_key for peer in (maker, copier)}
        assert run.leader.replica.blobs.has(original.payload_hash)


async def test_a_second_try_replaces_a_refused_contribution(tmp_path: Path) -> None:
    """The record holds the header of what was accepted, not of what came first."""
    async with small_run(tmp_path) as run:
        peer = run.stranger()
        await peer.heartbeat()
        assert (await peer.settled(peer.offer(bytes(50)))).refusal
        good = peer.offer(payload(2), mean_loss=2.0)
        assert (await peer.settled(good)).fetched
        await run.until_round(1)
        assert [item for _, item in run.log.head.contributions] == [good]


@pytest.mark.parametrize(
    "fields",
    [
        {"private_data": "mine", "consumed": [], "tokens": 1 << 63},
        {"mean_loss": 1e308},
        {"train_seconds": float("inf")},
        {"consumed": [(0, (1 << 64) - 1)]},
        {"payload_bytes": 4 * PARAMETERS + 1000},
    ],
    ids=lambda fields: next(iter(fields)),
)
async def test_absurd_figures_are_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    """They would outweigh everybody, end the run, or not fit into the numbers of the protocol."""
    async with small_run(tmp_path) as run:
        peer = run.stranger()
        await peer.heartbeat()
        reply = await peer.submit(peer.offer(payload(1), **fields))
        assert reply.refusal and not run.leader.state.submissions


async def test_absurd_heartbeats_are_refused_or_cut_down(tmp_path: Path) -> None:
    """NaN, endless speed, positions at the end of time, ten thousand ranges: none leaves a trace in the lease book."""
    async with small_run(tmp_path, round={"target_tokens": 1000}) as run:
        peer = run.stranger()
        for fields in (
            {"loss": float("nan")},
            {"tokens_per_second": 1e300},
            {"tokens_per_second": -1.0},
            {"addresses": ["x" * 1000]},
            {"held": [log_pb2.Range(start=0, stop=(1 << 64) - 1)]},
            {"held": [log_pb2.Range(start=2 * i, stop=2 * i + 1) for i in range(5000)]},
        ):
            with pytest.raises(Refused):
                await peer.heartbeat(**fields)
        await peer.heartbeat(
            wanted=1 << 63, tokens_per_second=1e12, tokens=1 << 63, held=[log_pb2.Range(start=0, stop=1 << 59)]
        )
        assert run.leader.state.leases.cursor <= run.leader.state.rules.most_sequences
        assert not run.leader.guests[peer.identity.peer_id].presence.held
        assert run.leader.view().ByteSize() < 1000


async def test_newcomers_are_turned_away_when_there_are_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys cost nothing, so the number of guests is bounded; who has credit comes in nevertheless."""
    monkeypatch.setattr(guests, "MAX_GUESTS", 2)
    async with small_run(tmp_path) as run:
        first, second, third = (run.stranger() for _ in range(3))
        await first.heartbeat()
        await first.settled(first.offer(payload(1)))
        await run.until_round(1)
        await first.heartbeat(phase="leaving")
        await second.heartbeat()
        await third.heartbeat()
        with pytest.raises(Refused, match="try again later"):
            await run.stranger().heartbeat()
        await first.heartbeat()
        assert len(run.leader.guests) == 3


async def test_keys_that_do_no_work_do_not_keep_others_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When all places are taken by strangers, the one that has been there longest without credit gives up its own."""
    monkeypatch.setattr(guests, "MAX_GUESTS", 2)
    monkeypatch.setattr(guests, "PROBATION_SECONDS", 0.0)
    async with small_run(tmp_path) as run:
        idle, second, honest = (run.stranger() for _ in range(3))
        for peer in (idle, second, honest):
            await peer.heartbeat()
        assert set(run.leader.guests) == {second.identity.peer_id, honest.identity.peer_id}
        assert idle.identity.peer_id.public_key not in run.leader.state.members


async def test_who_was_never_heard_of_cannot_hand_in(tmp_path: Path) -> None:
    """Else the bound on guests would bound nothing. It is no refusal: the peer tries again."""
    async with small_run(tmp_path) as run:
        peer = run.stranger()
        with pytest.raises(Refused, match="try again"):
            await peer.submit(peer.offer(payload(1), private_data="mine", consumed=[], tokens=32))


async def test_one_peer_may_not_occupy_the_leader_with_waiting(tmp_path: Path) -> None:
    """A few long polls each; more are refused at once, and the places are free again afterwards."""
    async with small_run(tmp_path) as run:
        peer = run.stranger()
        request = swarm_pb2.WatchRequest(run_id=run.log.run_id, version=run.leader.version, wait_seconds=60)
        waiting = [asyncio.create_task(peer.say("watch", request.SerializeToString())) for _ in range(10)]
        for _ in range(1000):
            if sum(task.done() for task in waiting) >= 10 - reception.MAX_WATCHES:
                break
            await asyncio.sleep(0.01)
        assert sum(task.done() for task in waiting) == 10 - reception.MAX_WATCHES
        run.leader.bump()
        await asyncio.wait(waiting)
        assert not run.reception._watching


async def test_a_failure_of_the_leader_ends_it_instead_of_passing_for_a_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk when a record is published from a heartbeat: the leader's state has moved on without its log."""
    async with small_run(tmp_path) as run:
        peer, other = run.stranger(), run.stranger()
        await peer.heartbeat()
        await other.heartbeat()
        await peer.settled(peer.offer(payload(1)))

        def full(signed: log_pb2.Signed) -> None:
            raise CommonweightsError("the disk is full")

        monkeypatch.setattr(run.log, "append", full)
        with pytest.raises(Refused):
            await other.heartbeat(phase="leaving")
        await asyncio.wait([run.lead], timeout=5)
        with pytest.raises(CommonweightsError, match="the disk is full"):
            run.lead.result()
        run.lead = asyncio.create_task(asyncio.sleep(0))


async def test_a_full_disk_of_the_leader_is_not_the_peers_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends the leader with the cure, and no record ever names the peer."""
    async with small_run(tmp_path) as run:
        peer = run.stranger()
        await peer.heartbeat()

        async def full(*arguments: object, **more: object) -> None:
            raise CommonweightsError("the disk is full")

        monkeypatch.setattr(run.leader.replica.exchange, "fetch", full)
        await peer.submit(peer.offer(payload(1)))
        await asyncio.wait([run.lead], timeout=5)
        with pytest.raises(CommonweightsError, match="the disk is full"):
            run.lead.result()
        assert not run.leader.state.refusals
        run.lead = asyncio.create_task(asyncio.sleep(0))


async def test_a_refusal_at_the_very_deadline_has_its_reason(tmp_path: Path) -> None:
    """The message that is refused may be the one that makes the leader notice that the deadline is over."""
    async with small_run(tmp_path) as run:
        prompt, late = run.stranger(), run.stranger()
        for peer in (prompt, late):
            await peer.heartbeat(tokens=32)
        assert (await prompt.settled(prompt.offer(payload(1)))).fetched
        now = asyncio.get_running_loop().time()
        run.leader.state = replace(run.leader.state, closing=now - 2, deadline=now - 1)
        assert "not leased" in (await late.submit(late.offer(payload(2), consumed=[(900, 904)]))).refusal
        await run.until_round(1)


async def test_a_contribution_handed_in_again_while_its_record_is_made_is_not_refused(tmp_path: Path) -> None:
    """A refusal would send its work into the next round a second time."""
    async with small_run(tmp_path) as run:
        peer = run.stranger()
        await peer.heartbeat()
        offered = peer.offer(payload(1))
        run.leader.applied.clear()
        first, second = (asyncio.create_task(peer.submit(offered)) for _ in range(2))
        await asyncio.sleep(0.05)
        run.leader.applied.set()
        await first
        await run.until_round(1)
        assert not (await second).refusal and (await peer.submit(offered)).fetched
        assert run.log.accounts.tokens == offered.tokens


async def test_the_view_never_pairs_a_head_with_the_state_before_it(tmp_path: Path) -> None:
    """While a record is being applied its digest is unknown: peers that are faster must not think they diverged."""
    async with small_run(tmp_path) as run:
        peer = run.stranger()
        await peer.heartbeat()
        seen = set()
        wanted = run.leader.replica.digest
        submitting = asyncio.create_task(peer.settled(peer.offer(payload(1))))
        while run.leader.replica.digest == wanted:
            view = run.leader.view()
            seen.add((view.head_round, view.head_digest))
            await asyncio.sleep(0)
        await submitting
        assert seen <= {(0, wanted), (1, b"")}
