"""Sparse codecs: the k largest of every block of 4096, for slow links. What is not sent waits in the error feedback.

A kept value costs a sign, a magnitude bit (two levels per block, the exact minimisers) and its place. Places are
sorted, so the gaps between them are nearly geometric, for which Golomb-Rice codes are within a sixth of a bit of the
entropy (Golomb, "Run-length encodings", 1966; Rice, 1979): the gap's low bits in one plane, the rest in unary in
another. The ends of all unary codes are the ones of that plane, so reading them is one search for set bits and one
difference, without a loop. One Rice parameter per segment, the cheapest.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from peer.codecs.lowbit import SIGN_BIT, two_levels
from peer.codecs.wire import (
    Bytes,
    Cursor,
    Flags,
    Floats,
    Places,
    Term,
    as_half,
    pack_bits,
    pack_levels,
    pieces,
    plane_bytes,
    unpack_bits,
)
from peer.errors import PayloadError

BLOCK = 4096
_HEAD = struct.Struct("<BI")  # Rice parameter, bits in the unary plane
_LARGEST_RICE = 12


class _Shape(NamedTuple):
    """What follows from a segment's length: how many values each block keeps, and which of all kept is its first."""

    kept: npt.NDArray[np.int64]  # [blocks]
    first: npt.NDArray[np.int64]  # [blocks]
    total: int

    def spread(self, per_block: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A value per block, to each kept value of that block. [blocks] -> [total]"""
        return np.repeat(per_block, self.kept)


@lru_cache(16)  # of the same few lengths for every payload; nobody writes to it
def _shape(density: int, count: int) -> _Shape:
    whole, rest = divmod(count, BLOCK)
    kept = np.full(whole + (rest > 0), BLOCK // density, dtype=np.int64)
    if rest:
        kept[-1] = -(-rest // density)
    first = np.cumsum(kept) - kept
    return _Shape(kept, first, int(kept.sum()))


class TopK:
    """One value in `density` is kept: ceil(length / density) per block."""

    def __init__(self, density: int) -> None:
        self.density = density

    def encode(self, values: Floats) -> bytes:
        places, lows, highs, signs, choices = [], [], [], [], []
        start = 0
        for matrix in pieces(values, BLOCK):
            keep = -(-matrix.shape[1] // self.density)
            flat = np.flatnonzero(_largest(np.abs(matrix), keep))
            chosen = matrix.reshape(-1)[flat].reshape(-1, keep)
            magnitudes = np.abs(chosen)
            low, high = (as_half(level) for level in two_levels(magnitudes))
            places.append(flat + start)
            lows.append(low)
            highs.append(high)
            signs.append(np.signbit(chosen).reshape(-1))
            choices.append((magnitudes > ((low + high) * np.float32(0.5))[:, None]).reshape(-1))
            start += matrix.size
        rice, unary_bits, index_planes = self._pack_places(np.concatenate(places), values.size)
        return b"".join(
            (
                _HEAD.pack(rice, unary_bits),
                pack_levels(np.concatenate(lows + highs)),
                pack_bits(np.concatenate(signs)),
                pack_bits(np.concatenate(choices)),
                index_planes,
            )
        )

    def check(self, body: memoryview, count: int) -> None:
        self._read(body, count)

    def terms(self, body: memoryview, count: int, scale: np.float32, factor: np.float32) -> Iterator[Term]:
        shape = _shape(self.density, count)
        lows, highs, signs, choices, places = self._read(body, count)
        low, high = ((levels * scale * factor).view(np.uint32) for levels in (lows, highs))
        # low ^ (low ^ high) where the bit is set, and the sign: integer work, no rounding; a third of np.where's time.
        bits = unpack_bits(choices, 0, shape.total) * shape.spread(low ^ high)
        bits ^= shape.spread(low)
        bits ^= unpack_bits(signs, 0, shape.total) * SIGN_BIT
        yield places, bits.view(np.float32)

    def largest_bytes(self, count: int) -> int:
        shape = _shape(self.density, count)
        # The encoder takes the cheapest Rice parameter, but any is valid: bound the low bits and the unary plane apart.
        index_bits = max(rice * shape.total + shape.total + (count >> rice) for rice in range(_LARGEST_RICE + 1))
        return _HEAD.size + 4 * shape.kept.size + 2 * plane_bytes(shape.total) + plane_bytes(index_bits) + 1

    def _pack_places(self, places: Places, count: int) -> tuple[int, int, bytes]:
        """Sorted places -> Rice parameter, bits in the unary plane, low plane + unary plane."""
        shape = _shape(self.density, count)
        before = np.empty_like(places)
        before[1:] = places[:-1]
        before[shape.first] = np.arange(shape.kept.size) * BLOCK - 1
        gaps = places - before - 1
        rice = min(range(_LARGEST_RICE + 1), key=lambda r: r * gaps.size + int((gaps >> r).sum()))
        ends = np.cumsum((gaps >> rice) + 1) - 1
        unary = np.zeros(int(ends[-1]) + 1, dtype=np.uint8)
        unary[ends] = 1
        low = ((gaps[:, None] >> np.arange(rice)) & 1).astype(np.uint8)
        return rice, unary.size, pack_bits(low) + pack_bits(unary)

    def _read(self, body: memoryview, count: int) -> tuple[Floats, Floats, Bytes, Bytes, Places]:
        shape = _shape(self.density, count)
        cursor = Cursor(body)
        rice, unary_bits = _HEAD.unpack(cursor.take(_HEAD.size, "segment head"))
        if rice > _LARGEST_RICE:
            raise PayloadError(f"damaged payload: Rice parameter {rice} is above {_LARGEST_RICE}")
        if not shape.total <= unary_bits <= shape.total + (count >> rice):
            raise PayloadError(f"damaged payload: {unary_bits} bits of unary codes for {shape.total} indices")
        lows, highs = cursor.levels(shape.kept.size, "low levels"), cursor.levels(shape.kept.size, "high levels")
        signs, choices = cursor.plane(shape.total, "signs"), cursor.plane(shape.total, "magnitude bits")
        low = cursor.plane(rice * shape.total, "index low bits")
        unary = cursor.plane(unary_bits, "index unary codes")
        cursor.finish()
        return lows, highs, signs, choices, self._places(shape, rice, low, unary, unary_bits, count)

    def _places(self, shape: _Shape, rice: int, low: Bytes, unary: Bytes, unary_bits: int, count: int) -> Places:
        """The kept places in [0, count), strictly increasing, exactly `kept` in each block, or PayloadError."""
        ends = np.flatnonzero(unpack_bits(unary, 0, unary_bits).view(np.bool_))
        if ends.size != shape.total or ends[-1] != unary_bits - 1:
            raise PayloadError(f"damaged payload: {ends.size} index codes where {shape.total} are due")
        steps = ends.copy()
        steps[1:] -= ends[:-1] + 1  # the gaps' high parts
        steps <<= rice
        steps += _unpack_numbers(low, rice, shape.total)
        steps += 1
        # Within a block the index is the sum of (gap + 1), less one; gaps are never negative, so indices increase.
        reach = np.cumsum(steps, out=steps)  # in 64 bits: a liar's may sum up to more than 32
        last = shape.first + shape.kept - 1
        reach_before = np.concatenate([[0], reach[last[:-1]]])
        starts = np.arange(shape.kept.size, dtype=np.int64) * BLOCK
        if np.any(reach[last] - reach_before > np.minimum(BLOCK, count - starts)):
            raise PayloadError("damaged payload: an index lies outside its block")
        reach += shape.spread(starts - reach_before - 1)
        return reach


def _unpack_numbers(plane: Bytes, width: int, count: int) -> npt.NDArray[np.int64]:
    """`count` numbers of `width` <= 12 bits each, one after another in a packed plane.

    In few steps: at each of them a thread may have to wait for the interpreter.
    """
    if width > 8:  # valid, but nothing that an encoder would choose
        bits = unpack_bits(plane, 0, width * count).reshape(count, width)
        return np.packbits(bits, axis=1, bitorder="little").view("<u2").reshape(-1).astype(np.int64)
    rows = -(-count // 8)  # eight numbers are `width` whole bytes, and fit into a word
    padded = np.zeros(rows * width, dtype=np.uint8)
    padded[: plane.size] = plane
    words = np.zeros((rows, 8), dtype=np.uint8)
    words[:, :width] = padded.reshape(rows, width)
    shifts, mask = np.arange(8, dtype=np.uint64) * np.uint64(width), np.uint64((1 << width) - 1)
    numbers: npt.NDArray[np.uint64] = (words.view("<u8") >> shifts) & mask
    return numbers.reshape(-1)[:count].view(np.int64)


def _largest(magnitudes: Floats, keep: int) -> Flags:
    """Marks exactly `keep` largest of every row; of equal values the earlier ones. [rows, width] -> [rows, width]

    A partial sort of the values and a comparison: seven times as fast as torch.topk, which also tracks places.
    """
    width = magnitudes.shape[1]
    threshold = np.partition(magnitudes, width - keep, axis=1)[:, width - keep, None]
    marked: Flags = magnitudes >= threshold
    tied = np.flatnonzero(np.count_nonzero(marked, axis=1) > keep)
    if tied.size:
        above = magnitudes[tied] > threshold[tied]
        equal = magnitudes[tied] == threshold[tied]
        room = keep - np.count_nonzero(above, axis=1)
        marked[tied] = above | (equal & (np.cumsum(equal, axis=1) <= room[:, None]))
    return marked
