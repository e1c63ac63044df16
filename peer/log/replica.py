"""A copy of the run: log, blobs and state, brought to the head and kept there.

Every node has one: peers, whose trainers start from it, and the coordinator. What a record does to the weights is
`apply_entry`; everything else here is getting hold of records and payloads, from whoever has them, and refusing what
does not match the chain.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from google.protobuf.message import DecodeError

from peer.background import cancel
from peer.codecs import SEGMENT_PARAMETERS, open_payload
from peer.errors import Refused, UnreachableError, VerificationError
from peer.exchange.blobs import BlobStore
from peer.exchange.exchange import Exchange
from peer.exchange.recent import SMALL_BYTES
from peer.identity import PeerId
from peer.log import aggregate, catchup
from peer.log.chain import MAX_RECORD_BYTES, Entry, Log, opened
from peer.log.snapshots import Snapshots, digest_after, fault
from peer.log.state import State
from peer.messages import parse
from peer.swarm import Swarm
from peer.yielding import stand_back
from protos import log_pb2, swarm_pb2
from protos.signing import body_hash

logger = logging.getLogger(__name__)

CALL_SECONDS = 10.0
CHUNKS_AT_ONCE = 8  # of a state
PAYLOAD_SECONDS = 600.0  # the longest that one blob may take, on a slow home link
ARCHIVE_BYTES = 4 << 30  # of old payloads that are kept while the coordinator is away
MAX_BRANCH_RECORDS = 20_000  # of another chain, looked at in one go
REPLY_BYTES = 1 << 20  # of records in one answer, unless a single record is larger
LARGE_RECORD_BYTES = 8 << 10  # some 15 contributions, whose signatures take milliseconds

T = TypeVar("T")

Sources = Callable[[], Sequence[PeerId]]  # who to ask, best first


class Diverged(VerificationError):
    """This replica's state is not the one the chain names: it must be loaded again."""


class Forked(VerificationError):
    """Another node's records do not go on from this log's head: there are two chains."""


