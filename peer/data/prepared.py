"""A folder of prepared data: whole, or taken for not there.

Everything is built in `<folder>/.partial` and moved into place with the manifest last, so a folder with a manifest is
complete. An interrupted build goes on from its last checkpoint when source and settings are still the same, else it
starts afresh; a finished one is reused. "The same" is a fingerprint that the caller computes from what it is going to
read.
"""

from __future__ import annotations

import fcntl
import io
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from peer.data.manifest import FILE_NAME, FileEntry, Manifest, Shard, TokenizerFiles, digest_file
from peer.data.pack import SHARDS_FOLDER, Packer, batches
from peer.data.tokenizer import FOLDER as TOKENIZER_FOLDER
from peer.data.tokenizer import Tokenizer
from peer.durable import write_durably
from peer.errors import CommonweightsError, DataError

_FINGERPRINT = "prepared.json"
_CHECKPOINT = "checkpoint.npz"


@dataclass(frozen=True)
class Recipe:
    """How documents become a data set."""

    fingerprint: str  # of the settings and of what `documents` is going to read
    documents: Callable[[int], Iterator[str]]  # the documents after the first n, always in the same order
    write_tokenizer: Callable[[Path], None]  # fills a folder
    tokenizer_kind: str
    source: dict[str, Any]
    license: str
    sequence_length: int
    shard_sequences: int
    held_out_fraction: float  # 0: no held-out part
    checkpoint_seconds: float = 20.0


def existing(folder: Path, fingerprint: str) -> Manifest | None:
    """The manifest of a folder built with this fingerprint whose files are all sound, else None.

    Reads every file (a second or two for a gigabyte), so that preparing again is the cure for a damaged disk.
    """
    try:
        if json.loads((folder / _FINGERPRINT).read_text())["fingerprint"] != fingerprint:
            return None
        manifest = Manifest.load(folder)
        sound = all(blake3().update_mmap(folder / entry.name).hexdigest() == entry.blake3 for entry in manifest.files())
    except (OSError, ValueError, KeyError, TypeError, DataError):
        return None
    return manifest if sound else None


def build(
    folder: Path, recipe: Recipe, on_documents: Callable[[int, int], None] = lambda documents, text_bytes: None
) -> Manifest:
    """The data set of a recipe in `folder`: reused, resumed or made, replacing whatever was prepared there before.

    Args:
        on_documents: called with (documents, characters) after every batch; what resuming skips has no characters.

    Raises:
        DataError: no usable text, too little of it, or another process is preparing the same folder.
    """
    with _locked(folder):
        partial = folder / ".partial"
        if (partial / FILE_NAME).exists():  # the last build was interrupted while it moved the finished files
            _publish(partial, folder)
        if manifest := existing(folder, recipe.fingerprint):
            return manifest
        packer, consumed = _resume(partial, recipe) or (_start(partial, recipe), 0)
        on_documents(consumed, 0)
        _pack(packer, recipe, consumed, on_documents)
        if recipe.held_out_fraction and not packer.held_out.rows:
            # So few documents that none was drawn: hold out those with the smallest hashes, as many as fill one row.
            packer = _start(partial, recipe, _fitting_threshold(packer))
            _pack(packer, recipe, 0, on_documents)
        if not packer.train.rows:
            raise DataError(_too_little(packer))
        entries = [_entry(partial, path) for path in sorted((partial / TOKENIZER_FOLDER).iterdir())]
        manifest = packer.manifest(
            TokenizerFiles(kind=recipe.tokenizer_kind, files=entries), recipe.source, recipe.license
        )
        (partial / _CHECKPOINT).unlink(missing_ok=True)
        write_durably(partial / _FINGERPRINT, json.dumps({"fingerprint": recipe.fingerprint}).encode())
        write_durably(partial / FILE_NAME, manifest.to_json())
        _publish(partial, folder)
        return manifest


def _start(partial: Path, recipe: Recipe, held_out_below: int | None = None) -> Packer:
    """A packer with nothing in it. The tokenizer of a build under way is kept when only the split changed."""
    (partial / _CHECKPOINT).unlink(missing_ok=True)  # first: it speaks of shards that are about to be replaced
    if held_out_below is None:
        shutil.rmtree(partial, ignore_errors=True)
        (partial / TOKENIZER_FOLDER).mkdir(parents=True)
        recipe.write_tokenizer(partial / TOKENIZER_FOLDER)
        held_out_below = int(recipe.held_out_fraction * (1 << 64))
    shutil.rmtree(partial / SHARDS_FOLDER, ignore_errors=True)
    (partial / SHARDS_FOLDER).mkdir()
    tokenizer = Tokenizer.load(partial / TOKENIZER_FOLDER)
    return Packer(partial, tokenizer, recipe.sequence_length, recipe.shard_sequences, held_out_below)


