"""Preparing a run's data: source -> tokenizer -> shards and manifest, in one folder.

The same source and settings give the same manifest, byte for byte. Calling it again costs a look at the files; an
interrupted call goes on where it stopped; a changed source or config is prepared anew. A run that has begun is bound to
its manifest by the genesis record: load that one (`Manifest.load`) instead of preparing again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from blake3 import blake3

from configs.schema import RunSpec, canonical_json
from coordinator.sources import Documents, open_source
from coordinator.vocabulary import write_tokenizer
from peer.data.manifest import Manifest
from peer.data.prepared import Recipe, build
from peer.errors import DataError

FORMAT = 1  # part of the fingerprint: raise it when the same input is to give other shards


def prepare(spec: RunSpec, folder: Path, *, progress: bool | None = None) -> Manifest:
    """Prepare the data of a run in `folder` and return its manifest.

    Args:
        progress: show a bar on stderr; None: when stderr is a terminal.

    Raises:
        DataError, UnreachableError: the source cannot be used; one line that names the key and the cure.
    """
    data = spec.data
    source = open_source(data.source)
    settings = data.model_dump(mode="json")
    with _bar(source, sys.stderr.isatty() if progress is None else progress) as on_documents:
        manifest = build(
            folder,
            Recipe(
                fingerprint=blake3(canonical_json([FORMAT, settings, source.fingerprint()])).hexdigest(),
                documents=source.skipping,
                write_tokenizer=lambda target: write_tokenizer(data.tokenizer, target, lambda: source.skipping(0)),
                tokenizer_kind=data.tokenizer.kind,
                source=settings["source"],
                license=data.license,
                sequence_length=data.sequence_length,
                shard_sequences=data.shard_sequences,
                held_out_fraction=data.held_out_fraction,
            ),
            on_documents,
        )
    _check(spec, manifest)
    return manifest


def _check(spec: RunSpec, manifest: Manifest) -> None:
    if manifest.rows < spec.train.batch_sequences:
        raise DataError(
            f"data.source: too little text: {manifest.rows} rows of {manifest.sequence_length} tokens are less than"
            f" one batch (train.batch_sequences = {spec.train.batch_sequences}); add text, or lower one of the two"
        )


@contextmanager
def _bar(source: Documents, shown: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr as the callback of `build`; nothing when it is not shown."""
    if not shown:
        yield lambda documents, text_bytes: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("preparing data"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(source.unit),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=source.total)

        def on_documents(documents: int, text_bytes: int) -> None:
            bar.update(task, advance=text_bytes if source.unit == "bytes" else documents, total=source.total)

        yield on_documents
