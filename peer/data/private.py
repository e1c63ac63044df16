"""A peer's own data, for organizations that must not share it: local files, tokenised with the run's tokenizer.

Nothing of it leaves the machine but the pseudo-gradient. Contributions made from it name no leased positions, so nobody
can replay them, and the record says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from blake3 import blake3

from configs.schema import canonical_json
from peer.data.documents import Files, find_files
from peer.data.manifest import Manifest
from peer.data.prepared import Recipe, build
from peer.data.reader import ShardReader
from peer.errors import DataError

SUFFIXES = (".txt", ".md", ".jsonl", ".parquet")


class PrivateRows(ShardReader):
    """Rows of local files, like those of the run's data set: `rows(range)` in an endless order of the owner's key."""

    @classmethod
    async def open(
        cls,
        path: str,
        run: Manifest,
        tokenizer_folder: Path,
        cache: Path,
        *,
        key: bytes,
        column: str = "text",
        suffixes: Sequence[str] = SUFFIXES,
    ) -> PrivateRows:
        """Tokenise the files (once: an unchanged folder is reused) into `cache`.

        Args:
            path: a file, a folder or a glob, as in `data.source.path`.
            run: gives the length of a row.
            tokenizer_folder: of the run, see `ShardReader.tokenizer_folder`.
            key: 32 bytes of the owner; peers with the same files and different keys read them in different orders.
            column: of .jsonl and .parquet files.

        Raises:
            DataError: nothing to read, or too little for one row.
        """
        files = find_files(path, suffixes, column, 0, key="private data")
        manifest = await asyncio.to_thread(_prepare, files, run, tokenizer_folder, cache)
        return cls(manifest, cache, key=key)


def _prepare(files: Files, run: Manifest, tokenizer_folder: Path, cache: Path) -> Manifest:
    def write_tokenizer(folder: Path) -> None:
        for entry in run.tokenizer.files:
            name = Path(entry.name).name
            (folder / name).write_bytes((tokenizer_folder / name).read_bytes())

    parts = [run.sequence_length, [entry.blake3 for entry in run.tokenizer.files], files.column, files.fingerprint()]
    manifest = build(
        cache,
        Recipe(
            fingerprint=blake3(canonical_json(parts)).hexdigest(),
            documents=files.skipping,
            write_tokenizer=write_tokenizer,
            tokenizer_kind=run.tokenizer.kind,
            source={"kind": "private"},
            license="private",
            sequence_length=run.sequence_length,
            shard_sequences=max(1, (4 << 20) // run.row_bytes),
            held_out_fraction=0,
        ),
    )
    if (manifest.vocab_size, manifest.dtype) != (run.vocab_size, run.dtype):
        raise DataError(
            f"{tokenizer_folder}: not the run's tokenizer: {manifest.vocab_size} tokens instead of {run.vocab_size}"
        )
    return manifest
