"""The manifest of a checkpoint: which files it has, and which record of which run its weights belong to.

It is signed by the run's coordinator and written last, so where it is, the whole checkpoint is. It carries the genesis
record, whose hash is the run's id: whoever knows the run id needs nothing else to know whose signature to ask for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from peer.data.manifest import SAFE_NAME, digest_file
from peer.durable import write_durably
from peer.errors import VerificationError
from peer.identity import Identity, PeerId
from peer.log.chain import Log, Origin
from peer.log.state import manifest_digest
from protos import log_pb2
from protos.signing import HASH_BYTES, SignatureError, open_signed, sign, strict_parse

MANIFEST_FILE = "commonweights.manifest"
RESUMING = "resuming/"  # folder of the files that only a coordinator needs
MAX_MANIFEST_BYTES = 64 << 20  # the chunk hashes of 8 TB


@dataclass(frozen=True)
class Checkpoint:
    """A manifest that was checked by itself: signed by the coordinator of the run that it names, and well formed."""

    content: bytes  # of the manifest's file
    manifest: log_pb2.CheckpointManifest
    origin: Origin

    @property
    def round(self) -> int:
        return self.manifest.round

    @property
    def state_digest(self) -> bytes:
        return manifest_digest(self.manifest.state)

    @property
    def size_bytes(self) -> int:
        return len(self.content) + sum(file.bytes for file in self.manifest.files)

    @classmethod
    def parse(cls, content: bytes) -> Checkpoint:
        """Open the bytes of a manifest.

        Raises:
            VerificationError: not a manifest, not signed by the run's coordinator, or nonsense.
        """
        try:
            signed = strict_parse(content, log_pb2.Signed)
            manifest = open_signed(signed, log_pb2.CheckpointManifest)
        except SignatureError as error:
            raise VerificationError(f"{MANIFEST_FILE}: {error}") from None
        origin = Log.start(manifest.genesis, run_id=manifest.run_id).origin
        if signed.signer != origin.coordinator.public_key:
            who = PeerId(signed.signer).short
            raise VerificationError(f"{MANIFEST_FILE}: signed by {who}, who is not the coordinator of this run")
        if reason := _fault(manifest):
            raise VerificationError(f"{MANIFEST_FILE}: {reason}")
        return cls(content, manifest, origin)

    @classmethod
    def load(cls, folder: Path) -> Checkpoint:
        """The manifest of a checkpoint's folder.

        Raises:
            VerificationError: there is none, or as `parse`.
        """
        path = folder / MANIFEST_FILE
        try:
            if path.stat().st_size > MAX_MANIFEST_BYTES:
                raise VerificationError(f"{path}: too large for a manifest")
            return cls.parse(path.read_bytes())
        except OSError as error:
            raise VerificationError(f"{path}: cannot be read: {error.strerror}") from None

    def counts_in(self, log: Log) -> bool:
        """Whether `log` holds the record that gave these weights; not after it was rolled back behind it."""
        return names_record(log, self.round, self.manifest.record_hash)


def folder_name(round_: int) -> str:
    """Of the checkpoint of a round, wherever it lies."""
    return f"round-{round_:06d}"


def names_record(log: Log, round_: int, record_hash: bytes) -> bool:
    entries = log.entries
    return round_ < len(entries) and entries[round_].hash == record_hash


def seal(folder: Path, manifest: log_pb2.CheckpointManifest, identity: Identity) -> None:
    """List the files of a finished folder in `manifest`, sign it and write it durably."""
    for path in sorted(_files(folder), key=lambda path: path.relative_to(folder).as_posix()):
        sha256, blake3 = map(bytes.fromhex, digest_file(path))
        name = path.relative_to(folder).as_posix()
        manifest.files.add(
            name=name, bytes=path.stat().st_size, sha256=sha256, blake3=blake3, resuming=name.startswith(RESUMING)
        )
    signed = sign(manifest, identity.private_key)
    write_durably(folder / MANIFEST_FILE, signed.SerializeToString(deterministic=True))


def file_faults(folder: Path, manifest: log_pb2.CheckpointManifest) -> Iterator[str]:
    """What is not as the manifest says: changed, missing and added files. Hidden files are nobody's business."""
    for file in manifest.files:
        path = folder / file.name
        if not path.is_file():
            if not file.resuming:
                yield f"{file.name}: missing"
        elif path.stat().st_size != file.bytes:
            yield f"{file.name}: {path.stat().st_size:,} bytes instead of {file.bytes:,}"
        elif tuple(map(bytes.fromhex, digest_file(path))) != (file.sha256, file.blake3):
            yield f"{file.name}: changed"
    known = {MANIFEST_FILE, *(file.name for file in manifest.files)}
    for path in _files(folder):
        if (name := path.relative_to(folder).as_posix()) not in known:
            yield f"{name}: not part of the checkpoint"


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not path.is_dir() and not hidden:
            yield path


def _fault(manifest: log_pb2.CheckpointManifest) -> str:
    names = [file.name for file in manifest.files]
    if names != sorted(set(names)) or not all(SAFE_NAME.fullmatch(name) for name in names):
        return "its file names are unsafe, unsorted or not unique"
    hashes = [manifest.record_hash, *manifest.state.chunk_hashes]
    hashes += [value for file in manifest.files for value in (file.sha256, file.blake3)]
    if any(len(value) != HASH_BYTES for value in hashes):
        return f"a hash is not {HASH_BYTES} bytes long"
    if manifest.state.run_id != manifest.run_id or manifest.state.round != manifest.round:
        return "its state is of another run or round"
    return ""
