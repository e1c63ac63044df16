"""A replica on a disk that forgets and lies: what can be had again is fetched, what cannot is named."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from peer.errors import PayloadError, VerificationError
from peer.exchange.blobs import BlobStore
from peer.identity import Identity, PeerId
from peer.log import replica as replica_module
from peer.log import snapshots as snapshots_module
from peer.log import state as state_module
from peer.log.chain import Log
from peer.log.replica import Diverged, Replica
from peer.log.snapshots import Snapshots
from peer.log.state import State
from protos import log_pb2
from tests.small_run import PARAMETERS, SmallRun, payload, replica_of, small_run


@contextlib.asynccontextmanager
async def followed(folder: Path, rounds: int) -> AsyncIterator[tuple[SmallRun, Replica]]:
    """A run of so many rounds, and a replica that has its log and nothing else."""
    async with small_run(folder, outer={"learning_rate": 0.7, "momentum": 0.9}) as run:
        peer = run.stranger()
        for number in range(rounds):
            await peer.heartbeat()
            await peer.settled(peer.offer(payload(number)))
            await run.until_round(number + 1)
            peer.leased -= peer.leased.first(4)
        leader, identity = run.leader.identity, Identity.new()
        swarm = run.network.node(identity)
        replica = replica_of(Log.start(run.log.entries[0].signed), folder / "follower", swarm, leader)
        await replica.fetch_records(swarm, leader.peer_id)
        try:
            yield run, replica
        finally:
            replica.close()


async def test_a_replay_gives_the_leaders_bits(tmp_path: Path) -> None:
    """Momentum included."""
    async with followed(tmp_path, 3) as (run, replica):
        await replica.catch_up()
        assert replica.state.round == 3 and replica.digest == run.leader.replica.digest == replica.state.digest()


async def test_records_that_two_tasks_fetch_at_once_are_taken_once(tmp_path: Path) -> None:
    """One follows the leader, another hears of more from a neighbour: neither fails for the other's being faster."""
    async with followed(tmp_path, 3) as (run, _):
        leader, swarm = run.leader.identity, run.network.node(Identity.new())
        replica = replica_of(Log.start(run.log.entries[0].signed), tmp_path / "another", swarm, leader)
        try:
            both = await asyncio.gather(*(replica.fetch_records(swarm, leader.peer_id) for _ in range(2)))
        finally:
            replica.close()
        assert replica.log.head.hash == run.log.head.hash
        assert sorted(entry.round for added in both for entry in added) == [1, 2, 3]


