"""A run as a whole, in memory: rounds, credit, replay, late joiners, divergence, refusals."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from peer.errors import CommonweightsError
from peer.identity import PeerId
from peer.log.verify import verify
from peer.rounds import directory
from peer.rounds.ranges import Ranges
from peer.rounds.work import Backlog
from protos import log_pb2, swarm_pb2
from protos.signing import open_signed, sign
from tests.in_memory import Swarm, tiny_spec

pytestmark = pytest.mark.timeout(180)


async def trained(folder: Path, peers: int, **changes: dict[str, Any]) -> Swarm:
    """A finished run."""
    async with Swarm(folder, tiny_spec(**changes)) as swarm:
        swarm.start(*(f"peer-{number}" for number in range(peers)))
        await swarm.begin(peers)
        await swarm.finish()
    return swarm


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"round": {"inner_steps": 1}},
        {"round": {"overlap": True, "inner_steps": 0, "target_tokens": 1500}},
        {"outer": {"learning_rate": 0.7, "momentum": 0.9}, "codec": {"name": "sparse/8"}},
    ],
    ids=["several inner steps", "one inner step", "overlapped", "momentum and sparse"],
)
async def test_three_peers_agree_to_the_bit_and_are_credited(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Digests are equal, credit adds up to the tokens, everybody has some, the loss falls, a replay says the same."""
    swarm = await trained(tmp_path, 3, **changes)
    log, accounts = swarm.coordinator.log, swarm.coordinator.log.accounts
    assert log.finished and log.head.round == swarm.spec.run.rounds + 1
    assert {node.replica.digest for node in swarm.nodes.values()} == {swarm.coordinator.replica.digest}
    assert sum(accounts.credit.values()) == accounts.tokens > 0
    assert set(accounts.credit) == {swarm.peer_id(name).public_key for name in swarm.nodes}
    history = swarm.coordinator.evaluator.history
    assert history[-1].loss < history[0].loss
    assert len(accounts.accepted) * swarm.spec.data.sequence_length == accounts.tokens  # no position merged twice

    verdict = verify(tmp_path / "coordinator")
    assert verdict.ok, verdict.errors
    assert verdict.state_digest == swarm.coordinator.replica.digest.hex()
    assert verdict.credit == {str(PeerId(key)): tokens for key, tokens in accounts.credit.items()}
    for name in swarm.nodes:
        assert verify(tmp_path / name).state_digest == verdict.state_digest


async def test_one_peer_twice_from_one_seed_gives_the_same_bits(tmp_path: Path) -> None:
    """Nothing in a run of one peer depends on time: not the data order, not the learning rate, not the weights."""
    first = await trained(tmp_path / "a", 1)
    second = await trained(tmp_path / "b", 1)
    assert first.coordinator.log.run_id != second.coordinator.log.run_id  # other keys
    assert first.coordinator.replica.digest == second.coordinator.replica.digest


async def test_a_late_joiner_gets_the_state_and_contributes_from_the_next_round(tmp_path: Path) -> None:
    """It starts in the middle, holds the same digest, and has credit in a round soon after its arrival."""
    async with Swarm(tmp_path, tiny_spec(run={"rounds": 9})) as swarm:
        swarm.start("early-1", "early-2")
        await swarm.begin(2)
        await swarm.until(lambda: swarm.head() >= 4, "round 4")
        arrived = swarm.head()
        swarm.start("late")
        await swarm.until(lambda: "late" in swarm.nodes and swarm.nodes["late"].phase != "syncing", "late is in sync")
        synced = swarm.head()
        await swarm.finish()
        account = swarm.coordinator.log.accounts.peers[swarm.peer_id("late").public_key]
    assert arrived < account.first_round <= synced + 2
    assert {node.replica.digest for node in swarm.nodes.values()} == {swarm.coordinator.replica.digest}


