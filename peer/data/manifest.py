"""The manifest: what a run trains on, and the name and hash of every file of it.

It is canonical JSON, so the same data gives the same bytes; its blake3 hash stands in the genesis record. It comes from
strangers: everything in it is checked on reading, file names above all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from blake3 import blake3
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from configs.schema import canonical_json
from peer.errors import DataError

FILE_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 64 << 20  # a million shards; anything longer is an attack
SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?")

Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, lt=1 << 62)]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Frozen):
    """One file of the data set, by its path below the data folder."""

    name: Annotated[str, Field(max_length=200)]
    bytes: Count
    sha256: Hash
    blake3: Hash

    @model_validator(mode="after")
    def _stays_inside(self) -> FileEntry:
        if not SAFE_NAME.fullmatch(self.name):
            raise ValueError(f"unsafe file name {self.name!r}")
        return self


class Shard(FileEntry):
    """`rows` sequences, one after the other: raw little-endian token ids, no header."""

    rows: Annotated[int, Field(gt=0, lt=1 << 62)]


class TokenizerFiles(_Frozen):
    """A tokenizer as transformers' `AutoTokenizer.from_pretrained` loads it from a folder."""

    kind: str
    files: list[FileEntry]


class Manifest(_Frozen):
    version: Literal[1] = 1
    sequence_length: Annotated[int, Field(gt=0, lt=1 << 31)]  # tokens per row
    dtype: Literal["uint16", "uint32"]
    vocab_size: Annotated[int, Field(gt=0, lt=1 << 31)]
    end_of_text: Count  # id of the token after every document
    tokenizer: TokenizerFiles
    source: dict[str, Any]  # for people: what was prepared, as the run spec names it
    documents_hash: Hash  # blake3 chain over the documents, in order: the same text gives the same hash
    license: str
    documents: Count
    rows: Annotated[int, Field(gt=0, lt=1 << 62)]
    held_out_rows: Count
    window: Count  # rows that are shuffled among themselves, see peer.data.order; 0: all
    shards: list[Shard]
    held_out: list[Shard]

    @model_validator(mode="after")
    def _adds_up(self) -> Manifest:
        row_bytes = self.row_bytes
        if any(shard.bytes != shard.rows * row_bytes for shard in [*self.shards, *self.held_out]):
            raise ValueError("the size of a shard does not fit its rows")
        if sum(shard.rows for shard in self.shards) != self.rows:
            raise ValueError("the rows of the shards do not add up")
        if sum(shard.rows for shard in self.held_out) != self.held_out_rows:
            raise ValueError("the held-out rows do not add up")
        names = [entry.name for entry in self.files()]
        if len(set(names)) != len(names):
            raise ValueError("two files have one name")
        if self.end_of_text >= self.vocab_size:
            raise ValueError("the end-of-text token is not in the vocabulary")
        return self

    @property
    def row_bytes(self) -> int:
        return self.sequence_length * np.dtype(self.dtype).itemsize

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def tokens(self) -> int:
        """Training tokens of one epoch."""
        return self.rows * self.sequence_length

    def files(self) -> Iterable[FileEntry]:
        """Every file that the manifest names."""
        return [*self.tokenizer.files, *self.held_out, *self.shards]

    def to_json(self) -> bytes:
        return canonical_json(self.model_dump(mode="json"))

    def hash(self) -> bytes:
        """32 bytes, blake3 of the canonical JSON."""
        return blake3(self.to_json()).digest()

    @classmethod
    def from_json(cls, text: bytes, *, source: str = "manifest") -> Manifest:
        """Read and check a manifest; `source` opens the error's line.

        Raises:
            DataError: not JSON, not a manifest, unsafe names or sums that do not add up.
        """
        if len(text) > MAX_MANIFEST_BYTES:
            raise DataError(f"{source}: {len(text)} bytes are too many for a manifest")
        try:
            return cls.model_validate(json.loads(text))
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(part) for part in problem["loc"])
            raise DataError(f"{source}: not a data manifest: {where}: {problem['msg']}") from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{source}: not a data manifest: {error}") from None

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """The manifest of a prepared folder.

        Raises:
            DataError: there is none, or it is damaged.
        """
        path = folder / FILE_NAME
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            raise DataError(
                f"{folder}: no prepared data here ({FILE_NAME} is missing); run `commonweights-coordinator prepare`"
            ) from None
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None
        return cls.from_json(text, source=str(path))


def digest_file(path: Path) -> tuple[str, str]:
    """(sha256, blake3) of a file, both hexadecimal, reading it once in 1 MiB pieces."""
    import hashlib

    sha, tree = hashlib.sha256(), blake3()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            sha.update(piece)
            tree.update(piece)
    return sha.hexdigest(), tree.hexdigest()
