"""A replica on a disk that forgets and lies: what can be had again is fetched, what cannot is named."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch

from peer.errors import PayloadError, VerificationError
from peer.exchange.blobs import BlobStore
from peer.identity import Identity
from peer.log.chain import Log
from peer.log.replica import Diverged, Replica
from peer.log.snapshots import Snapshots
from peer.log.state import State
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
    content = bytearray(blobs.read(blob))
    content[0] ^= 0xFF
    blobs.path(blob).write_bytes(content)


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
