"""Documents from local files: plain text, JSON lines and Parquet, streamed so that memory stays bounded.

The order is the sorted order of the paths, so the same files give the same documents. Long plain texts are cut at
paragraph ends and every piece counts as a document: a single 40 GB file then fits memory, and its held-out part can be
drawn.
"""

from __future__ import annotations

import codecs
import glob
import itertools
import json
import os
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peer.errors import DataError

# Never part of anybody's text; and within the standard library what is tests, tables or somebody else's code.
_SKIPPED = {"__pycache__", "site-packages", "dist-packages", "node_modules"}
_SKIPPED_IN_STDLIB = {
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "encodings",
    "pydoc_data",
    "turtledemo",
    "ensurepip",
    "lib-dynload",
}
PIECE_CHARACTERS = 16_384
WHOLE_CHARACTERS = 65_536  # a plain text up to this length stays one document
_STDLIB = "{stdlib}"


@dataclass(frozen=True)
class Files:
    """The files of a source, in the order in which they are read."""

    paths: tuple[Path, ...]
    root: Path
    column: str  # of JSON lines and Parquet files
    max_bytes: int  # of UTF-8 text; 0: everything

    @property
    def total_bytes(self) -> int:
        """Size on disk, or `max_bytes` if that is less: the length of a progress bar, not a promise."""
        size = sum(path.stat().st_size for path in self.paths)
        return min(size, self.max_bytes) if self.max_bytes else size

    def fingerprint(self) -> list[list[str | int]]:
        """Name, size and modification time of every file: changes when a file does, and costs no reading."""
        stats = [(path, path.stat()) for path in self.paths]
        return [[str(path.relative_to(self.root)), stat.st_size, stat.st_mtime_ns] for path, stat in stats]

    def skipping(self, count: int) -> Iterator[str]:
        """The documents after the first `count`."""
        return itertools.islice(self.documents(), count, None)

    def documents(self) -> Iterator[str]:
        """All documents, some of which may be blank.

        Raises:
            DataError: a file cannot be read or lacks the column.
        """
        left = self.max_bytes or None
        for text in self._all():
            if left is not None:
                data = text.encode("utf-8", errors="replace")
                if len(data) >= left:
                    yield data[:left].decode("utf-8", errors="ignore")
                    return
                left -= len(data)
            yield text

    def _all(self) -> Iterator[str]:
        alone = len(self.paths) == 1
        for path in self.paths:
            try:
                match path.suffix.lower():
                    case ".jsonl" | ".ndjson":
                        yield from _json_lines(path, self.column)
                    case ".parquet":
                        yield from _parquet(path, self.column)
                    case _:
                        yield from _plain_text(path, alone)
            except OSError as error:
                raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def find_files(
    path: str, suffixes: Sequence[str], column: str, max_bytes: int, *, key: str = "data.source.path"
) -> Files:
    """The files that a path means: itself, those below a folder that end in one of `suffixes`, or those a glob matches.

    Args:
        path: "~" is the home folder, "{stdlib}" the folder of this Python's standard library.
        key: what the user wrote the path in: it opens the error's line.

    Raises:
        DataError: nothing is there.
    """
    in_stdlib = path.startswith(_STDLIB)
    place = Path(path.replace(_STDLIB, sysconfig.get_paths()["stdlib"], 1)).expanduser()
    if place.is_file():
        return Files((place,), place.parent, column, max_bytes)
    if place.is_dir():
        wanted = tuple(suffix.lower() for suffix in suffixes)
        found = [
            file
            for file in _walk(place, _SKIPPED | _SKIPPED_IN_STDLIB if in_stdlib else _SKIPPED)
            if file.name.lower().endswith(wanted)
        ]
        if not found:
            raise DataError(
                f"{key}: no files ending in {', '.join(suffixes)} in {place};"
                " set data.source.suffixes to the endings of your files"
            )
        return Files(
            tuple(sorted(found, key=lambda file: file.relative_to(place).as_posix())), place, column, max_bytes
        )
    if glob.has_magic(str(place)):
        matches = sorted(file for file in map(Path, glob.glob(str(place), recursive=True)) if file.is_file())
        if not matches:
            raise DataError(f"{key}: no file matches {place}")
        return Files(tuple(matches), Path(os.path.commonpath([file.parent for file in matches])), column, max_bytes)
    raise DataError(f"{key}: {place.absolute()} does not exist")


def _walk(folder: Path, skipped: set[str]) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in skipped and not name.startswith("."))
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def _plain_text(path: Path, alone: bool) -> Iterator[str]:
    """The text of a UTF-8 file (other bytes become U+FFFD), whole when it is short. A lone file is cut finer."""
    piece, whole = PIECE_CHARACTERS, WHOLE_CHARACTERS
    if alone:
        piece = whole = max(1024, min(PIECE_CHARACTERS, path.stat().st_size // 64))
    decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="replace")
    held = ""
    cutting = False
    with path.open("rb") as stream:
        while data := stream.read(1 << 20):
            held += decoder.decode(data)
            cutting = cutting or len(held) > whole
            start = 0
            while cutting and len(held) - start > piece:
                end = _paragraph_end(held, start, start + piece)
                yield held[start:end]
                start = end
            held = held[start:]
    held += decoder.decode(b"", final=True)
    if held:
        yield held


def _paragraph_end(text: str, start: int, limit: int) -> int:
    """Where to cut text[start:limit]: after the last blank line of its second half, else line, word, character."""
    for separator in ("\n\n", "\n", " "):
        found = text.rfind(separator, start + (limit - start) // 2, limit)
        if found >= 0:
            return found + len(separator)
    return limit


def _json_lines(path: Path, column: str) -> Iterator[str]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                raise DataError(
                    f"{path}: line {number} is not JSON; the file should hold one JSON object per line"
                ) from None
            if not isinstance(row, dict):
                raise DataError(f"{path}: line {number} is not a JSON object")
            if column not in row:
                raise missing_column(f"{path}: line {number}", column, row)
            yield from text_of(row[column], f"{path}: line {number}", column)


def _parquet(path: Path, column: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            names = table.schema_arrow.names
            if column not in names:
                raise missing_column(str(path), column, names)
            for batch in table.iter_batches(batch_size=512, columns=[column]):
                for value in batch.column(0).to_pylist():
                    yield from text_of(value, str(path), column)
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not a readable Parquet file: {str(error).splitlines()[0]}") from None


def missing_column(where: str, column: str, names: Any) -> DataError:
    """The error for a column that is not there: it lists those that are."""
    return DataError(
        f"{where}: no column {column!r}; set data.source.field to one of:"
        f" {', '.join(map(str, names)) or '(there are none)'}"
    )


def text_of(value: Any, where: str, column: str) -> Iterator[str]:
    """The text of a cell: nothing for null, an error for what is not text."""
    if value is None:
        return
    if not isinstance(value, str):
        raise DataError(
            f"{where}: column {column!r} holds {type(value).__name__}, not text; set data.source.field to a text column"
        )
    yield value