async def test_contributions_are_asked_of_the_coordinator_first_and_of_their_maker_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home sends what it made once; chunks of a state, which many hold, are drawn among all holders."""
    async with small_run(tmp_path) as run:
        holders = [run.leader.identity, *(Identity.new() for _ in range(5))]
        own = Identity.new()
        replica = replica_of(run.log, tmp_path / "own", run.network.node(own), *holders)
        asked: list[list[PeerId]] = []

        async def fetch(blob: bytes, size: int, sources: Sequence[PeerId], *, deadline_seconds: float) -> None:
            asked.append(list(sources))

        monkeypatch.setattr(replica.exchange, "fetch", fetch)
        coordinator, maker = run.leader.identity.peer_id, holders[3].peer_id
        for number in range(20):
            await replica.fetch_blob(bytes([number] * 32), 1, maker)
        for sources in asked:
            assert sources[0] == coordinator and sources[-1] == maker
            assert set(sources) == {holder.peer_id for holder in holders} and len(sources) == len(holders)
        asked.clear()
        for number in range(20):
            await replica.fetch_blob(bytes([number] * 32), 1)
        assert len({sources[0] for sources in asked}) > 1
        replica.close()


async def test_a_damaged_payload_is_fetched_again(tmp_path: Path) -> None:
    """Applied as it is, it would give another state and no explanation."""
    async with followed(tmp_path, 2) as (run, replica):
        for entry in replica.log.entries[1:]:
            await replica.fetch_payloads(entry)
        _damage(replica.blobs, replica.log.entries[2].contributions[0][1].payload_hash)
        await replica.catch_up()
        assert replica.digest == run.leader.replica.digest


async def test_a_damaged_payload_that_nobody_else_has_is_named_with_its_round(tmp_path: Path) -> None:
    """The coordinator has nobody to ask."""
    async with followed(tmp_path, 2) as (run, _):
        leader = run.leader.replica
        leader._sources = list
        _damage(leader.blobs, leader.log.entries[1].contributions[0][1].payload_hash)
        with pytest.raises(VerificationError, match="round 1: .*damaged on this disk"):
            await leader.fetch_payloads(leader.log.entries[1])


async def test_a_payload_that_does_not_decode_changes_nothing(tmp_path: Path) -> None:
    """Neither weights nor round: it can be tried again."""
    async with followed(tmp_path, 1) as (_, replica):
        await replica.fetch_payloads(replica.log.entries[1])
        _damage(replica.blobs, replica.log.entries[1].contributions[0][1].payload_hash)
        before = replica.state.theta.clone()
        with pytest.raises(PayloadError):
            await replica.apply_next()
        assert replica.state.round == 0 and torch.equal(replica.state.theta, before)


async def test_a_state_that_diverged_is_replaced_by_the_swarms(tmp_path: Path) -> None:
    """From a snapshot that the log vouches for, and what came after it."""
    async with followed(tmp_path, 3) as (run, replica):
        await run.leader.replica.keep_snapshot(2)
        replica.state.theta += 1
        replica.digest = replica.state.digest()
        with pytest.raises(Diverged):
            await replica.catch_up()
        await replica.reload(run.network.node(), run.leader.replica.digest)
        assert replica.digest == run.leader.replica.digest == replica.state.digest()


async def test_a_state_chunk_that_rotted_here_is_fetched_again(tmp_path: Path) -> None:
    """A chunk that is in the store already, and is not what its name says, is no reason to give up."""
    async with followed(tmp_path, 3) as (run, replica):
        await run.leader.replica.keep_snapshot(2)
        await replica.catch_up()
        await replica.keep_snapshot(2)
        for chunk in replica.snapshots.manifest(3).chunk_hashes:
            _damage(replica.blobs, chunk)
        await replica.reload(run.network.node(), run.leader.replica.digest)
        assert replica.digest == run.leader.replica.digest == replica.state.digest()


def enlarge(monkeypatch: pytest.MonkeyPatch) -> None:
    """States of many chunks."""
    for module in (state_module, snapshots_module):
        monkeypatch.setattr(module, "CHUNK_BYTES", 32)


async def test_the_cheaper_way_is_taken(tmp_path: Path) -> None:
    """Fewer bytes: a replay while the missed contributions weigh less than a state, else the newest snapshot."""
    async with followed(tmp_path, 6) as (run, replica):
        await run.leader.replica.keep_snapshot(2)
        digest, state_bytes = run.leader.replica.digest, replica.state.state_bytes
        for behind, expected in ((1, "replay"), (6, "state")):
            late = replica_of(replica.log, tmp_path / f"late{behind}", run.network.node(), run.leader.identity)
            for entry in replica.log.entries[1 : 7 - behind]:
                await late.fetch_payloads(entry)
                await late.apply_next()
            before = late.exchange.bytes_received
            replay = sum(entry.contributions[0][1].payload_bytes for entry in replica.log.entries[7 - behind :])
            assert (replay < state_bytes) == (expected == "replay")
            await late.join(late.exchange._swarm, digest)
            fewest = min(replay, state_bytes)
            assert fewest <= late.exchange.bytes_received - before <= fewest + behind  # a byte before each small blob
            assert late.digest == digest == late.state.digest()
            late.close()


async def test_a_state_comes_from_several_donors_and_goes_on_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two donors give parts of it, a liar among them is found out; what came before a kill is not fetched again; a
    newer snapshot does not make it useless; afterwards the joiner is a donor itself."""
    enlarge(monkeypatch)
    async with followed(tmp_path, 5) as (run, first):
        leader, digest = run.leader.replica, run.leader.replica.digest
        await leader.keep_snapshot(2)
        await first.join(first.exchange._swarm, digest)
        assert first.snapshots.rounds() == [5]
        swarms = {name: run.network.node(Identity.new()) for name in ("liar", "late")}
        liar = replica_of(first.log, tmp_path / "liar", swarms["liar"], run.leader.identity)
        await liar.join(swarms["liar"], digest)
        run.network.corrupt(swarms["liar"].peer_id)
        late = replica_of(first.log, tmp_path / "late", swarms["late"], run.leader.identity)
        donors = [run.leader.swarm.peer_id, first.exchange._swarm.peer_id, swarms["liar"].peer_id]
        late._sources = lambda: donors
        monkeypatch.setattr(replica_module, "CHUNKS_AT_ONCE", 2)
        before = [leader.exchange.bytes_sent, first.exchange.bytes_sent]
        fetch = late.exchange.fetch
        count = iter(range(100))

        async def killed(*arguments: Any, **options: Any) -> None:
            if next(count) >= 6:
                raise RuntimeError
            await fetch(*arguments, **options)

        monkeypatch.setattr(late.exchange, "fetch", killed)
        task = asyncio.ensure_future(late.join(swarms["late"], digest))
        await asyncio.wait([task])
        assert isinstance(task.exception(), RuntimeError)
        monkeypatch.setattr(late.exchange, "fetch", fetch)
        kept = late.blobs.total_bytes
        assert kept > 0 and not late.snapshots.rounds()
        received = late.exchange.bytes_received
        await late.join(swarms["late"], digest)
        assert late.digest == digest == late.state.digest()
        lost = 32 * (1 + 1)  # each lie is a chunk that comes twice; the liar is asked once or twice at the same time
        assert late.exchange.bytes_received - received <= late.state.state_bytes - kept + 8 * lost
        assert leader.exchange.bytes_sent > before[0] and first.exchange.bytes_sent > before[1]
        assert set(late.exchange.donors.liars) <= {swarms["liar"].peer_id}
        assert late.snapshots.rounds() == [5] and late.snapshots.begun() is None
        for replica in (liar, late):
            replica.close()


