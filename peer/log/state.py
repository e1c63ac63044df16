"""The global state: theta (and the outer momentum, if the run has one) as flat fp32 vectors, and its digest.

The digest is a two-level blake3 tree over 4 MiB chunks, so a joiner can fetch chunks from strangers and check each
alone. State bytes are theta then momentum, little-endian.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from blake3 import blake3

from peer.errors import VerificationError
from protos import log_pb2

CHUNK_BYTES = 4 << 20
_DIGEST_DOMAIN = b"commonweights.v1.state\0"

assert sys.byteorder == "little", "state bytes are little-endian views of tensors"


def digest_of(chunk_hashes: Sequence[bytes], state_bytes: int) -> bytes:
    """The digest of a state from its chunks' hashes (32 bytes each) and its length."""
    return blake3(_DIGEST_DOMAIN + state_bytes.to_bytes(8, "little") + b"".join(chunk_hashes)).digest()


def manifest_digest(manifest: log_pb2.StateManifest) -> bytes:
    return digest_of(manifest.chunk_hashes, manifest.state_bytes)


@dataclass
class State:
    """The weights after `round`."""

    round: int
    theta: torch.Tensor  # fp32 [parameters], CPU
    momentum: torch.Tensor | None  # fp32 [parameters], or None when the run has no outer momentum

    @classmethod
    def initial(cls, theta: torch.Tensor, with_momentum: bool) -> State:
        return cls(0, theta, torch.zeros_like(theta) if with_momentum else None)

    @classmethod
    def empty(cls, parameters: int, with_momentum: bool) -> State:
        """Room for a state that is about to be filled by `load_chunk`."""
        return cls.initial(torch.empty(parameters, dtype=torch.float32), with_momentum)

    def copy(self) -> State:
        return State(self.round, self.theta.clone(), None if self.momentum is None else self.momentum.clone())

    @property
    def state_bytes(self) -> int:
        return sum(len(view) for view in self._views())

    def chunks(self) -> Iterator[memoryview]:
        """The state's bytes in pieces of `CHUNK_BYTES` (each vector's last one shorter), without copying."""
        for view in self._views():
            for start in range(0, len(view), CHUNK_BYTES):
                yield view[start : start + CHUNK_BYTES]

    def load_chunks(self, chunks: Iterator[bytes]) -> None:
        """Fill the state from its chunks, in order.

        Raises:
            VerificationError: when their sizes do not add up to this state.
        """
        for target in self.chunks():
            source = next(chunks, b"")
            if len(source) != len(target):
                raise VerificationError(f"a state chunk has {len(source)} bytes where {len(target)} belong")
            target[:] = source

    def manifest(self, run_id: bytes) -> log_pb2.StateManifest:
        hashes = [blake3(chunk, max_threads=blake3.AUTO).digest() for chunk in self.chunks()]
        return log_pb2.StateManifest(run_id=run_id, round=self.round, state_bytes=self.state_bytes, chunk_hashes=hashes)

    def digest(self) -> bytes:
        """32 bytes that name this state: equal on every replica that applied the same log."""
        return manifest_digest(self.manifest(b""))

    def _views(self) -> list[memoryview]:
        vectors = [self.theta] if self.momentum is None else [self.theta, self.momentum]
        return [vector.numpy().view("u1").data for vector in vectors]
