"""Where a peer gets the files of the data set from: a folder, any URL that fsspec opens, or other peers.

A source writes one file to a place it is given. It is never trusted: whoever asked checks size and hash afterwards.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

from blake3 import blake3

from peer.data.manifest import FILE_NAME, MAX_MANIFEST_BYTES, FileEntry, Manifest
from peer.errors import CommonweightsError, DataError

_TIMEOUT_SECONDS = 60.0  # without a byte from a web server


class Source(Protocol):
    """Writes the file of `entry` to `target`, which does not exist yet.

    Raises:
        CommonweightsError: it could not; the caller asks the next source.
    """

    async def __call__(self, entry: FileEntry, target: Path) -> None: ...


class LocationSource:
    """A prepared folder, by path or URL (http(s)://, hf://, s3://, file:// ...), read in a thread."""

    def __init__(self, location: str) -> None:
        self.location = location.rstrip("/")

    def __str__(self) -> str:
        return self.location

    async def __call__(self, entry: FileEntry, target: Path) -> None:
        await asyncio.to_thread(self._download, entry.name, target, entry.bytes)

    async def manifest(self) -> Manifest:
        """The manifest at this location. It is not authenticated: compare its hash with the genesis record's.

        Raises:
            DataError: unreachable, or not a manifest.
        """
        text = await asyncio.to_thread(self._read, FILE_NAME, MAX_MANIFEST_BYTES + 1)
        return Manifest.from_json(text, source=f"{self.location}/{FILE_NAME}")

    def _read(self, name: str, limit: int) -> bytes:
        with _explained(f"{self.location}/{name}"), open_below(self.location, name) as stream:
            return stream.read(limit)

    def _download(self, name: str, target: Path, size: int) -> None:
        place = f"{self.location}/{name}"
        with _explained(place), open_below(self.location, name) as stream, target.open("wb") as out:
            left = size + 1  # one byte more than there should be: a longer file shows, and cannot fill the disk
            while left and (piece := stream.read(min(1 << 20, left))):
                out.write(piece)
                left -= len(piece)


def open_below(location: str, name: str) -> IO[bytes]:
    """Open a file below a path or URL for reading. Raises whatever what lies behind it raises."""
    if "://" not in location:
        return Path(location, name).expanduser().open("rb")
    if location.startswith(("http://", "https://")):  # fsspec would need two more packages for these
        answer: IO[bytes] = urllib.request.urlopen(f"{location}/{name}", timeout=_TIMEOUT_SECONDS)
        return answer
    import fsspec

    opened: IO[bytes] = fsspec.open(f"{location}/{name}", "rb").open()
    return opened


@contextmanager
def _explained(place: str) -> Iterator[None]:
    """Turns whatever a file system raises (each of fsspec's has exceptions of its own) into one line."""
    try:
        yield
    except CommonweightsError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # our disk, not the source
        if isinstance(error, FileNotFoundError) or (isinstance(error, urllib.error.HTTPError) and error.code == 404):
            raise DataError(f"{place}: not there") from None
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{place}: cannot be read: {reason}") from None


class BlobSource:
    """Other peers: `fetch(hash, size)` brings a blob into the local store and returns its file, which is linked.

    With `discard(hash)`, which deletes a blob from the store, one that rotted there is fetched again.
    """

    def __init__(
        self, fetch: Callable[[bytes, int], Awaitable[Path]], discard: Callable[[bytes], None] | None = None
    ) -> None:
        self._fetch = fetch
        self._discard = discard

    def __str__(self) -> str:
        return "the swarm"

    async def __call__(self, entry: FileEntry, target: Path) -> None:
        await self._link(entry, target)
        if self._discard is None or await asyncio.to_thread(_blake3, target) == entry.blake3:
            return
        target.unlink()
        self._discard(bytes.fromhex(entry.blake3))
        await self._link(entry, target)

    async def _link(self, entry: FileEntry, target: Path) -> None:
        path = await self._fetch(bytes.fromhex(entry.blake3), entry.bytes)
        try:
            await asyncio.to_thread(link_or_copy, path, target)
        except FileNotFoundError:
            raise DataError(f"the swarm: {entry.name} was gone from the store before it was read") from None


def _blake3(path: Path) -> str:
    return blake3().update_mmap(path).hexdigest()


def link_or_copy(path: Path, target: Path) -> None:
    """A second name for a file where the file system allows it, else a copy."""
    try:
        os.link(path, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(path, target)
