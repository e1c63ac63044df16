"""Checkpoints as they lie in the run's folder, for others to download."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from peer.errors import Refused, UsageError

CHUNK_BYTES = 1 << 20
_FOLDER = re.compile(r"round-(\d{6,})")


class NotFound(Refused):
    """There is no such thing here."""


@dataclass(frozen=True)
class CheckpointFolder:
    round: int
    path: Path

    @property
    def files(self) -> dict[str, int]:
        """Sizes in bytes by name relative to the folder."""
        found = (path for path in sorted(self.path.rglob("*")) if path.is_file() and not path.is_symlink())
        return {path.relative_to(self.path).as_posix(): path.stat().st_size for path in found}

    @property
    def time_seconds(self) -> float:
        """Unix time at which it was complete."""
        return self.path.stat().st_mtime


def checkpoints_in(folder: Path) -> list[CheckpointFolder]:
    """Of the run in `folder`, newest first."""
    matches = ((_FOLDER.fullmatch(path.name), path) for path in (folder / "checkpoints").glob("round-*"))
    found = [CheckpointFolder(int(match[1]), path) for match, path in matches if match]
    return sorted(found, key=lambda item: -item.round)


def checkpoint_in(folder: Path, round_: int) -> CheckpointFolder:
    """Of that round, or the newest for 0. Raises NotFound."""
    for item in checkpoints_in(folder):
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
    with (checkpoint.path / name).open("rb") as file:
        file.seek(offset)
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
