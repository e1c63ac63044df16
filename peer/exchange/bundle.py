"""Many small blobs over one stream: what light peers contribute to a round then costs one question, not one for each.

Nothing of it is resumed and nothing shared between sources, so only small blobs travel like this. What does not come
(not there, busy, too slow) is fetched one by one (download.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping

from blake3 import blake3

from peer.errors import DataError, Refused, UnreachableError
from peer.exchange.blobs import HASH_BYTES, BlobStore
from peer.exchange.recent import SMALL_BYTES
from peer.swarm.interface import PIECE_BYTES
from protos.swarm_pb2 import BlobsRequest

METHOD = "blobs"
MAX_BLOBS = 256
MAX_BYTES = 4 * 1024 * 1024  # together
MAX_REQUEST_BYTES = MAX_BLOBS * (HASH_BYTES + 2 + 4) + 16
STALLED_SECONDS = 5.0  # without a piece: then others are asked
SLOW_SECONDS = 20.0  # for all pieces together
BUSY_SECONDS = (0.5, 1.0)  # before the first and second time that a busy source is asked again

_MISSING, _FOLLOWS = 0, 1


class WrongBytesError(Refused):
    """A source sent something else than the blob it was asked for."""


def bundles(wanted: Mapping[bytes, int]) -> Iterator[dict[bytes, int]]:
    """Sizes in bytes by hash, in parts that may be asked for at once."""
    bundle: dict[bytes, int] = {}
    for blob, size in wanted.items():
        if len(bundle) == MAX_BLOBS or sum(bundle.values()) + size > MAX_BYTES:
            yield bundle
            bundle = {}
        bundle[blob] = size
    if bundle:
        yield bundle


def request(wanted: Mapping[bytes, int]) -> bytes:
    return BlobsRequest(hashes=wanted.keys(), sizes=wanted.values()).SerializeToString()


def parse(body: bytes) -> dict[bytes, int]:
    """What a stranger asks for. Raises Refused."""
    asked = BlobsRequest.FromString(body)
    if any(len(blob) != HASH_BYTES for blob in asked.hashes) or len(asked.sizes) != len(asked.hashes):
        raise Refused(f"a blob hash has {HASH_BYTES} bytes, and each has a size")
    if len(asked.hashes) > MAX_BLOBS or max(asked.sizes, default=0) > SMALL_BYTES or sum(asked.sizes) > MAX_BYTES:
        raise Refused(f"at most {MAX_BLOBS} blobs of {SMALL_BYTES} bytes, {MAX_BYTES} together, come in one answer")
    return dict(zip(asked.hashes, asked.sizes, strict=True))


def answer(store: BlobStore, wanted: Mapping[bytes, int]) -> Iterator[bytes]:
    """Pieces of the answer. Reads the disk for what is not in memory, and holds one piece and one blob."""
    piece = bytearray()
    for blob, size in wanted.items():
        content = _content(store, blob, size)
        if content is None:
            piece.append(_MISSING)
            continue
        piece.append(_FOLLOWS)
        piece += content
        while len(piece) >= PIECE_BYTES:
            yield bytes(piece[:PIECE_BYTES])
            del piece[:PIECE_BYTES]
    if piece:
        yield bytes(piece)


def _content(store: BlobStore, blob: bytes, size: int) -> memoryview | None:
    try:
        content = store.view(blob)
    except DataError:
        return None
    return content if len(content) == size else None


class Reader:
    """Takes the answer apart as it comes. Holds one blob at most beside the newest piece."""

    def __init__(self, wanted: Mapping[bytes, int]) -> None:
        self._due = iter(wanted.items())
        self._next = next(self._due, None)
        self._rest = bytearray()

    @property
    def is_complete(self) -> bool:
        return self._next is None

    def feed(self, piece: bytes) -> dict[bytes, bytes]:
        """The blobs that are whole now, by hash. Raises WrongBytesError."""
        self._rest += piece
        whole = {}
        while self._next is not None and self._rest:
            blob, size = self._next
            if self._rest[0] == _MISSING:
                del self._rest[0]
            elif self._rest[0] != _FOLLOWS:
                raise WrongBytesError("sent something else than blobs")
            elif len(self._rest) <= size:
                break
            else:
                whole[blob] = bytes(self._rest[1 : 1 + size])
                del self._rest[: 1 + size]
                if blake3(whole[blob]).digest() != blob:
                    raise WrongBytesError("sent wrong bytes")
            self._next = next(self._due, None)
        return whole


async def receive(
    pieces: AsyncGenerator[bytes, None],
    wanted: Mapping[bytes, int],
    store: BlobStore,
    arrived: Callable[[int], Awaitable[None]],
) -> tuple[int, float]:
    """Stores what comes; how many bytes, and the seconds that the network kept us waiting.

    Raises:
        UnreachableError, Refused: it broke off, or is too slow; what came before is in the store.
        WrongBytesError: it lies.
    """
    reader, came, waited = Reader(wanted), 0, 0.0
    async with contextlib.aclosing(pieces):
        while not reader.is_complete:
            began = time.monotonic()
            piece = await anext(pieces, None)
            waited += time.monotonic() - began
            if piece is None:
                raise UnreachableError("sent less than the whole")
            came += len(piece)
            await asyncio.to_thread(_keep, reader, piece, store)
            await arrived(len(piece))
            if waited > SLOW_SECONDS:
                raise UnreachableError("too slow")
    return came, waited


def _keep(reader: Reader, piece: bytes, store: BlobStore) -> None:
    store.put_hashed(reader.feed(piece))
