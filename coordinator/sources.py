"""Where `prepare` reads documents from: local files, or a Hugging Face data set (Hub or local, streamed or not)."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from configs.schema import DatasetSource, TextSource
from coordinator.hub import explained
from peer.data.documents import find_files, missing_column, text_of
from peer.errors import DataError


class Documents(Protocol):
    """A source of documents that always come in the same order."""

    @property
    def total(self) -> int | None:
        """How much there is in `unit`, if that is known: the length of a progress bar."""

    @property
    def unit(self) -> str:
        """'bytes' or 'documents'."""

    def fingerprint(self) -> list[Any]:
        """JSON that changes when the source does."""

    def skipping(self, count: int) -> Iterator[str]:
        """The documents after the first `count`."""


def open_source(spec: TextSource | DatasetSource) -> Documents:
    """Find the source.

    Raises:
        DataError: it is not there, or lacks the column.
        UnreachableError: it is on the Hub, and the Hub does not answer.
    """
    if isinstance(spec, TextSource):
        return _TextFiles(spec)
    return _Dataset(spec)


class _TextFiles:
    unit = "bytes"

    def __init__(self, spec: TextSource) -> None:
        self._files = find_files(spec.path, spec.suffixes, spec.field, spec.max_bytes)
        self.total: int | None = self._files.total_bytes

    def fingerprint(self) -> list[Any]:
        return self._files.fingerprint()

    def skipping(self, count: int) -> Iterator[str]:
        return self._files.skipping(count)


class _Dataset:
    """Opened when it is first read: a finished preparation is reused without asking the Hub."""

    unit = "documents"

    def __init__(self, spec: DatasetSource) -> None:
        self._spec = spec
        self._folder = Path(spec.path).expanduser()
        looks_local = spec.path.startswith(("/", ".", "~"))
        if looks_local and not self._folder.exists():
            raise DataError(f"data.source.path: {self._folder.absolute()} does not exist")
        self._loaded: Any = None
        self.total: int | None = spec.max_rows or None

    def fingerprint(self) -> list[Any]:
        if not self._folder.is_dir():
            return []  # what a run was prepared from stays, even if the Hub has a newer revision
        files = sorted(
            path for path in self._folder.rglob("*") if path.is_file() and not path.name.startswith("cache-")
        )
        return [
            [path.relative_to(self._folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns] for path in files
        ]

    def skipping(self, count: int) -> Iterator[str]:
        data = self._dataset()
        limit = self._spec.max_rows
        if count:
            data = data.skip(count)
        rows = iter(data)
        if limit:
            rows = itertools.islice(rows, max(0, limit - count))
        while True:
            with explained("data.source.path", self._spec.path, "a local data set folder"):
                row = next(rows, None)
            if row is None:
                return
            # A blank stands for null, so that every row counts as a document and `count` can skip it.
            yield next(text_of(row[self._spec.field], "data.source", self._spec.field), "")

    def _dataset(self) -> Any:
        if self._loaded is None:
            with explained("data.source.path", self._spec.path, "a local data set folder"):
                self._loaded = self._load()
        return self._loaded

    def _load(self) -> Any:
        import datasets

        if not sys.stderr.isatty():
            datasets.disable_progress_bars()
        spec = self._spec
        if (self._folder / "state.json").exists() or (self._folder / "dataset_dict.json").exists():
            data: Any = datasets.load_from_disk(str(self._folder))
            if isinstance(data, datasets.DatasetDict):
                if spec.split not in data:
                    raise DataError(
                        f"data.source.split: {spec.path} has no split {spec.split!r}; there are: {', '.join(data)}"
                    )
                data = data[spec.split]
        else:
            data = datasets.load_dataset(
                str(self._folder) if self._folder.is_dir() else spec.path,
                spec.name,
                split=spec.split,
                revision=spec.revision,
                streaming=spec.streaming,
            )
        names = data.column_names
        if names is None:  # a stream that does not declare its columns: the first row shows them
            names = list(next(iter(data), {}))
        if spec.field not in names:
            raise missing_column("data.source", spec.field, names)
        if self.total is None:
            self.total = _rows(data, spec.split)
        return data.select_columns([spec.field])


def _rows(data: Any, split: str) -> int | None:
    try:
        return len(data)
    except TypeError:
        known = (data.info.splits or {}).get(split)
        return known.num_examples if known and known.num_examples else None
