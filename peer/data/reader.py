"""Training data as a peer sees it: rows at positions of the run's order, from shards that are fetched when needed.

Shards are fetched whole, checked against the manifest before a single token of them is used, kept in a cache folder of
limited size (the least recently used goes first) and read through memory maps. A lease touches few shards: see
peer.data.order.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from peer.data.manifest import FileEntry, Manifest, Shard, digest_file
from peer.data.order import Indices, positions_to_rows
from peer.data.sources import Source
from peer.data.tokenizer import FOLDER as TOKENIZER_FOLDER
from peer.errors import CommonweightsError, DataError

Rows = npt.NDArray[np.unsignedinteger[Any]]
_HELD_OUT_KEY = bytes(32)


class ShardReader:
    """Reads rows of a data set.

    Args:
        manifest: what there is.
        cache: folder for the shards. Give the prepared folder itself to read it in place.
        sources: asked in this order for a file that the cache lacks.
        key: of the order, see `peer.data.order.order_key`.
        cache_bytes: how much the cache may hold; None: everything. What one call needs at once is kept even above it.
        taken_bytes: how much of `cache_bytes` is taken, when it is for other things too. They go before the shards, up
            to three quarters of it.
        keep, forget: told of every file that is sound and in the cache, and of those that leave it, so that others can
            be given them.
    """

    def __init__(
        self,
        manifest: Manifest,
        cache: Path,
        sources: Sequence[Source] = (),
        *,
        key: bytes,
        cache_bytes: int | None = None,
        taken_bytes: Callable[[], int] = lambda: 0,
        keep: Callable[[FileEntry, Path], None] = lambda entry, path: None,
        forget: Callable[[FileEntry], None] = lambda entry: None,
    ) -> None:
        self.manifest = manifest
        self.cache = cache
        self.cache_bytes = cache_bytes
        self._taken_bytes = taken_bytes
        self._sources = list(sources)
        self._key = key
        self._keep, self._forget = keep, forget
        self._open: OrderedDict[str, Rows] = OrderedDict()  # least recently used first
        self._fetching: dict[str, asyncio.Task[None]] = {}
        self._pinned: Counter[str] = Counter()  # shards that calls under way need
        self._starts = _starts(manifest.shards)
        self._held_out_starts = _starts(manifest.held_out)
        self.bytes_fetched = 0
        _sweep(cache)

    async def rows(self, positions: Sequence[int] | Indices) -> Rows:
        """Token ids at these positions of the endless order, [len(positions), sequence_length], uint16 or uint32.

        Raises:
            DataError: no source gave a shard with the right hash.
        """
        chosen = positions_to_rows(self._key, positions, self.manifest.rows, self.manifest.window)
        return await self._gather(chosen, self.manifest.shards, self._starts)

    async def held_out(self, count: int) -> Rows:
        """The first `count` held-out rows (all, if there are fewer) of a fixed order, the same for everybody."""
        total = self.manifest.held_out_rows
        chosen = positions_to_rows(_HELD_OUT_KEY, range(min(count, total)), total)
        return await self._gather(chosen, self.manifest.held_out, self._held_out_starts)

    async def prefetch(self, positions: Sequence[int] | Indices) -> None:
        """Fetch the shards for these positions, a new lease for instance, while something else is going on."""
        chosen = positions_to_rows(self._key, positions, self.manifest.rows, self.manifest.window)
        touched = np.unique(np.searchsorted(self._starts, chosen, side="right") - 1)
        await self._ensure([self.manifest.shards[index] for index in touched])

    async def tokenizer_folder(self) -> Path:
        """The folder of the run's tokenizer, fetched and checked."""
        for entry in self.manifest.tokenizer.files:
            await self._fetch_once(entry)
        return self.cache / TOKENIZER_FOLDER

    def close(self) -> None:
        """Let go of the files; downloads are cancelled, what is complete stays in the cache."""
        for task in self._fetching.values():
            task.cancel()
        self._open.clear()

    async def __aenter__(self) -> ShardReader:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def _gather(self, rows: Indices, shards: Sequence[Shard], starts: Indices) -> Rows:
        result: Rows = np.empty((len(rows), self.manifest.sequence_length), dtype=self.manifest.numpy_dtype)
        shard_of = np.searchsorted(starts, rows, side="right") - 1
        needed = [int(index) for index in np.unique(shard_of)]
        maps = await self._ensure([shards[index] for index in needed])
        for index, tokens in zip(needed, maps, strict=True):
            mine = shard_of == index
            result[mine] = tokens[rows[mine] - starts[index]]
        return result

    async def _ensure(self, shards: Sequence[Shard]) -> list[Rows]:
        """Memory maps of the shards, each [rows, sequence_length]. Missing ones are fetched at the same time."""
        names = [shard.name for shard in shards]
        self._pinned.update(names)
        try:
            missing = [shard for shard in shards if shard.name not in self._open]
            await asyncio.gather(*(self._fetch_once(shard) for shard in missing))
            for shard in shards:
                if shard.name not in self._open:
                    self._open[shard.name] = self._map(shard)
                self._open.move_to_end(shard.name)
            if missing:
                self._evict()
            return [self._open[name] for name in names]
        finally:
            self._pinned.subtract(names)

    async def _fetch_once(self, entry: FileEntry) -> None:
        """Bring a file into the cache, checked. Callers at the same time share one download."""
        task = self._fetching.get(entry.name)
        if task is None:
            task = self._fetching[entry.name] = asyncio.create_task(self._fetch(entry))
            task.add_done_callback(lambda done: self._fetched(entry.name, done))
        await asyncio.shield(task)

    def _fetched(self, name: str, task: asyncio.Task[None]) -> None:
        self._fetching.pop(name, None)
        if not task.cancelled():
            task.exception()  # looked at: when every caller has gone, nobody else will, and asyncio would complain

    async def _fetch(self, entry: FileEntry) -> None:
        path = self.cache / entry.name
        tried: list[str] = []
        if path.exists():
            problem = await asyncio.to_thread(self._problem, entry, path)
            if problem is None:
                await asyncio.to_thread(self._keep, entry, path)
                return
            path.unlink(missing_ok=True)
            tried.append(f"cache: {problem}")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.part")
        for source in self._sources:
            partial.unlink(missing_ok=True)
            try:
                await source(entry, partial)
                problem = await asyncio.to_thread(self._problem, entry, partial)
                if problem is None:
                    partial.replace(path)
                    self.bytes_fetched += entry.bytes
                    await asyncio.to_thread(self._keep, entry, path)
                    return
                tried.append(f"{source}: {problem}")
            except CommonweightsError as error:
                tried.append(str(error))
            except OSError as error:
                raise DataError(
                    f"{partial}: cannot be written: {error.strerror or error}; free some space or use another folder"
                ) from None
            finally:
                partial.unlink(missing_ok=True)
        raise DataError(f"no source has a sound copy of {entry.name}: {'; '.join(tried) or 'there are no sources'}")

    def _problem(self, entry: FileEntry, path: Path) -> str | None:
        """Why a file is not what the manifest says, or None."""
        try:
            size = path.stat().st_size
            if size != entry.bytes:
                return (
                    f"has {size} bytes instead of {entry.bytes}"
                    if size < entry.bytes
                    else f"is longer than {entry.bytes} bytes"
                )
            if digest_file(path) != (entry.sha256, entry.blake3):
                return "its hash is not the manifest's"
        except FileNotFoundError:
            return "wrote nothing"
        if isinstance(entry, Shard) and int(self._map_file(path, entry).max()) >= self.manifest.vocab_size:
            return "holds tokens outside the vocabulary"  # the manifest itself is wrong: an embedding would crash later
        return None

    def _map(self, shard: Shard) -> Rows:
        path = self.cache / shard.name
        os.utime(path)  # the next process evicts by this time
        return self._map_file(path, shard)

    def _map_file(self, path: Path, shard: Shard) -> Rows:
        return np.memmap(
            path, dtype=self.manifest.numpy_dtype, mode="r", shape=(shard.rows, self.manifest.sequence_length)
        )

    def _evict(self) -> None:
        """Delete the least recently used shards until the cache fits, those of earlier processes included."""
        if self.cache_bytes is None:
            return
        held = [(shard, self.cache / shard.name) for shard in [*self.manifest.shards, *self.manifest.held_out]]
        ranks = {name: rank for rank, name in enumerate(self._open)}
        stats = [(ranks.get(shard.name, -1), path.stat(), shard, path) for shard, path in held if path.exists()]
        total = sum(stat.st_size for _, stat, _, _ in stats)
        room = max(self.cache_bytes - max(0, self._taken_bytes() - total), self.cache_bytes // 4)
        for _, stat, shard, path in sorted(stats, key=lambda item: (item[0], item[1].st_mtime_ns, item[2].name)):
            if total <= room:
                return
            if self._pinned[shard.name] > 0 or shard.name in self._fetching:
                continue
            self._open.pop(shard.name, None)
            path.unlink(missing_ok=True)
            self._forget(shard)
            total -= stat.st_size


def _starts(shards: Sequence[Shard]) -> Indices:
    """Index of the first row of each shard."""
    return np.cumsum([0, *(shard.rows for shard in shards)], dtype=np.int64)[:-1]


def _sweep(cache: Path) -> None:
    """Delete half-written files of processes that are long gone."""
    for path in cache.glob("*/*.part"):
        if time.time() - path.stat().st_mtime > 3600:
            path.unlink(missing_ok=True)