async def test_a_peer_whose_state_differs_says_so_loads_the_swarms_and_goes_on(tmp_path: Path) -> None:
    """One flipped weight is found by its digest within a round; nobody else notices."""
    async with Swarm(tmp_path, tiny_spec(run={"rounds": 8})) as swarm:
        swarm.start("good", "bad")
        await swarm.begin(2)
        await swarm.until(lambda: swarm.head() >= 2 and swarm.nodes["bad"].replica.state.round >= 2, "round 2")
        replica = swarm.nodes["bad"].replica
        replica.state.theta[7] += 1.0
        replica.digest = replica.state.digest()
        await swarm.finish()
    assert any(event.startswith("bad: ") and "loading it again" in event for event in swarm.events)
    assert {node.replica.digest for node in swarm.nodes.values()} == {swarm.coordinator.replica.digest}


async def test_the_death_of_a_peer_costs_no_more_than_a_deadline(tmp_path: Path) -> None:
    """The others publish without it, and what it had leased is trained on by them."""
    async with Swarm(tmp_path, tiny_spec(run={"rounds": 6})) as swarm:
        swarm.start("one", "two", "victim")
        await swarm.begin(3)
        await swarm.until(lambda: swarm.head() >= 2, "round 2")
        swarm.network.kill(swarm.peer_id("victim"))
        swarm.tasks.pop("victim").cancel()
        await swarm.finish()
        accepted = swarm.coordinator.log.accounts.accepted
    assert swarm.coordinator.log.finished
    held = swarm.coordinator.leader.state.leases
    assert len(accepted) + len(held.returned) + sum(len(lease.positions) for lease in held.held.values()) == held.cursor


async def test_a_peer_that_comes_back_keeps_its_identity_and_its_unsent_work(tmp_path: Path) -> None:
    """Stopped politely in mid-run, it goes on from its folder; all credit is its own, no position is merged twice."""
    async with Swarm(tmp_path, tiny_spec(run={"rounds": 8})) as swarm:
        swarm.start("steady", "guest")
        await swarm.begin(2)
        await swarm.until(lambda: swarm.head() >= 2, "round 2")
        swarm.nodes["guest"].stop()
        await swarm.until(lambda: swarm.tasks["guest"].done(), "the guest has left")
        before = swarm.coordinator.log.accounts.credit[swarm.peer_id("guest").public_key]
        swarm.start("guest")
        await swarm.finish()
        after = swarm.coordinator.log.accounts.credit[swarm.peer_id("guest").public_key]
    assert after > before > 0
    assert verify(tmp_path / "coordinator").ok


async def test_a_manifest_that_rotted_on_the_disk_is_fetched_again(tmp_path: Path) -> None:
    """A peer that was killed starts again and takes part, instead of ending with a complaint about its own file."""
    async with Swarm(tmp_path, tiny_spec(run={"rounds": 8})) as swarm:
        swarm.start("steady", "victim")
        await swarm.begin(2)
        await swarm.until(lambda: swarm.head() >= 2, "round 2")
        replica = swarm.nodes["victim"].replica
        await swarm.kill("victim")
        path = replica.blobs.path(replica.log.origin.genesis.manifest_hash)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0x10
        path.write_bytes(content)
        swarm.start("victim")
        await swarm.finish()
    assert replica.blobs.check(replica.log.origin.genesis.manifest_hash)


async def test_a_coordinator_that_comes_back_goes_on_with_all_credit(tmp_path: Path) -> None:
    """Cancelled in mid-run and started again from its folder: the log continues, and peers rejoin."""
    spec = tiny_spec(run={"rounds": 6})
    async with Swarm(tmp_path, spec) as swarm:
        swarm.start("one", "two")
        await swarm.begin(2)
        await swarm.until(lambda: swarm.head() >= 3, "round 3")
        for node in swarm.nodes.values():
            node.stop()
        await swarm.until(lambda: all(task.done() for task in swarm.tasks.values()), "peers have left")
    credit = dict(swarm.coordinator.log.accounts.credit)
    async with Swarm(tmp_path, spec) as again:
        assert again.coordinator.log.accounts.credit == credit
        again.start("one", "two")
        await again.begin(2)
        await again.finish()
    assert all(again.coordinator.log.accounts.credit[key] >= tokens for key, tokens in credit.items())
    assert verify(tmp_path / "coordinator").ok