def test_chunks_of_a_state_given_up_leave_the_disk(tmp_path: Path) -> None:
    """When another state is begun, except those that they share."""
    store = BlobStore(tmp_path / "blobs")
    snapshots = Snapshots(tmp_path / "snapshots", store)
    a, b, c = (store.put(bytes([number])) for number in range(3))
    snapshots.begin(log_pb2.StateManifest(round=1, chunk_hashes=[a, b]))
    snapshots.begin(log_pb2.StateManifest(round=2, chunk_hashes=[b, c]))
    assert set(store.hashes()) == {b, c}
    begun = Snapshots(tmp_path / "snapshots", store).begun()
    assert begun is not None and begun.round == 2
    (tmp_path / "snapshots" / "begun").write_bytes(b"\xff")
    assert snapshots.begun() is None


async def test_payloads_that_a_snapshot_makes_needless_are_dropped(tmp_path: Path) -> None:
    """And no others: a replay begins at the oldest snapshot."""
    async with followed(tmp_path, 3) as (_, replica):
        await replica.fetch_payloads(replica.log.entries[1])
        await replica.apply_next()
        await replica.keep_snapshot(2)
        await replica.catch_up()
        replica.drop_old_payloads()
        kept = [replica.blobs.has(entry.contributions[0][1].payload_hash) for entry in replica.log.entries[1:]]
        assert kept == [False, True, True]


async def test_records_are_served_to_whoever_asks_for_any_range(tmp_path: Path) -> None:
    """Beyond the end there are none, however far beyond."""
    async with followed(tmp_path, 1) as (run, _):
        assert not list(run.log.records(1 << 63, 1 << 63, 1 << 20))


def _damage(blobs: BlobStore, blob: bytes) -> None:
    """Of what lies on the disk; it is no longer in memory."""
    content = bytearray(blobs.read(blob))
    content[0] ^= 0xFF
    blobs.path(blob).write_bytes(content)
    blobs._recent.drop(blob)


@pytest.mark.parametrize("what", ["chunk", "missing chunk", "short chunk", "torn manifest", "renamed manifest"])
def test_a_damaged_snapshot_is_refused_and_the_state_left_alone(tmp_path: Path, what: str) -> None:
    """Half of one state and half of another would be neither."""
    snapshots = Snapshots(tmp_path / "snapshots", BlobStore(tmp_path / "blobs"))
    snapshots.save(State(2, torch.ones(PARAMETERS), torch.full((PARAMETERS,), 2.0)), bytes(32))
    last = snapshots.manifest(2).chunk_hashes[-1]
    path = tmp_path / "snapshots" / "00000002.manifest"
    match what:
        case "chunk":
            _damage(snapshots.blobs, last)
        case "missing chunk":
            snapshots.blobs.delete(last)
        case "short chunk":
            manifest = snapshots.manifest(2)
            manifest.chunk_hashes[-1] = snapshots.blobs.put(b"short")
            path.write_bytes(manifest.SerializeToString())
        case "torn manifest":
            path.write_bytes(path.read_bytes()[:20])
        case "renamed manifest":
            path.rename(tmp_path / "snapshots" / "00000003.manifest")
    state = State(0, torch.zeros(PARAMETERS), torch.zeros(PARAMETERS))
    with pytest.raises(VerificationError, match="round [23]: "):
        snapshots.load(snapshots.manifest(snapshots.rounds()[0]), state)
    assert not state.theta.any() and state.round == 0


def test_a_damaged_manifest_does_not_keep_old_snapshots_from_being_dropped(tmp_path: Path) -> None:
    """Nor does it end the run."""
    snapshots = Snapshots(tmp_path / "snapshots", BlobStore(tmp_path / "blobs"))
    for round_ in range(1, 5):
        snapshots.save(State(round_, torch.full((PARAMETERS,), float(round_)), None), bytes(32))
    for round_ in (1, 3):
        (tmp_path / "snapshots" / f"{round_:08d}.manifest").write_bytes(b"\xff")
    snapshots.prune(2)
    assert snapshots.rounds() == [3, 4]
    snapshots.load(snapshots.manifest(4), State(0, torch.zeros(PARAMETERS), None))
