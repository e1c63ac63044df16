"""Whole states kept as content-addressed chunks: where late joiners and restarts begin.

A snapshot is a `StateManifest` file plus its chunks in the blob store. Chunks come first and the manifest is renamed
into place last, so what is listed is complete. A manifest needs no signature: its digest is in the chain.
"""

from __future__ import annotations

from pathlib import Path

from google.protobuf.message import DecodeError

from peer.durable import write_durably
from peer.errors import VerificationError
from peer.exchange.blobs import HASH_BYTES, BlobStore
from peer.log.chain import Log
from peer.log.state import CHUNK_BYTES, State, manifest_digest
from protos import log_pb2


class Snapshots:
    def __init__(self, folder: Path, blobs: BlobStore) -> None:
        self.folder = folder
        self.blobs = blobs
        folder.mkdir(parents=True, exist_ok=True)
        self._begun = folder / "begun"

    def save(self, state: State, run_id: bytes) -> log_pb2.StateManifest:
        """Keep `state`; an earlier snapshot of the same round is replaced."""
        manifest = log_pb2.StateManifest(run_id=run_id, round=state.round, state_bytes=state.state_bytes)
        manifest.chunk_hashes.extend(self.blobs.put(chunk) for chunk in state.chunks())
        self._write(self._path(state.round), manifest)
        return manifest

    def begin(self, manifest: log_pb2.StateManifest) -> None:
        """Note whose chunks are being fetched, so that they are used after an interruption; chunks of one begun before
        are dropped."""
        before = self.begun()
        self._write(self._begun, manifest)
        if before is not None:
            self._drop_chunks(set(before.chunk_hashes))

    def begun(self) -> log_pb2.StateManifest | None:
        """What `begin` noted and `finish` did not finish. As it lies on disk: `fault` has to look at it."""
        try:
            manifest = log_pb2.StateManifest.FromString(self._begun.read_bytes())
        except (OSError, DecodeError):
            return None
        return manifest if all(len(hash_) == HASH_BYTES for hash_ in manifest.chunk_hashes) else None

    def finish(self, manifest: log_pb2.StateManifest) -> None:
        """All its chunks are here: it is a snapshot like any other."""
        self._write(self._path(manifest.round), manifest)
        self._begun.unlink(missing_ok=True)

    def rounds(self) -> list[int]:
        """Rounds that there is a snapshot of, oldest first."""
        return sorted(int(path.stem) for path in self.folder.glob("*.manifest"))

    def manifest(self, round_: int) -> log_pb2.StateManifest:
        """Raises VerificationError when the file is damaged."""
        try:
            manifest = log_pb2.StateManifest.FromString(self._path(round_).read_bytes())
        except (OSError, DecodeError) as error:
            raise VerificationError(f"round {round_}: the snapshot's manifest cannot be read: {error}") from None
        if manifest.round != round_ or any(len(hash_) != HASH_BYTES for hash_ in manifest.chunk_hashes):
            raise VerificationError(f"round {round_}: the snapshot's manifest is damaged")
        return manifest

    def load(self, manifest: log_pb2.StateManifest, state: State) -> None:
        """Fill `state` from chunks that are all in the store.

        Raises:
            VerificationError: a chunk is missing or damaged; `state` is as before.
        """
        sizes = [len(chunk) for chunk in state.chunks()]
        if len(sizes) != len(manifest.chunk_hashes):
            raise VerificationError(f"round {manifest.round}: the snapshot is of a state of another size")
        for hash_, size in zip(manifest.chunk_hashes, sizes, strict=True):
            if not self.blobs.check(hash_) or self.blobs.size(hash_) != size:
                raise VerificationError(f"round {manifest.round}: state chunk {hash_.hex()[:16]} is missing or damaged")
        state.load_chunks(self.blobs.read(hash_) for hash_ in manifest.chunk_hashes)
        state.round = manifest.round

    def prune(self, keep: int, always: frozenset[int] = frozenset()) -> None:
        """Drop all but the newest `keep` snapshots and those of rounds `always`, with chunks that no other one
        shares."""
        self._drop([round_ for round_ in self.rounds()[:-keep] if round_ not in always])

    def drop_after(self, round_: int) -> None:
        """Drop the snapshots of later rounds: the log has changed from there on."""
        self._drop([item for item in self.rounds() if item > round_])

    def _drop(self, gone: list[int]) -> None:
        needed = {hash_ for round_ in self.rounds() if round_ not in gone for hash_ in self._chunks(round_)}
        for round_ in gone:
            chunks = self._chunks(round_)
            self._path(round_).unlink()
            for hash_ in chunks - needed:
                self.blobs.delete(hash_)

    def _drop_chunks(self, chunks: set[bytes]) -> None:
        """Those that no snapshot, finished or begun, needs."""
        begun = self.begun()
        needed = {hash_ for round_ in self.rounds() for hash_ in self._chunks(round_)}
        for hash_ in chunks - needed - set(begun.chunk_hashes if begun is not None else ()):
            self.blobs.delete(hash_)

    def _write(self, path: Path, manifest: log_pb2.StateManifest) -> None:
        write_durably(path, manifest.SerializeToString(deterministic=True))

    def _chunks(self, round_: int) -> set[bytes]:
        """None of a manifest that is damaged: nobody can use it, and its chunks stay if they are not shared."""
        try:
            return set(self.manifest(round_).chunk_hashes)
        except VerificationError:
            return set()

    def _path(self, round_: int) -> Path:
        return self.folder / f"{round_:08d}.manifest"


def fault(manifest: log_pb2.StateManifest, log: Log, state_bytes: int, head_digest: bytes) -> str:
    """Why a manifest from a stranger is not the state of this log; empty when it is.

    `head_digest` is the digest of the state after the head, which no record holds yet; empty if it is not known.
    """
    if manifest.run_id != log.run_id:
        return "it belongs to another run"
    if manifest.round > log.head.round:
        return f"it is of round {manifest.round}, this log ends with {log.head.round}"
    if manifest.state_bytes != state_bytes or not 0 < len(manifest.chunk_hashes) <= 2 * (
        state_bytes // CHUNK_BYTES + 1
    ):
        return "it has the wrong size"
    if manifest_digest(manifest) != digest_after(log, manifest.round, head_digest):
        return "its digest is not the one in the log"
    return ""


def digest_after(log: Log, round_: int, head_digest: bytes) -> bytes:
    """Digest of the state after `round_`, from the chain; for the head, what the caller knows."""
    if round_ == 0:
        return log.origin.genesis.state_digest
    if round_ == log.head.round:
        return head_digest
    return log.entries[round_ + 1].record.base_digest
