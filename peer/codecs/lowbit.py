"""Low-bit codecs: every value is kept, as a sign and at most one more bit. The default where links are ordinary.

`lowbit2` keeps sign and one magnitude bit, `ternary` keeps -1, 0 or +1 (five to a byte), `sign` keeps the sign. The
magnitudes come from levels chosen per block of 256: the exact minimisers of the block's squared error (Lloyd-Max
quantisation of |x|; found by sorting, since in one dimension the best classes are intervals), not a few Lloyd
iterations, which stop early on heavy tails and were no faster.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from peer.codecs.wire import (
    Bytes,
    Cursor,
    Floats,
    Term,
    as_half,
    block_count,
    pack_bits,
    pack_levels,
    pieces,
    plane_bytes,
    spans,
    unpack_bits,
)
from peer.errors import PayloadError

BLOCK = 256
_TRITS_PER_BYTE = 5
SIGN_BIT = np.uint32(0x80000000)
# [243, 5]: the five base-3 digits of a byte, least significant first, less one.
_TRITS = (np.arange(243)[:, None] // 3 ** np.arange(_TRITS_PER_BYTE) % 3 - 1).astype(np.float32)
_POWERS = (3 ** np.arange(_TRITS_PER_BYTE)).astype(np.uint8)


def two_levels(magnitudes: Floats) -> tuple[Floats, Floats]:
    """The two levels that minimise each row's squared error, values going to the nearer. [rows, width] -> 2 x [rows]

    The best split of a sorted row after its m smallest, of sum S(m), maximises
    S(m)^2 / m + (S(width) - S(m))^2 / (width - m).
    """
    width = magnitudes.shape[1]
    if width == 1:
        return magnitudes[:, 0], magnitudes[:, 0]
    sums = _sorted_sums(magnitudes)
    total = sums[:, -1:]
    low_sum = sums[:, :-1]
    high_sum = total - low_sum
    count = np.arange(1, width, dtype=np.float32)
    score = low_sum * low_sum
    score *= np.float32(1) / count
    square = high_sum * high_sum
    square *= np.float32(1) / count[::-1]
    score += square
    split = score.argmax(axis=1)[:, None]
    low = np.take_along_axis(low_sum, split, axis=1)[:, 0] / (split[:, 0] + 1)
    high = np.take_along_axis(high_sum, split, axis=1)[:, 0] / (width - 1 - split[:, 0])
    return low.astype(np.float32), high.astype(np.float32)


def _one_level_or_zero(magnitudes: Floats) -> Floats:
    """The level per row that minimises the squared error when each value may also become zero. [rows, width] -> [rows]

    Keeping the m largest lowers the error by S(m)^2 / m, S(m) their sum.
    """
    sums = _sorted_sums(magnitudes)
    kept_sum = sums[:, -1:] - sums
    kept_sum = np.concatenate([sums[:, -1:], kept_sum[:, :-1]], axis=1)  # column j: without the j smallest
    count = np.arange(magnitudes.shape[1], 0, -1, dtype=np.float32)
    score = kept_sum * kept_sum
    score *= np.float32(1) / count
    best = score.argmax(axis=1)[:, None]
    level: Floats = np.take_along_axis(kept_sum, best, axis=1)[:, 0] / (magnitudes.shape[1] - best[:, 0])
    return level.astype(np.float32, copy=False)


def _sorted_sums(magnitudes: Floats) -> Floats:
    """Running sums of each row in ascending order. torch's cumsum: numpy's takes four times as long along rows."""
    ordered = np.sort(magnitudes, axis=1)
    sums: Floats = torch.from_numpy(ordered).cumsum(1).numpy()
    return sums


class TwoLevel:
    """2 bits per value and two levels per block: 2.125 bits per parameter."""

    def encode(self, values: Floats) -> bytes:
        lows, highs, signs, choices = [], [], [], []
        for matrix in pieces(values, BLOCK):
            magnitudes = np.abs(matrix)
            low, high = (as_half(level) for level in two_levels(magnitudes))
            lows.append(low)
            highs.append(high)
            signs.append(pack_bits(np.signbit(matrix)))
            choices.append(pack_bits(magnitudes > ((low + high) * np.float32(0.5))[:, None]))
        return pack_levels(np.concatenate(lows + highs)) + b"".join(signs + choices)

    def check(self, body: memoryview, count: int) -> None:
        self._read(body, count)

    def terms(self, body: memoryview, count: int, scale: np.float32, factor: np.float32) -> Iterator[Term]:
        lows, highs, signs, choices = self._read(body, count)
        low_bits, high_bits = ((level * scale * factor).view(np.uint32) for level in (lows, highs))
        for start, stop in spans(count, BLOCK):
            width = min(BLOCK, stop - start)
            rows = slice(start // BLOCK, start // BLOCK + (stop - start) // width)
            bits = unpack_bits(choices, start, stop).astype(np.uint32).reshape(-1, width)
            # low ^ (low ^ high) where the bit is set: integer work, no rounding.
            bits *= (low_bits[rows] ^ high_bits[rows])[:, None]
            bits ^= low_bits[rows, None]
            bits ^= unpack_bits(signs, start, stop).reshape(-1, width) * SIGN_BIT
            yield slice(start, stop), bits.reshape(-1).view(np.float32)

    def largest_bytes(self, count: int) -> int:
        return 4 * block_count(count, BLOCK) + 2 * plane_bytes(count)

    def _read(self, body: memoryview, count: int) -> tuple[Floats, Floats, Bytes, Bytes]:
        cursor = Cursor(body)
        blocks = block_count(count, BLOCK)
        lows, highs = cursor.levels(blocks, "low levels"), cursor.levels(blocks, "high levels")
        signs, choices = cursor.plane(count, "signs"), cursor.plane(count, "magnitude bits")
        cursor.finish()
        return lows, highs, signs, choices


class Ternary:
    """-level, 0 or +level, five values to a byte: 1.66 bits per parameter with the levels."""

    def encode(self, values: Floats) -> bytes:
        levels, digits = [], []
        for matrix in pieces(values, BLOCK):
            level = as_half(_one_level_or_zero(np.abs(matrix)))
            levels.append(level)
            half = (level * np.float32(0.5))[:, None]
            digit = (matrix > half).view(np.uint8) + np.uint8(1)  # 0, 1, 2 for minus, zero, plus
            digit -= (matrix < -half).view(np.uint8)
            digits.append(digit.reshape(-1))
        trits = np.concatenate(digits)
        padded = np.zeros(plane_trits(trits.size) * _TRITS_PER_BYTE, dtype=np.uint8)
        padded[: trits.size] = trits
        packed = padded.reshape(-1, _TRITS_PER_BYTE) @ _POWERS
        return pack_levels(np.concatenate(levels)) + packed.tobytes()

    def check(self, body: memoryview, count: int) -> None:
        self._read(body, count)

    def terms(self, body: memoryview, count: int, scale: np.float32, factor: np.float32) -> Iterator[Term]:
        levels, packed = self._read(body, count)
        levels = levels * scale * factor
        for start, stop in spans(count, BLOCK):
            first = start // _TRITS_PER_BYTE
            digits = np.take(_TRITS, packed[first : plane_trits(stop)], axis=0)  # five times as fast as indexing
            values = digits.reshape(-1)[start - _TRITS_PER_BYTE * first :][: stop - start]
            matrix = values.reshape(-1, min(BLOCK, stop - start))
            matrix *= levels[start // BLOCK : start // BLOCK + matrix.shape[0], None]
            yield slice(start, stop), values

    def largest_bytes(self, count: int) -> int:
        return 2 * block_count(count, BLOCK) + plane_trits(count)

    def _read(self, body: memoryview, count: int) -> tuple[Floats, Bytes]:
        cursor = Cursor(body)
        levels = cursor.levels(block_count(count, BLOCK), "levels")
        packed = np.frombuffer(cursor.take(plane_trits(count), "values"), dtype=np.uint8)
        cursor.finish()
        if int(packed.max()) >= 3**_TRITS_PER_BYTE:
            raise PayloadError("damaged payload: a byte of five ternary values is above 242")
        return levels, packed


def plane_trits(count: int) -> int:
    return -(-count // _TRITS_PER_BYTE)


class Sign:
    """The sign, times the block's mean magnitude: 1.06 bits per parameter."""

    def encode(self, values: Floats) -> bytes:
        levels, signs = [], []
        for matrix in pieces(values, BLOCK):
            levels.append(np.abs(matrix).mean(axis=1))
            signs.append(pack_bits(np.signbit(matrix)))
        return pack_levels(np.concatenate(levels)) + b"".join(signs)

    def check(self, body: memoryview, count: int) -> None:
        self._read(body, count)

    def terms(self, body: memoryview, count: int, scale: np.float32, factor: np.float32) -> Iterator[Term]:
        levels, signs = self._read(body, count)
        level_bits = (levels * scale * factor).view(np.uint32)
        for start, stop in spans(count, BLOCK):
            width = min(BLOCK, stop - start)
            bits = unpack_bits(signs, start, stop).reshape(-1, width) * SIGN_BIT
            bits ^= level_bits[start // BLOCK : start // BLOCK + bits.shape[0], None]
            yield slice(start, stop), bits.reshape(-1).view(np.float32)

    def largest_bytes(self, count: int) -> int:
        return 2 * block_count(count, BLOCK) + plane_bytes(count)

    def _read(self, body: memoryview, count: int) -> tuple[Floats, Bytes]:
        cursor = Cursor(body)
        levels = cursor.levels(block_count(count, BLOCK), "levels")
        signs = cursor.plane(count, "signs")
        cursor.finish()
        return levels, signs
