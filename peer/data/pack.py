"""Documents to shards: tokenised, each ended by the end-of-text token, joined and cut into rows of fixed length.

A document goes to the held-out part when its hash says so: the split needs no memory, does not depend on the order, and
copies of a document land on one side. The last tokens that do not fill a row are dropped.

The state of a packer is small (finished shards, and less than one shard of tokens for each part), so it can be saved at
any moment and work goes on from there after an interruption.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from peer.data.manifest import Manifest, Shard, TokenizerFiles, digest_file
from peer.data.tokenizer import Tokenizer

SHARDS_FOLDER = "shards"
WINDOW_BYTES = 8 << 20  # rows are shuffled within windows of about this size: what a peer has to fetch for one lease
_BATCH_DOCUMENTS = 512
_BATCH_CHARACTERS = 2 << 20
_REMEMBERED = 256  # documents with the smallest hashes: candidates if the split leaves the held-out part empty

Tokens = npt.NDArray[np.unsignedinteger[Any]]


@dataclass
class ShardWriter:
    """Appends tokens to numbered shard files `<folder>/shards/<part>-00000.bin`."""

    folder: Path
    part: str
    sequence_length: int
    shard_sequences: int
    dtype: np.dtype[Any]
    shards: list[Shard] = field(default_factory=list)
    pending: list[Tokens] = field(default_factory=list)
    pending_tokens: int = 0

    def add(self, tokens: Tokens) -> None:
        self.pending.append(tokens)
        self.pending_tokens += len(tokens)
        shard_tokens = self.sequence_length * self.shard_sequences
        while self.pending_tokens >= shard_tokens:
            self._write(shard_tokens)

    def finish(self) -> None:
        """Write the whole rows that are left; a rest shorter than a row is dropped."""
        if whole := self.pending_tokens - self.pending_tokens % self.sequence_length:
            self._write(whole)

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    def left(self) -> Tokens:
        """Tokens that are in no shard yet."""
        return np.concatenate([np.empty(0, dtype=self.dtype), *self.pending])

    def _write(self, count: int) -> None:
        tokens = self.left()
        name = f"{SHARDS_FOLDER}/{self.part}-{len(self.shards):05d}.bin"
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as stream:
            stream.write(tokens[:count].tobytes())
            stream.flush()
            os.fsync(stream.fileno())
        sha, tree = digest_file(path)
        rows = count // self.sequence_length
        self.shards.append(Shard(name=name, rows=rows, bytes=count * self.dtype.itemsize, sha256=sha, blake3=tree))
        self.pending, self.pending_tokens = [tokens[count:]], len(tokens) - count


@dataclass
class Packer:
    """Both parts of a data set in the making."""

    folder: Path
    tokenizer: Tokenizer
    sequence_length: int
    shard_sequences: int
    held_out_below: int  # a document is held out when the first 8 bytes of its hash, as a number, are below this
    documents: int = 0
    documents_hash: bytes = bytes(32)
    smallest: list[tuple[int, int]] = field(default_factory=list)  # heap of (-hash, tokens)

    def __post_init__(self) -> None:
        self.train = self._writer("train")
        self.held_out = self._writer("held-out")

    def _writer(self, part: str) -> ShardWriter:
        return ShardWriter(self.folder, part, self.sequence_length, self.shard_sequences, self.tokenizer.dtype)

    def add(self, texts: list[str]) -> None:
        """Pack a batch of documents (a few MB at most: it is encoded at once)."""
        for text, tokens in zip(texts, self.tokenizer.encode_documents(texts), strict=True):
            digest = blake3(text.encode()).digest()
            number = int.from_bytes(digest[:8], "big")
            self.documents += 1
            self.documents_hash = blake3(self.documents_hash + digest).digest()
            (self.held_out if number < self.held_out_below else self.train).add(tokens)
            candidate = (-number, len(tokens))
            if len(self.smallest) < _REMEMBERED:
                heapq.heappush(self.smallest, candidate)
            elif candidate > self.smallest[0]:
                heapq.heapreplace(self.smallest, candidate)

    def finish(self) -> None:
        self.train.finish()
        self.held_out.finish()

    def fitting_threshold(self) -> int | None:
        """The smallest `held_out_below` that gives a held-out row, or None when the text is too short for one."""
        tokens = 0
        for number, count in sorted((-negative, count) for negative, count in set(self.smallest)):
            tokens += count
            if tokens >= self.sequence_length:
                return number + 1
        return None

    def manifest(self, tokenizer: TokenizerFiles, source: dict[str, Any], license: str) -> Manifest:
        window = (
            max(1, WINDOW_BYTES // (self.sequence_length * self.tokenizer.dtype.itemsize * self.shard_sequences))
            * self.shard_sequences
        )
        return Manifest(
            sequence_length=self.sequence_length,
            dtype="uint16" if self.tokenizer.dtype.itemsize == 2 else "uint32",
            vocab_size=self.tokenizer.vocab_size,
            end_of_text=self.tokenizer.end_of_text,
            tokenizer=tokenizer,
            source=source,
            documents_hash=self.documents_hash.hex(),
            license=license,
            documents=self.documents,
            rows=self.train.rows,
            held_out_rows=self.held_out.rows,
            window=window,
            shards=self.train.shards,
            held_out=self.held_out.shards,
        )


def batches(documents: Iterable[str]) -> Iterator[tuple[list[str], int]]:
    """(texts, documents consumed for them): batches that are worth a parallel encoding and still small.

    Blank documents are left out; text that is not valid Unicode is mended.
    """
    batch: list[str] = []
    characters = consumed = 0
    for text in documents:
        consumed += 1
        if not text.strip():
            continue
        if not text.isascii():  # lone surrogates, which JSON can carry, have no UTF-8 form
            text = text.encode("utf-8", errors="replace").decode()
        batch.append(text)
        characters += len(text)
        if len(batch) >= _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch, consumed
            batch, characters, consumed = [], 0, 0
    if consumed:
        yield batch, consumed