def _pack(packer: Packer, recipe: Recipe, consumed: int, on_documents: Callable[[int, int], None]) -> None:
    saved = time.monotonic()
    for texts, count in batches(recipe.documents(consumed)):
        packer.add(texts)
        consumed += count
        on_documents(count, sum(len(text) for text in texts))
        if time.monotonic() - saved > recipe.checkpoint_seconds:
            _checkpoint(packer, recipe, consumed)
            saved = time.monotonic()
    if not packer.documents:
        raise DataError("data.source: no usable text: every document is blank, or there is none")
    packer.finish()


def _fitting_threshold(packer: Packer) -> int:
    threshold = packer.fitting_threshold()
    if packer.documents < 2 or threshold is None:
        raise DataError(_too_little(packer))
    return threshold


def _too_little(packer: Packer) -> str:
    return (
        f"data.source: too little text: {packer.documents} documents do not give one training and one held-out row"
        f" of {packer.sequence_length} tokens; add text, or lower data.sequence_length"
    )


def _checkpoint(packer: Packer, recipe: Recipe, consumed: int) -> None:
    state = {
        "fingerprint": recipe.fingerprint,
        "consumed": consumed,
        "held_out_below": packer.held_out_below,
        "documents": packer.documents,
        "documents_hash": packer.documents_hash.hex(),
        "smallest": packer.smallest,
        "train": [shard.model_dump() for shard in packer.train.shards],
        "held_out": [shard.model_dump() for shard in packer.held_out.shards],
    }
    buffer = io.BytesIO()
    np.savez(buffer, state=np.array(json.dumps(state)), train=packer.train.left(), held_out=packer.held_out.left())
    write_durably(packer.folder / _CHECKPOINT, buffer.getvalue())


def _resume(partial: Path, recipe: Recipe) -> tuple[Packer, int] | None:
    """The packer of an interrupted build and how many documents it has consumed, or None: nothing to go on from."""
    try:
        with np.load(partial / _CHECKPOINT, allow_pickle=False) as saved:
            state = json.loads(str(saved["state"]))
            if state["fingerprint"] != recipe.fingerprint:
                return None
            tokenizer = Tokenizer.load(partial / TOKENIZER_FOLDER)
            packer = Packer(partial, tokenizer, recipe.sequence_length, recipe.shard_sequences, state["held_out_below"])
            for writer, part in ((packer.train, "train"), (packer.held_out, "held_out")):
                writer.shards = [Shard.model_validate(shard) for shard in state[part]]
                writer.add(saved[part])
    except (OSError, ValueError, KeyError, DataError):
        return None
    shards = [(partial / shard.name, shard) for shard in [*packer.train.shards, *packer.held_out.shards]]
    if not all(path.exists() and path.stat().st_size == shard.bytes for path, shard in shards):
        return None
    packer.documents, packer.documents_hash = state["documents"], bytes.fromhex(state["documents_hash"])
    packer.smallest = [(number, tokens) for number, tokens in state["smallest"]]
    return packer, state["consumed"]


def _publish(partial: Path, folder: Path) -> None:
    """Move a finished build into place. Interrupted, it can be called again: the manifest goes last."""
    (folder / FILE_NAME).unlink(missing_ok=True)
    for name in (SHARDS_FOLDER, TOKENIZER_FOLDER, _FINGERPRINT, FILE_NAME):
        if (partial / name).exists():
            if (folder / name).is_dir():
                shutil.rmtree(folder / name)
            (partial / name).replace(folder / name)
    shutil.rmtree(partial)


def _entry(root: Path, path: Path) -> FileEntry:
    sha, tree = digest_file(path)
    return FileEntry(name=path.relative_to(root).as_posix(), bytes=path.stat().st_size, sha256=sha, blake3=tree)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"{folder}: another process is preparing data here; wait for it, or use another folder"
            ) from None
        try:
            yield
        except OSError as error:
            raise CommonweightsError(
                f"{folder}: cannot be written: {error.strerror or error}; free some space, or use another folder"
            ) from None
