"""Checkpoints as they lie in the run's folder, for others to download."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from coordinator.archive import Archive
from peer.checkpoints.manifest import MANIFEST_FILE, Checkpoint
from peer.errors import Refused, UsageError

CHUNK_BYTES = 1 << 20


class NotFound(Refused):
    """There is no such thing here."""


@dataclass(frozen=True)
class CheckpointFolder:
    path: Path
    checkpoint: Checkpoint

    @property
    def round(self) -> int:
        return self.checkpoint.round

    @property
    def files(self) -> dict[str, int]:
        """Sizes in bytes by name relative to the folder; the manifest, which vouches for the others, is the last."""
        sizes = {file.name: file.bytes for file in self.checkpoint.manifest.files}
        return {**sizes, MANIFEST_FILE: len(self.checkpoint.content)}

    @property
    def time_seconds(self) -> float:
        """Unix time at which it was complete."""
        return self.checkpoint.manifest.time_seconds


def newest_first(archive: Archive) -> list[CheckpointFolder]:
    """The checkpoints that count."""
    return [CheckpointFolder(archive.folder_of(it.round), it) for it in reversed(archive.checkpoints)]


def checkpoint_in(archive: Archive, round_: int) -> CheckpointFolder:
    """Of that round, or the newest for 0. Raises NotFound."""
    for item in newest_first(archive):
        if round_ in (0, item.round):
            return item
    raise NotFound(f"there is no checkpoint of round {round_} here" if round_ else "there is no checkpoint yet")


def chunks(checkpoint: CheckpointFolder, name: str, offset: int) -> Iterator[bytes]:
    """The file from `offset` on. The file stays readable when the checkpoint is dropped meanwhile.

    Raises:
        NotFound: the checkpoint has no such file (only names from `files` are ever opened).
        UsageError: the offset lies beyond its end.
    """
    size = checkpoint.files.get(name)
    if size is None:
        raise NotFound(f"the checkpoint has no file {name[:100]!r}")
    if offset > size:
        raise UsageError(f"offset: the file has {size} bytes")
    try:
        opened = (checkpoint.path / name).open("rb")
    except FileNotFoundError:
        raise NotFound("this checkpoint has just been dropped; ask for a newer one") from None
    with opened as file:
        file.seek(offset)
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