class Replica:
    """Log, blobs and state of one node. One task at a time may bring it forward; anybody may read."""

    def __init__(self, folder: Path, log: Log, state: State, exchange: Exchange, sources: Sources) -> None:
        self.log = log
        self.state = state
        self.digest = log.origin.genesis.state_digest
        self.exchange = exchange
        self.blobs: BlobStore = exchange.store
        self.snapshots = Snapshots(folder / "snapshots", self.blobs)
        self._sources = sources
        self._dropped_until = 1  # round whose payloads, and later ones, were not dropped by this process
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="apply", initializer=stand_back)

    def serve(self, swarm: Swarm) -> None:
        """Answer other nodes' questions for records and snapshots."""
        swarm.serve("records", self._on_records, max_request_bytes=1024)
        swarm.serve("manifest", self._on_manifest, max_request_bytes=1024)

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    # --- forward ----------------------------------------------------------------------------------------------------

    async def fetch_records(self, swarm: Swarm, peer: PeerId, last_round: int | None = None) -> list[Entry]:
        """Append what `peer` has beyond this log's head, as far as `last_round`: where it is known to end, one question
        is enough.

        Raises:
            Forked: its log and this one part before this head.
            VerificationError: what it sent is wrong; what was good before it is kept.
            UnreachableError, Refused: it did not answer, or would not.
        """
        added: list[Entry] = []
        while not self.log.finished and (last_round is None or self.log.head.round < last_round):
            first = self.log.head.round + 1
            records = await records_of(swarm, peer, self.log, first)
            for round_, signed in enumerate(records, first):
                entry = await _opened(signed, round_)
                if self.log.holds(round_, entry.hash):
                    continue  # it came from somebody else meanwhile
                if not follows(signed, self.log.head):
                    raise Forked(f"round {round_}: {peer.short} holds another chain")
                self.log.append_opened(entry)
                added.append(entry)
            if not records:
                break
        return added

    async def fetch_branch(self, swarm: Swarm, peer: PeerId) -> Log:
        """The whole chain of `peer`, checked, in memory. This log stays as it is.

        Raises:
            VerificationError: a record of it is wrong.
            UnreachableError, Refused: it did not answer, or would not.
        """
        ours, round_, step = self.log.entries, self.log.head.round, 1
        while round_ > 0:  # back to a record that both have, in growing steps
            records = await records_of(swarm, peer, self.log, round_)
            if records and body_hash(records[0]) == ours[round_].hash:
                break
            round_, step = max(0, round_ - step), 2 * step
        branch = await asyncio.to_thread(self.log.branch, round_)
        while not branch.finished and branch.head.round < round_ + MAX_BRANCH_RECORDS:
            records = await records_of(swarm, peer, self.log, branch.head.round + 1)
            for signed in records:
                branch.append(signed)
                await asyncio.sleep(0)
            if not records:
                break
        return branch

    async def fetch_payloads(self, entry: Entry) -> None:
        """Have every payload of a record in the blob store, as its maker signed it.

        Raises:
            UnreachableError: nobody could give one.
            VerificationError: one is damaged here, and there is nobody to ask for it.
        """
        if self.blobs.has_in_memory(item.payload_hash for _, item in entry.contributions):
            return
        await asyncio.to_thread(self._drop_damaged, entry)
        await self.fetch_blobs(
            [(item.payload_hash, item.payload_bytes, PeerId(signer)) for signer, item in entry.contributions]
        )

    def lacks_payloads(self) -> bool:
        """Whether some payload of the next record is not here, or there is no state to apply it to."""
        following = self.log.entries[self.state.round + 1 : self.state.round + 2]
        wanted = [item.payload_hash for entry in following for _, item in entry.contributions]
        return self.state.round < 0 or not all(self.blobs.has(hash_) for hash_ in wanted)

    async def fetch_blobs(self, wanted: Sequence[tuple[bytes, int, PeerId]]) -> None:
        """Have these blobs in the store: (hash, size in bytes, maker). Small ones come together, as many as the first
        to be asked for them has.

        Raises:
            UnreachableError: nobody could give one.
        """
        missing = await asyncio.to_thread(self._missing, wanted)
        small = [each for each in missing if each[1] <= SMALL_BYTES]
        bundles: dict[PeerId, dict[bytes, int]] = {}
        for (hash_, size, _), source in zip(small, self._first_sources(small), strict=True):
            bundles.setdefault(source, {})[hash_] = size
        await asyncio.gather(
            *(self.exchange.fetch_small(bundle, source) for source, bundle in bundles.items()),
            *(self.fetch_blob(*each) for each in missing if each[1] > SMALL_BYTES),
        )
        if not self.blobs.has_in_memory(hash_ for hash_, _, _ in small):
            await asyncio.gather(*(self.fetch_blob(*each) for each in await asyncio.to_thread(self._missing, small)))

    def _missing(self, wanted: Sequence[tuple[bytes, int, PeerId]]) -> list[tuple[bytes, int, PeerId]]:
        """Those that are not here. In a thread: so many looks at the disk would keep the event loop waiting."""
        return [each for each in wanted if not self.blobs.has(each[0])]

    async def fetch_blob(self, hash_: bytes, size: int, *likely: PeerId) -> None:
        """Have one blob in the store.

        Raises:
            UnreachableError: nobody could give it.
        """
        if not self.blobs.has(hash_):
            sources = self._sources_of(hash_, *likely)
            await self.exchange.fetch(hash_, size, sources, deadline_seconds=PAYLOAD_SECONDS)

    def _sources_of(self, hash_: bytes, *likely: PeerId) -> list[PeerId]:
        """Whom to ask, in order. The usual sources share the load; `likely` holders, its maker above all, whose uplink
        has carried it once already, are asked after them.

        What a peer made is asked of the coordinator first, which has it before anybody else, and no training beside:
        homes then send what they make and hardly more. When its uplink is full it is busy, and others serve.
        """
        usual = [peer for peer in self._sources() if peer not in likely]
        relay = [peer for peer in usual if likely and peer == self.log.origin.coordinator]
        return list(dict.fromkeys([*relay, *self.exchange.donors.order(hash_, usual), *likely]))

    def _first_sources(self, blobs: Sequence[tuple[bytes, int, PeerId]]) -> list[PeerId]:
        """Whom to ask first for each of these blobs."""
        relay = self.log.origin.coordinator
        if blobs and relay in self._sources():
            return [relay] * len(blobs)
        return [self._sources_of(hash_, maker)[0] for hash_, _, maker in blobs]

    async def apply_next(self) -> Entry:
        """Apply the record after the state, whose payloads are here: check where it starts, step.

        Raises:
            Diverged: the record starts from another state than this one.
            PayloadError, DataError: a payload does not decode or is not here; the state is as before.
        """
        entry = self.log.entries[self.state.round + 1]
        if entry.record.base_digest != self.digest:
            raise Diverged(f"round {entry.round}: this state's digest is {self.digest.hex()[:16]}, the log says "
                           f"{entry.record.base_digest.hex()[:16]}")  # fmt: skip
        self.digest = await self.compute(apply_entry, self.state, entry, self.log, self.blobs)
        return entry

    async def catch_up(self) -> None:
        """Apply every record of the log that the state does not have yet."""
        while self.state.round < self.log.head.round:
            await self.fetch_payloads(self.log.entries[self.state.round + 1])
            await self.apply_next()

    def copy(self) -> asyncio.Future[State]:
        """The state as it is when everything begun before this call is done, in memory of its own."""
        return asyncio.get_running_loop().run_in_executor(self._thread, self.state.copy)

    async def compute(self, function: Callable[..., T], *arguments: object) -> T:
        """Run something heavy in the thread that owns the state."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def _drop_damaged(self, entry: Entry) -> None:
        for signer, item in entry.contributions:
            hash_ = item.payload_hash
            if self.blobs.has_in_memory([hash_]) or not self.blobs.has(hash_) or self.blobs.check(hash_):
                continue
            whose = f"round {entry.round}: the contribution of {PeerId(signer).short}"
            if not self._sources():
                raise VerificationError(
                    f"{whose} is damaged on this disk: {self.blobs.path(hash_)}; restore it from a backup"
                )
            logger.warning("%s is damaged on this disk; it is fetched again", whose)
            self.blobs.delete(hash_)

    # --- snapshots --------------------------------------------------------------------------------------------------

    async def keep_snapshot(self, keep: int, always: frozenset[int] = frozenset()) -> None:
        """Store the present state as chunks and drop old snapshots."""
        await self.compute(self._save_snapshot)
        await self.compute(self.snapshots.prune, keep, always)

    def _save_snapshot(self) -> None:
        if 0 <= self.state.round <= self.log.head.round:  # else it is being rolled back
            self.snapshots.save(self.state, self.log.run_id)

    def drop_old_payloads(self) -> None:
        """Payloads older than the oldest snapshot are the archive's business: the coordinator's.

        It holds those of its own records. Later ones are kept for it, up to `ARCHIVE_BYTES`, until it leads again.
        """
        entries, coordinator = self.log.entries, self.log.origin.coordinator.public_key
        if not (rounds := self.snapshots.rounds()) or rounds[0] >= len(entries):
            return  # the log has just been rolled back
        keep_from, kept_bytes = rounds[0] + 1, 0
        while keep_from > 1 and entries[keep_from - 1].signed.signer != coordinator and kept_bytes < ARCHIVE_BYTES:
            keep_from -= 1
            kept_bytes += sum(item.payload_bytes for _, item in entries[keep_from].contributions)
        needed = {item.payload_hash for entry in entries[keep_from:] for _, item in entry.contributions}
        for entry in entries[self._dropped_until : keep_from]:
            for _, item in entry.contributions:
                if item.payload_hash not in needed:
                    self.blobs.delete(item.payload_hash)
        self._dropped_until = keep_from

    async def restore(self) -> bool:
        """Load the newest snapshot of this node that fits its log; False if there is none."""
        for round_ in reversed(self.snapshots.rounds()):
            if round_ > self.log.head.round or round_ < self.state.round:
                continue
            try:
                manifest = self.snapshots.manifest(round_)
                if round_ < self.log.head.round and (reason := fault(manifest, self.log, self.state.state_bytes, b"")):
                    raise VerificationError(f"round {round_}: the snapshot is not used: {reason}")
                await self._load(manifest)
            except VerificationError as error:
                logger.warning("%s", error)
                continue
            return True
        return False

    async def roll_back(self, round_: int) -> None:
        """Leave what came after `round_` behind: the log has changed from there on.

        The newest older snapshot is loaded; without one the state is none (round -1), and has to be fetched.
        """
        self._dropped_until = min(self._dropped_until, round_ + 1)
        await self.compute(self.snapshots.drop_after, round_)
        if self.state.round > round_:
            self.state.round = -1
            await self.restore()

    async def join(self, swarm: Swarm, head_digest: bytes) -> None:
        """Bring a state that is far behind to the head, over the fewest bytes.

        Raises:
            UnreachableError: nobody could give what is needed.
        """
        known = await self._ways(swarm, head_digest)
        if not known:
            raise UnreachableError("no peer offers a state to start from; try again in a moment")
        await self._go(known)

    async def reload(self, swarm: Swarm, head_digest: bytes) -> None:
        """Throw this state away and take the swarm's: the cure for `Diverged`.

        Raises:
            UnreachableError: no snapshot that fits the log can be had.
        """
        known = [way for way in await self._ways(swarm, head_digest, at_any_round=True) if way.manifest is not None]
        if not known:
            raise UnreachableError("no peer offers a state that matches the log; trying again later")
        await self._go(known)

    async def _ways(self, swarm: Swarm, head_digest: bytes, at_any_round: bool = False) -> list[catchup.Way]:
        """To the head, the cheapest first; a state whose fetching was interrupted is cheaper by what came already."""
        size = self.state.state_bytes
        offered = await catchup.offers(swarm, self._sources(), self.log, size, head_digest)
        begun = self.snapshots.begun()
        if begun is not None and not fault(begun, self.log, size, head_digest):
            offered.append(begun)
        here = State(-1, self.state.theta, self.state.momentum) if at_any_round else self.state
        return catchup.ways(here, self.log, self.blobs, offered)

    async def _go(self, known: Sequence[catchup.Way]) -> None:
        """The first of these ways that somebody makes possible."""
        for way in known:
            try:
                if way.manifest is not None:
                    await self._fetch_state(way.manifest)
                break
            except UnreachableError as error:
                if way is known[-1]:
                    raise
                logger.warning("%s; trying another way", error)
        await self.catch_up()

    async def _fetch_state(self, manifest: log_pb2.StateManifest) -> None:
        """From as many donors as hold it. It becomes a snapshot of this node, which others can have from it."""
        logger.info("loading the state after round %d (%.1f MB)", manifest.round, manifest.state_bytes / 1e6)
        self.snapshots.begin(manifest)
        gate = asyncio.Semaphore(CHUNKS_AT_ONCE)

        async def one(hash_: bytes, size: int) -> None:
            async with gate:
                if not await asyncio.to_thread(self.blobs.check, hash_):  # what is here already may have rotted
                    self.blobs.delete(hash_)
                await self.fetch_blob(hash_, size)

        sizes = [len(chunk) for chunk in self.state.chunks()]
        fetches = [asyncio.create_task(one(*pair)) for pair in zip(manifest.chunk_hashes, sizes, strict=True)]
        try:
            await asyncio.gather(*fetches)
        finally:
            await cancel(*fetches)
        await self._load(manifest)
        self.snapshots.finish(manifest)

    async def _load(self, manifest: log_pb2.StateManifest) -> None:
        await self.compute(self.snapshots.load, manifest, self.state)
        self.digest = await self.compute(self.state.digest)

    # --- handlers ---------------------------------------------------------------------------------------------------

    async def _on_records(self, sender: PeerId, body: bytes) -> bytes:
        request = parse(body, swarm_pb2.RecordsRequest)
        if request.run_id and request.run_id != self.log.run_id:
            raise Refused("this node holds another run")
        first, count = request.first_round, min(request.count, 256)
        return swarm_pb2.RecordsReply(
            records=self.log.records(first, count, min(REPLY_BYTES, MAX_RECORD_BYTES // 2))
        ).SerializeToString()

    async def _on_manifest(self, sender: PeerId, body: bytes) -> bytes:
        request = parse(body, swarm_pb2.ManifestRequest)
        rounds = [round_ for round_ in self.snapshots.rounds() if round_ <= request.round]
        if request.run_id != self.log.run_id or not rounds:
            raise Refused("no snapshot of that run and round here")
        return self.snapshots.manifest(rounds[-1]).SerializeToString()


async def records_of(swarm: Swarm, peer: PeerId, log: Log, first_round: int) -> Sequence[log_pb2.Signed]:
    """Some of the records that `peer` has from `first_round` on, unchecked.

    Raises:
        UnreachableError, Refused: it did not answer, or would not.
    """
    request = swarm_pb2.RecordsRequest(run_id=log.run_id, first_round=first_round, count=256)
    reply = await swarm.call(peer, "records", request.SerializeToString(), timeout_seconds=CALL_SECONDS)
    return parse(reply, swarm_pb2.RecordsReply).records


async def _opened(signed: log_pb2.Signed, round_: int) -> Entry:
    """See `opened`; in a thread where many contributions are to be checked. Gives way to others in any case: each
    record is written durably, and they want to be heard in between."""
    if len(signed.body) > LARGE_RECORD_BYTES:
        return await asyncio.to_thread(opened, signed, round_)
    await asyncio.sleep(0)
    return opened(signed, round_)


def follows(signed: log_pb2.Signed, head: Entry) -> bool:
    """Whether a record says that it goes on from `head`; nothing else is checked."""
    try:
        return log_pb2.Record.FromString(signed.body).previous_hash == head.hash
    except DecodeError:
        return False


def apply_entry(state: State, entry: Entry, log: Log, blobs: BlobStore) -> bytes:
    """One outer step: state after round r from the state after r - 1, in place; returns its digest.

    Every replica computes the same bits: record order, fp32, elementwise operations only (see `aggregate`).
    """
    if entry.record.final:  # nothing to merge; momentum must not move the weights once more
        state.round = entry.round
        return entry.record.base_digest
    outer, parameters = log.spec.outer, state.theta.numel()
    several = parameters > SEGMENT_PARAMETERS  # else all of it is decoded, and so checked, before theta moves
    contributions = [
        (open_payload(blobs.view(item.payload_hash), parameters, bodies=several), item.tokens, norm)
        for (_, item), norm in zip(entry.contributions, entry.norms, strict=True)
    ]
    with torch.no_grad():
        aggregate.apply(
            state.theta,
            state.momentum,
            contributions,
            aggregate.OuterStep(outer.learning_rate, outer.momentum, outer.nesterov),
        )
    digest = state.digest()
    state.round = entry.round  # last: whoever looks meanwhile sees the round before
    return digest


__all__ = ["Diverged", "Forked", "Replica", "apply_entry", "digest_after"]
