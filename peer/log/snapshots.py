"""Whole states kept as content-addressed chunks: where late joiners and restarts begin.

A snapshot is a `StateManifest` file plus its chunks in the blob store. Chunks come first and the manifest is renamed
into place last, so what is listed is complete. A manifest needs no signature: its digest is in the chain.
"""

from __future__ import annotations

import os
from pathlib import Path

from google.protobuf.message import DecodeError

from peer.errors import VerificationError
from peer.exchange.blobs import BlobStore
from peer.log.chain import Log
from peer.log.state import CHUNK_BYTES, State, manifest_digest
from protos import log_pb2


class Snapshots:
    def __init__(self, folder: Path, blobs: BlobStore) -> None:
        self.folder = folder
        self.blobs = blobs
        folder.mkdir(parents=True, exist_ok=True)

    def save(self, state: State, run_id: bytes) -> log_pb2.StateManifest:
        """Keep `state`; an earlier snapshot of the same round is replaced."""
        manifest = log_pb2.StateManifest(run_id=run_id, round=state.round, state_bytes=state.state_bytes)
        manifest.chunk_hashes.extend(self.blobs.put(bytes(chunk)) for chunk in state.chunks())
        path = self._path(state.round)
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(manifest.SerializeToString(deterministic=True))
        os.replace(temporary, path)
        return manifest

    def rounds(self) -> list[int]:
        """Rounds that there is a snapshot of, oldest first."""
        return sorted(int(path.stem) for path in self.folder.glob("*.manifest"))

    def manifest(self, round_: int) -> log_pb2.StateManifest:
        """Raises VerificationError when the file is damaged."""
        try:
            return log_pb2.StateManifest.FromString(self._path(round_).read_bytes())
        except (OSError, DecodeError) as error:
            raise VerificationError(f"round {round_}: the snapshot's manifest cannot be read: {error}") from None

    def load(self, manifest: log_pb2.StateManifest, state: State) -> None:
        """Fill `state` from chunks that are all in the store.

        Raises:
            VerificationError: a chunk is missing or damaged.
        """

        def chunks() -> object:
            for hash_ in manifest.chunk_hashes:
                if not self.blobs.check(hash_):
                    raise VerificationError(
                        f"round {manifest.round}: state chunk {hash_.hex()[:16]} is missing or damaged"
                    )
                yield self.blobs.read(hash_)

        state.load_chunks(chunks())  # type: ignore[arg-type]
        state.round = manifest.round

    def prune(self, keep: int, always: frozenset[int] = frozenset()) -> None:
        """Drop all but the newest `keep` snapshots and those of rounds `always`, with chunks that no other one
        shares."""
        rounds = self.rounds()
        gone = [round_ for round_ in rounds[:-keep] if round_ not in always]
        needed = {hash_ for round_ in rounds if round_ not in gone for hash_ in self.manifest(round_).chunk_hashes}
        for round_ in gone:
            chunks = set(self.manifest(round_).chunk_hashes)
            self._path(round_).unlink()
            for hash_ in chunks - needed:
                self.blobs.delete(hash_)

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
