"""A run whose folder is lost, begun again from the key that signed it and from the peers that hold its log.

Only what makes a folder a run is restored here: the genesis record, the data and the initial state. The rest is what
every coordinator does that was away: it follows whoever leads, and asks for the lead.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

from configs import RunSpec
from coordinator.genesis import initial_state, share_data
from coordinator.prepare import prepare
from peer.data.manifest import FILE_NAME, Manifest
from peer.errors import CommonweightsError, DataError, UnreachableError, UsageError, VerificationError
from peer.exchange.blobs import BlobStore
from peer.exchange.donors import Donors
from peer.exchange.download import Download
from peer.exchange.intake import Intake
from peer.exchange.ratelimit import RateLimiter
from peer.identity import Identity, PeerId
from peer.log.chain import Log
from peer.log.replica import CALL_SECONDS
from peer.log.snapshots import Snapshots
from peer.messages import parse
from peer.swarm import Swarm
from protos import log_pb2, swarm_pb2

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 600.0  # for a peer to dial in
LOOK_SECONDS = 1.0
FETCH_SECONDS = 600.0  # one file of the data set


async def rebuild(
    spec: RunSpec, folder: Path, identity: Identity, swarm: Swarm, on_event: Callable[[str], None]
) -> Log:
    """The run that `identity` signed, in an empty `folder`, from peers that are or get connected to `swarm`.

    Raises:
        UnreachableError: no peer of that run came.
        UsageError: the run was made from another spec.
        DataError, VerificationError: its data or its initial weights cannot be made again here, nor fetched.
    """
    on_event(f"waiting for peers of the run that this key signed, at {', '.join(swarm.addresses) or 'no address'}")
    genesis, holders = await _genesis(identity, swarm)
    log = Log.start(genesis)
    if log.spec != spec:
        raise UsageError("the peers' run was made from other settings; use the config that it was made from")
    on_event(f"found the run {log.run_id.hex()[:16]}, held by {len(holders)} peers; restoring data and initial weights")
    blobs = BlobStore(folder / "blobs")
    manifest = await _data(log, folder / "data", blobs, swarm, holders)
    await asyncio.to_thread(share_data, manifest, folder / "data", blobs)
    blobs.put(manifest.to_json())
    state = await asyncio.to_thread(initial_state, spec, manifest)
    if state.digest() != log.origin.genesis.state_digest:
        raise VerificationError(
            "this machine draws other initial weights than the run began with; rebuild on a machine like the first one"
        )
    await asyncio.to_thread(Snapshots(folder / "snapshots", blobs).save, state, log.run_id)
    return Log.start(genesis, folder / "log")


async def _genesis(identity: Identity, swarm: Swarm) -> tuple[log_pb2.Signed, list[PeerId]]:
    """Record 0, signed by `identity`, and who has it."""
    loop = asyncio.get_running_loop()
    end = loop.time() + PATIENCE_SECONDS
    while loop.time() < end:
        peers = await swarm.peers()
        answers = await asyncio.gather(*(_record_0(peer, swarm) for peer in peers))
        found = {peer: record for peer, record in zip(peers, answers, strict=True)
                 if record is not None and record.signer == identity.peer_id.public_key}  # fmt: skip
        if found:
            return next(iter(found.values())), list(found)
        await asyncio.sleep(LOOK_SECONDS)
    raise UnreachableError(
        f"no peer of a run that this key signed came within {PATIENCE_SECONDS / 60:.0f} minutes; start with the host "
        "and --swarm-port that the ticket names, or tell --peer where one of them is"
    )


async def _record_0(peer: PeerId, swarm: Swarm) -> log_pb2.Signed | None:
    request = swarm_pb2.RecordsRequest(first_round=0, count=1).SerializeToString()
    with contextlib.suppress(CommonweightsError):
        reply = parse(await swarm.call(peer, "records", request, timeout_seconds=CALL_SECONDS), swarm_pb2.RecordsReply)
        if reply.records:
            Log.start(reply.records[0])  # checked
            return reply.records[0]
    return None


async def _data(log: Log, folder: Path, blobs: BlobStore, swarm: Swarm, holders: list[PeerId]) -> Manifest:
    """The prepared data: from its source, which gives the same bytes again, or else file by file from the peers."""
    wanted = log.origin.genesis
    try:
        manifest = await asyncio.to_thread(prepare, log.spec, folder)
        if manifest.hash() == wanted.manifest_hash:
            return manifest
        logger.warning("the source has changed since the run began; fetching the data from peers")
    except DataError as error:
        logger.warning("%s; fetching the data from peers", error)
    await _fetch(wanted.manifest_hash, wanted.manifest_bytes, blobs, swarm, holders)
    text = blobs.read(wanted.manifest_hash)
    manifest = Manifest.from_json(text, source="the run's data manifest")
    for entry in manifest.files():
        blob = bytes.fromhex(entry.blake3)
        await _fetch(blob, entry.bytes, blobs, swarm, holders)
        path = folder / entry.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(blobs.read(blob))
    (folder / FILE_NAME).write_bytes(text)
    return manifest


async def _fetch(blob: bytes, size: int, blobs: BlobStore, swarm: Swarm, holders: list[PeerId]) -> None:
    """As an `Exchange` does it, which this node has none of before it has a run.

    Raises:
        UnreachableError: nobody could give it.
    """
    if blobs.has(blob):
        return

    async def arrived(source: PeerId, size: int) -> None:
        pass

    donors = Donors(swarm.peer_id)
    intake = Intake(RateLimiter(None))
    download = Download(
        swarm, blobs, blob, size, arrived=arrived, streams=asyncio.Semaphore(4), donors=donors, intake=intake
    )
    download.add(holders)
    try:
        async with asyncio.timeout(FETCH_SECONDS):
            await asyncio.shield(download.task)
    except TimeoutError:
        raise UnreachableError(f"blob {blob.hex()[:12]} not within {FETCH_SECONDS:g} s: {download}") from None
    finally:
        await download.end()