async def test_a_peer_that_cannot_store_its_work_ends_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is not mended by waiting: the hand-in beside the training must not fail unheard."""
    async with Swarm(tmp_path, tiny_spec()) as swarm:
        swarm.start("one", "two")
        await swarm.begin(2)
        await swarm.until(lambda: swarm.head() >= 1, "round 1")

        def full(content: bytes) -> bytes:
            raise CommonweightsError("the disk is full")

        monkeypatch.setattr(swarm.nodes["one"].replica.blobs, "put", full)
        task = swarm.tasks.pop("one")
        await swarm.until(task.done, "the peer has ended")
        with pytest.raises(CommonweightsError, match="the disk is full"):
            task.result()
        await swarm.finish()


async def test_ctrl_c_during_the_first_sync_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A joiner on a slow link may have minutes of it before it."""
    async with Swarm(tmp_path, tiny_spec()) as swarm, swarm.joined("one") as node:

        async def for_ever(*arguments: object) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(node.replica, "join", for_ever)
        running = asyncio.create_task(node.run())
        await asyncio.sleep(0)
        node.stop()
        await asyncio.wait_for(running, 10)


async def test_a_stop_in_the_middle_of_encoding_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The farewell runs out of time while a large model is being encoded; it is waited for, and what it took out of the
    buffer is in the backlog that is kept."""
    monkeypatch.setattr("peer.node.FAREWELL_SECONDS", 0.05)
    async with Swarm(tmp_path, tiny_spec(run={"rounds": 50})) as swarm:
        swarm.start("slow")
        await swarm.begin(1)
        await swarm.until(lambda: swarm.head() >= 1, "round 1")
        node = swarm.nodes["slow"]
        encode, begun = node.contributor.feedback.encode, threading.Event()

        def slowly(codec: str) -> bytes:
            begun.set()
            time.sleep(0.5)
            return encode(codec)

        monkeypatch.setattr(node.contributor.feedback, "encode", slowly)
        await swarm.until(begun.is_set, "encoding has begun")
        node.stop()
        await swarm.until(lambda: swarm.tasks["slow"].done(), "the peer has left")
        kept = Backlog.load(tmp_path / "slow" / "backlog.json")
        assert kept.submitted is not None and node.replica.blobs.check(kept.submitted.payload_hash)


async def test_a_run_may_end_with_its_tokens(tmp_path: Path) -> None:
    """No limit of rounds: the final record follows the one that brought the last tokens, and peers leave."""
    swarm = await trained(tmp_path, 2, run={"rounds": 0, "tokens": 3000})
    log = swarm.coordinator.log
    before = log.accounts.tokens - sum(item.tokens for _, item in log.entries[-2].contributions)
    assert log.finished and before < 3000 <= log.accounts.tokens


async def test_a_paused_run_goes_on_where_it_was(tmp_path: Path) -> None:
    """Nobody trains for nothing meanwhile, and the round in progress is not lost."""
    async with Swarm(tmp_path, tiny_spec(run={"rounds": 4})) as swarm:
        swarm.start("one", "two")
        await swarm.begin(2)
        await swarm.until(lambda: swarm.head() >= 1, "round 1")
        swarm.coordinator.leader.pause(True)
        await swarm.until(lambda: all(node.phase == "waiting" for node in swarm.nodes.values()), "peers wait")
        swarm.coordinator.leader.pause(False)
        await swarm.finish()
    assert verify(tmp_path / "coordinator").ok


def bad(contribution: log_pb2.Contribution, **fields: Any) -> log_pb2.Contribution:
    changed = log_pb2.Contribution()
    changed.CopyFrom(contribution)
    for key, value in fields.items():
        if key == "consumed":
            del changed.consumed[:]
            changed.consumed.extend(value)
        else:
            setattr(changed, key, value)
    return changed


async def test_contributions_that_make_no_sense_are_refused_with_the_reason(tmp_path: Path) -> None:
    """Wrong run, round, base, lease, tokens, loss, codec, size, signer, payload: each is named, and the run goes on."""
    async with Swarm(tmp_path, tiny_spec(run={"rounds": 4})) as swarm, swarm.joined("stranger") as stranger:
        swarm.start("honest")
        link, identity = stranger.link, stranger.contributor.identity
        await stranger._sync()
        swarm.coordinator.leader.pause(False)
        stranger.phase = "paused"
        await stranger._heartbeat()
        leased = stranger.feed.stock
        assert leased
        payload = bytes(1000)
        good = log_pb2.Contribution(
            run_id=swarm.coordinator.log.run_id,
            round=1,
            previous_hash=swarm.coordinator.log.head.hash,
            base_digest=swarm.coordinator.replica.digest,
            consumed=leased.first(2).to_protos(),
            tokens=64,
            inner_steps=1,
            mean_loss=5.0,
            codec=swarm.spec.codec.name,
            payload_hash=stranger.replica.blobs.put(payload),
            payload_bytes=len(payload),
        )
        parameters = swarm.coordinator.log.origin.genesis.parameters
        cases = {
            "another run": bad(good, run_id=bytes(32)),
            "the open round is 1": bad(good, round=2),
            "another record 0": bad(good, previous_hash=bytes(32)),
            "load the state again": bad(good, base_digest=bytes(32)),
            "not leased": bad(good, consumed=Ranges.of([(10_000, 10_002)]).to_protos(), payload_hash=bytes(32)),
            "do not match": bad(good, tokens=65),
            "finite": bad(good, mean_loss=float("nan")),
            "this run uses": bad(good, codec="sign"),
            "cannot be right": bad(good, payload_bytes=100 * parameters),
            "empty, unsorted": bad(good, consumed=[log_pb2.Range(start=5, stop=2)]),
            "not 32 bytes": bad(good, payload_hash=b"short"),
        }
        for reason, contribution in cases.items():
            with pytest.raises(CommonweightsError, match=reason):
                await link.submit(sign(contribution, identity.private_key))
        forged = sign(good, identity.private_key)
        forged.signature = bytes(64)
        with pytest.raises(CommonweightsError, match="not signed"):
            await link.submit(forged)
        with pytest.raises(CommonweightsError, match="signed it"):
            await link.submit(sign(good, type(identity).new().private_key))

        signed = sign(good, identity.private_key)  # all in order but the payload, which is zeros
        await link.submit(signed)
        with pytest.raises(CommonweightsError, match="payload"):
            for _ in range(200):
                await link.submit(signed)
                await asyncio.sleep(0.02)
        await swarm.until(lambda: swarm.lead.done(), "the run is finished")
    (refused,) = [item for entry in swarm.coordinator.log.entries for item in entry.record.refused]
    assert refused.peer == identity.peer_id.public_key and "payload" in refused.reason
    assert identity.peer_id.public_key not in swarm.coordinator.log.accounts.credit


async def test_garbage_to_every_handler_costs_nothing(tmp_path: Path) -> None:
    """Random bytes, truncated messages and oversized ones are refused; the run goes on to its end."""
    async with Swarm(tmp_path, tiny_spec()) as swarm, swarm.joined("stranger") as stranger:
        swarm.start("honest")
        await swarm.begin(1)
        call, coordinator = stranger.link.swarm.call, swarm.ticket.coordinator
        valid = swarm_pb2.HeartbeatRequest(presence=stranger.presence(), wanted_sequences=1 << 60).SerializeToString()
        wrong_numbers = stranger.presence()
        wrong_numbers.tokens_per_second = float("nan")
        long_name = stranger.presence()
        long_name.name = "x" * 500
        bodies = [b"\xff" * 40, b"\x00", valid[: len(valid) // 2], bytes(1 << 20)]
        bodies += [swarm_pb2.HeartbeatRequest(presence=item).SerializeToString() for item in (wrong_numbers, long_name)]
        for method in ("heartbeat", "submit", "watch", "records", "manifest", "blob", "no such method"):
            for body in bodies:
                try:
                    await call(coordinator, method, body, timeout_seconds=10)
                except CommonweightsError as error:
                    assert str(error)
        await swarm.finish()
    assert swarm.coordinator.log.finished


async def test_every_flipped_byte_is_found_and_its_round_named(tmp_path: Path) -> None:
    """Of records and of payloads, at the beginning, the middle and the end."""
    swarm = await trained(tmp_path, 1)
    folder = tmp_path / "coordinator"
    entries = [entry for entry in swarm.coordinator.log.entries if entry.contributions]
    files = {entry.round: [folder / "log" / f"{entry.round:08d}.record"] for entry in swarm.coordinator.log.entries}
    for entry in entries:
        files[entry.round] += [
            swarm.coordinator.replica.blobs.path(item.payload_hash) for _, item in entry.contributions
        ]
    for round_, paths in files.items():
        for path in paths:
            content = path.read_bytes()
            for index in {0, 1, len(content) // 3, len(content) // 2, len(content) - 1}:
                flipped = bytearray(content)
                flipped[index] ^= 0x10
                path.write_bytes(flipped)
                verdict = verify(folder)
                assert not verdict.ok and f"round {round_}:" in verdict.errors[0], (path, index, verdict.errors)
            path.write_bytes(content)
    assert verify(folder).ok


async def test_the_header_in_the_record_is_what_the_peer_signed(tmp_path: Path) -> None:
    """A receipt needs nothing but the record: the contribution's own signature is in it."""
    swarm = await trained(tmp_path, 1)
    (accepted,) = swarm.coordinator.log.entries[1].record.accepted
    contribution = open_signed(accepted.contribution, log_pb2.Contribution)
    assert accepted.contribution.signer == swarm.peer_id("peer-0").public_key
    assert contribution.tokens == 4 * 4 * 32


