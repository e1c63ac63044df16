"""Files named by the blake3 hash of their content: payloads, state chunks, shards, checkpoints.

A name promises its content because nothing is visible before it was hashed, written and synced. What the disk does to
it afterwards is not looked at on every read; `check` does when somebody asks. The newest small ones are in memory too
(recent.py). Blobs that are on their way lie apart (`Partial`), survive a restart and can be filled from several places
at once.
"""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from blake3 import blake3

from peer.durable import sync
from peer.errors import CommonweightsError, DataError
from peer.exchange.recent import SMALL_BYTES, Recent

HASH_BYTES = 32
SEGMENT_BYTES = 4 * 1024 * 1024  # of a partial blob: what is asked of one source at a time
PARTIAL_SECONDS = 24 * 3600.0  # after which, at a start, an abandoned download is thrown away
UNUSED_SECONDS = 3600.0  # the same while the process runs
MAX_PARTIAL_BYTES = 1 << 30  # of downloads that nobody is at; the oldest goes first

_COPY_BYTES = 1024 * 1024


class BlobStore:
    """A folder of blobs. One process writes to it; its threads may use it at the same time."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._prefix = f"{self.folder}{os.sep}"
        self._partial = self.folder / "partial"
        with writing(self.folder):
            self._partial.mkdir(parents=True, exist_ok=True)
        for path in self._partial.iterdir():
            with contextlib.suppress(OSError):
                if path.suffix == ".new" or time.time() - path.stat().st_mtime > PARTIAL_SECONDS:
                    path.unlink()
        self._started = time.time()
        self._open: Counter[Path] = Counter()  # partial blobs that somebody is at
        self._recent = Recent()
        self._total_bytes = sum(self.size(blob) for blob in self.hashes())

    @property
    def total_bytes(self) -> int:
        """Of all complete blobs."""
        return self._total_bytes

    def path(self, blob: bytes) -> Path:
        """Where the blob with this 32-byte hash is, or would be."""
        return Path(self._name(blob))

    def _name(self, blob: bytes) -> str:
        assert len(blob) == HASH_BYTES, f"{len(blob)} bytes are no blob hash"
        name = blob.hex()
        return f"{self._prefix}{name[:2]}/{name[2:4]}/{name}"

    def has(self, blob: bytes) -> bool:
        return blob in self._recent or self._is_stored(blob)

    def has_in_memory(self, blobs: Iterable[bytes]) -> bool:
        """Whether all of these are as their names say, and need no look at the disk."""
        return all(blob in self._recent for blob in blobs)

    def _is_stored(self, blob: bytes) -> bool:
        return os.path.isfile(self._name(blob))  # asked very often, and a Path costs ten times as much

    def size(self, blob: bytes) -> int:
        """In bytes. Raises DataError if the blob is not here."""
        try:
            return os.stat(self._name(blob)).st_size
        except OSError:
            raise _missing(blob) from None

    def hashes(self) -> Iterator[bytes]:
        """All complete blobs, in no order."""
        for path in self.folder.glob("[0-9a-f][0-9a-f]/[0-9a-f][0-9a-f]/*"):
            with contextlib.suppress(ValueError):
                blob = bytes.fromhex(path.name)
                if len(blob) == HASH_BYTES:
                    yield blob

    def put(self, content: bytes | bytearray | memoryview) -> bytes:
        """Stores `content`; returns its hash."""
        blob = blake3(content).digest()
        self.put_hashed({blob: content})
        return blob

    def put_hashed(self, contents: Mapping[bytes, bytes | bytearray | memoryview]) -> None:
        """Stores contents by their hashes, which were just checked."""
        for blob, content in contents.items():
            if not self._is_stored(blob):
                with writing(self.folder), self._new_file() as file:
                    file.write(content)
                    self._publish(file, blob, is_new=True)
            if len(content) <= SMALL_BYTES:
                self._recent.add(blob, bytes(content))

    def put_file(self, path: str | Path) -> bytes:
        """Stores a copy of the file; returns its hash."""
        hasher = blake3()
        with _reading(Path(path)) as source, writing(self.folder), self._new_file() as file:
            while piece := source.read(_COPY_BYTES):
                hasher.update(piece)
                file.write(piece)
            blob = hasher.digest()
            if self._is_stored(blob):
                os.unlink(file.name)
            else:
                self._publish(file, blob, is_new=True)
        return blob

    def open(self, blob: bytes) -> BinaryIO:
        """For reading; goes on working if the blob is deleted meanwhile. Raises DataError if it is not here."""
        try:
            return open(self._name(blob), "rb")
        except FileNotFoundError:
            raise _missing(blob) from None
        except OSError as error:
            raise CommonweightsError(f"cannot read blob {blob.hex()}: {error.strerror}") from None

    def read(self, blob: bytes, offset: int = 0, length: int | None = None) -> bytes:
        """`length` bytes from `offset`, less at the end of the blob, all by default. Raises DataError if not here."""
        with self.open(blob) as file:
            file.seek(offset)
            return file.read(-1 if length is None else length)

    def view(self, blob: bytes) -> memoryview:
        """The blob's bytes; of a large one mapped instead of read: they take no memory that the system could not have
        back. The view outlives a deletion. Raises DataError if the blob is not here."""
        content = self._recent.get(blob)
        if content is None:
            with self.open(blob) as file:
                size = os.fstat(file.fileno()).st_size
                if size > SMALL_BYTES:
                    return memoryview(mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ))
                content = file.read()
            if blake3(content).digest() == blob:
                self._recent.add(blob, content)
        return memoryview(content)

    def check(self, blob: bytes) -> bool:
        """Whether the blob is here and still is what its name says. Reads all of it."""
        try:
            return hash_file(self.path(blob)) == blob
        except OSError:
            return False

    def delete(self, blob: bytes) -> None:
        """Nothing happens if it is not here."""
        self._recent.drop(blob)
        with contextlib.suppress(FileNotFoundError):
            size = self.path(blob).stat().st_size
            self.path(blob).unlink()
            self._total_bytes -= size

    def partial(self, blob: bytes, size: int) -> Partial:
        """The beginnings of a blob of `size` bytes that is fetched from elsewhere, as far as it came last time."""
        self._sweep_partial()
        return Partial(self, self._partial / f"{blob.hex()}-{size}", blob, size)

    def _sweep_partial(self) -> None:
        """Drops beginnings that nobody goes on with: they take as much disk as the whole."""
        unused = []
        for path in self._partial.iterdir():
            with contextlib.suppress(OSError):
                if not path.suffix and not self._open[path]:
                    stat = path.stat()
                    unused.append((max(stat.st_mtime, self._started), stat.st_blocks * 512, path))
        total = sum(size for _, size, _ in unused)
        for used_at, size, path in sorted(unused):
            if time.time() - used_at <= UNUSED_SECONDS and total <= MAX_PARTIAL_BYTES:
                break
            path.unlink(missing_ok=True)
            path.with_suffix(".json").unlink(missing_ok=True)
            total -= size

    def adopt(self, path: Path, blob: bytes) -> None:
        """Makes a file whose hash was just checked a blob, by a second name for it where the file system has them. What
        lay there under that hash, and may have rotted, is replaced."""
        target, is_new = self.path(blob), not self._is_stored(blob)
        if not is_new and target.samefile(path):
            return
        link = self._partial / f"{secrets.token_hex(8)}.new"
        with writing(self.folder):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, link)
            except OSError:  # another disk, or a file system without links
                shutil.copyfile(path, link)
            os.replace(link, target)
        if is_new:
            self._total_bytes += target.stat().st_size

    @contextlib.contextmanager
    def _new_file(self) -> Iterator[BinaryIO]:
        path = f"{self._partial}{os.sep}{secrets.token_hex(8)}.new"
        try:
            with open(path, "xb") as file:
                yield file
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(path)
            raise

    def _publish(self, file: BinaryIO, blob: bytes, is_new: bool) -> None:
        file.flush()
        size = os.fstat(file.fileno()).st_size
        os.fsync(file.fileno())
        path = self._name(blob)
        folder = os.path.dirname(path)
        try:
            os.mkdir(folder)  # nearly every blob is the first in its folder
        except FileExistsError:
            pass
        except FileNotFoundError:
            os.makedirs(folder, exist_ok=True)
        os.replace(file.name, path)
        sync(folder)
        if is_new:
            self._total_bytes += size


class Partial:
    """A blob on its way: a file of the final size, filled in segments, each from its start onwards.

    How far each segment is goes into a small file beside it after the data, so that a crash costs work, never truth:
    the whole is hashed before it becomes a blob.
    """

    def __init__(self, store: BlobStore, path: Path, blob: bytes, size: int) -> None:
        self.blob, self.size = blob, size
        store._open[path] += 1
        self._store, self._path, self._progress = store, path, path.with_suffix(".json")
        self.filled = [0] * -(-size // SEGMENT_BYTES)  # bytes of each segment that are here
        with writing(path):
            self._file: BinaryIO = path.open("r+b" if path.exists() else "w+b")
            try:
                if os.fstat(self._file.fileno()).st_size == size:
                    self._load_progress()
                else:
                    self._reserve()
            except BaseException:
                self._close_file()
                raise

    def segment_bytes(self, index: int) -> int:
        return min(SEGMENT_BYTES, self.size - index * SEGMENT_BYTES)

    @property
    def missing_bytes(self) -> int:
        return self.size - sum(self.filled)

    def write(self, index: int, offset: int, piece: bytes) -> int:
        """Writes `piece` at `offset` of segment `index`, where it goes beyond what is there; a gap before it, or bytes
        beyond the segment, are left out. Returns how many bytes were new."""
        have = self.filled[index]
        if offset > have:
            return 0
        fresh = piece[have - offset : self.segment_bytes(index) - offset]
        if fresh:
            with writing(self._path):
                self._file.seek(index * SEGMENT_BYTES + have)
                self._file.write(fresh)
            self.filled[index] += len(fresh)
        return len(fresh)

    def save(self) -> None:
        """Makes what came so far survive a crash."""
        with writing(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
            new = self._progress.with_suffix(".json.new")
            new.write_text(json.dumps({"filled": self.filled}))
            os.replace(new, self._progress)

    def empty(self) -> None:
        """Forgets what came so far."""
        self.filled = [0] * len(self.filled)
        self._progress.unlink(missing_ok=True)

    def finish(self) -> bool:
        """Makes it a blob if the hash is right; otherwise empties it and returns False."""
        with writing(self._path):
            self._file.flush()
            if hash_file(self._path) != self.blob:
                self.empty()
                return False
            self._store._publish(self._file, self.blob, is_new=not self._store._is_stored(self.blob))
            self._close_file()
            self._progress.unlink(missing_ok=True)
            return True

    def close(self) -> None:
        """Keeps what is there for the next time."""
        if not self._file.closed:
            with contextlib.suppress(CommonweightsError):
                self.save()
            self._close_file()

    def _close_file(self) -> None:
        self._file.close()
        self._store._open[self._path] -= 1

    def _load_progress(self) -> None:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            filled = [int(number) for number in json.loads(self._progress.read_text())["filled"]]
            if len(filled) == len(self.filled) and all(
                0 <= number <= self.segment_bytes(index) for index, number in enumerate(filled)
            ):
                self.filled = filled

    def _reserve(self) -> None:
        self._progress.unlink(missing_ok=True)
        self._file.truncate(0)
        if hasattr(os, "posix_fallocate") and self.size:
            os.posix_fallocate(self._file.fileno(), 0, self.size)  # a full disk is better known now
        else:
            self._file.truncate(self.size)


def hash_file(path: Path) -> bytes:
    """blake3 of a file's content. Raises OSError."""
    return blake3().update_mmap(path).digest()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the disk refuses into words that help."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(path if path.is_dir() else path.parent).free
            raise CommonweightsError(
                f"the disk is full ({free // 2**20} MiB free at {path}); make room, or choose another --dir"
            ) from None
        raise CommonweightsError(f"cannot write to {path}: {error.strerror}") from None


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[BinaryIO]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    with file:
        yield file


def _missing(blob: bytes) -> DataError:
    return DataError(f"blob {blob.hex()} is not here")
