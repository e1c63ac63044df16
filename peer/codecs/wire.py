"""The pieces that every codec's segment is made of: blocks, bit planes and half-precision levels.

A segment body is a concatenation of planes whose lengths follow from the number of values alone (or from a field that
is checked first), so a reader never searches and never allocates more than the values it will return. Reading anything
that does not fit raises PayloadError; padding bits must be zero.

Everything is little endian (so must the machine be), and bits are counted from the least significant one.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from peer.errors import PayloadError

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]
Places = npt.NDArray[np.int64]  # in a segment, strictly increasing

Term = tuple[slice | Places, Floats]
"""Some of a segment's decoded values and where they belong; what no term speaks of is zero."""

# Values worked on at once: the temporaries of one piece stay in the processor's cache, which is worth a factor of two.
PIECE = 1 << 17


def pieces(values: Floats, block: int) -> Iterator[Floats]:
    """Cut a vector into matrices of whole blocks, [<= PIECE / block, block], and its short last block, [1, rest]."""
    whole = values.size - values.size % block
    for start in range(0, whole, PIECE):
        yield values[start : min(start + PIECE, whole)].reshape(-1, block)
    if whole < values.size:
        yield values[whole:].reshape(1, -1)


def spans(count: int, block: int) -> Iterator[tuple[int, int]]:
    """The (start, stop) of each matrix that `pieces` yields for a vector of `count` values."""
    whole = count - count % block
    for start in range(0, whole, PIECE):
        yield start, min(start + PIECE, whole)
    if whole < count:
        yield whole, count


def block_count(count: int, block: int) -> int:
    return -(-count // block)


def plane_bytes(bits: int) -> int:
    return -(-bits // 8)


def pack_bits(flags: Flags | Bytes) -> bytes:
    """Flags (nonzero is one) of any shape, row by row, eight to a byte."""
    return np.packbits(flags.reshape(-1), bitorder="little").tobytes()


def pack_levels(levels: Floats) -> bytes:
    """Values to half precision. They must be below 65504, which normalised segments guarantee."""
    return _halves(levels).numpy().tobytes()


def as_half(levels: Floats) -> Floats:
    """The values that a reader of `pack_levels(levels)` will see."""
    rounded: Floats = _halves(levels).float().numpy()
    return rounded


def _halves(levels: Floats) -> torch.Tensor:
    """Rounded to nearest even, by torch, which is several times as fast at it as numpy in both directions."""
    return torch.from_numpy(levels).half()


class Cursor:
    """Reads the planes of one segment body in order."""

    def __init__(self, body: memoryview) -> None:
        self._body = body
        self._at = 0

    def take(self, size: int, what: str) -> memoryview:
        if self._at + size > len(self._body):
            raise PayloadError(f"truncated payload: {what} needs {size} bytes, {len(self._body) - self._at} are left")
        piece = self._body[self._at : self._at + size]
        self._at += size
        return piece

    def plane(self, bits: int, what: str) -> Bytes:
        """A bit plane, still packed."""
        plane = np.frombuffer(self.take(plane_bytes(bits), what), dtype=np.uint8)
        if bits % 8 and plane[-1] >> (bits % 8):
            raise PayloadError(f"damaged payload: padding of {what} is not zero")
        return plane

    def levels(self, count: int, what: str) -> Floats:
        """Half-precision values, widened exactly; infinities and NaNs are refused."""
        halves = np.frombuffer(self.take(2 * count, what), dtype="<u2")
        # All exponent bits set is infinity or NaN. On the bits, because numpy's isfinite is ten times slower on halves.
        if count and int(np.bitwise_and(halves, 0x7C00).max()) == 0x7C00:
            raise PayloadError(f"damaged payload: {what} holds a value that is not finite")
        return torch.from_numpy(halves.view("<f2").copy()).float().numpy()

    def finish(self) -> None:
        if self._at != len(self._body):
            raise PayloadError(f"damaged payload: {len(self._body) - self._at} bytes too many in a segment")


def unpack_bits(plane: Bytes, start: int, stop: int) -> Bytes:
    """Bits [start, stop) of a packed plane as zeros and ones; `start` is a multiple of 8."""
    return np.unpackbits(plane[start // 8 : plane_bytes(stop)], count=stop - start, bitorder="little")