async def test_whoever_comes_after_the_end_learns_of_it_and_leaves(tmp_path: Path) -> None:
    """The run is finished: the peer gets the state, contributes nothing, and ends by itself."""
    async with Swarm(tmp_path, tiny_spec()) as swarm:
        swarm.start("early")
        await swarm.begin(1)
        await swarm.finish()
        swarm.start("late")
        await swarm.until(lambda: swarm.tasks["late"].done(), "late has left")
        assert swarm.nodes["late"].replica.digest == swarm.coordinator.replica.digest


async def test_private_data_is_credited_and_named_in_the_record(tmp_path: Path) -> None:
    """An organization's peer trains on files that stay with it, beside one that trains on leases."""
    async with Swarm(tmp_path, tiny_spec()) as swarm:
        swarm.start("public")
        notes = tmp_path / "notes.txt"
        notes.write_text(Path(asyncio.tasks.__file__).read_text())
        swarm.start("clinic", private_data=str(notes))
        await swarm.begin(2)
        await swarm.finish()
    log = swarm.coordinator.log
    clinic = swarm.peer_id("clinic").public_key
    merged = [item for entry in log.entries for signer, item in entry.contributions if signer == clinic]
    assert merged and all(item.private_data == "private" and not item.consumed for item in merged)
    assert log.accounts.credit[clinic] == sum(item.tokens for item in merged) > 0
    assert verify(tmp_path / "coordinator").ok


async def test_the_dht_knows_who_takes_part_and_where_the_sequencer_is(tmp_path: Path) -> None:
    """Presence of every peer and the head of the log, each signed by its owner."""
    async with Swarm(tmp_path, tiny_spec(run={"rounds": 4})) as swarm:
        swarm.start("one", "two")
        await swarm.begin(2)
        run_id, coordinator = swarm.ticket.run_id, swarm.ticket.coordinator
        found: set[str] = set()
        async with asyncio.timeout(20):  # a peer is a member before its entry is in the DHT
            while found != {"one", "two"}:
                await asyncio.sleep(0.02)
                entries = await directory.peers(swarm.nodes["one"].link.swarm, run_id)
                found = {presence.name for presence in entries.values()}
        pointer = await directory.head(swarm.nodes["one"].link.swarm, run_id, coordinator)
        assert pointer is not None and len(pointer.hash) == 32
        await swarm.finish()
