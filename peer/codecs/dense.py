"""Dense codecs: every value is kept, at 16, 8 or 4 bits. For fast links, and the yardstick for the others.

`fp16` rounds each value to half precision. `dense8` and `dense4` keep an integer per value and one half-precision step
per block of 256. All products are exact in fp32 (11-bit step times 8-bit integer), so decoding is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from peer.codecs.wire import Cursor, Floats, Term, as_half, block_count, pack_levels, pieces, plane_bytes, spans

BLOCK = 256


class Half:
    """16 bits per value."""

    def encode(self, values: Floats) -> bytes:
        return pack_levels(values)

    def check(self, body: memoryview, count: int) -> None:
        self._read(body, count)

    def terms(self, body: memoryview, count: int, scale: np.float32, factor: np.float32) -> Iterator[Term]:
        for start, stop in spans(count, BLOCK):
            values = self._read(body[2 * start : 2 * stop], stop - start)
            values *= scale
            values *= factor
            yield slice(start, stop), values

    def largest_bytes(self, count: int) -> int:
        return 2 * count

    def _read(self, body: memoryview, count: int) -> Floats:
        cursor = Cursor(body)
        values = cursor.levels(count, "values")
        cursor.finish()
        return values


class Uniform8:
    """8 bits per value: value = step of its block * integer in [-127, 127]."""

    def encode(self, values: Floats) -> bytes:
        steps, codes = [], []
        for matrix in pieces(values, BLOCK):
            step = as_half(np.abs(matrix).max(axis=1) / np.float32(127))
            steps.append(step)
            codes.append(_quantise(matrix, step, -127, 127).tobytes())
        return pack_levels(np.concatenate(steps)) + b"".join(codes)

    def check(self, body: memoryview, count: int) -> None:
        self._read(body, count)

    def terms(self, body: memoryview, count: int, scale: np.float32, factor: np.float32) -> Iterator[Term]:
        steps, codes = self._read(body, count)
        steps *= scale
        for start, stop in spans(count, BLOCK):
            values = codes[start:stop].astype(np.float32)
            yield slice(start, stop), _scaled(values, steps, start, factor)

    def largest_bytes(self, count: int) -> int:
        return 2 * block_count(count, BLOCK) + count

    def _read(self, body: memoryview, count: int) -> tuple[Floats, np.ndarray[tuple[int], np.dtype[np.int8]]]:
        cursor = Cursor(body)
        steps = cursor.levels(block_count(count, BLOCK), "steps")
        codes = np.frombuffer(cursor.take(count, "values"), dtype=np.int8)
        cursor.finish()
        return steps, codes


class Uniform4:
    """4 bits per value: value = step of its block * integer in [-8, 7], two to a byte.

    The step carries the sign that puts the block's largest value on -8, so that all sixteen codes are of use
    (as llama.cpp's Q4_0 does): a finer step by an eighth than symmetric rounding to [-7, 7].
    """

    def encode(self, values: Floats) -> bytes:
        steps, codes = [], []
        for matrix in pieces(values, BLOCK):
            largest = np.take_along_axis(matrix, np.abs(matrix).argmax(axis=1)[:, None], axis=1)[:, 0]
            step = as_half(largest / np.float32(-8))
            steps.append(step)
            code = (_quantise(matrix, step, -8, 7) + np.int8(8)).astype(np.uint8).reshape(-1)
            if code.size % 2:
                code = np.append(code, np.uint8(0))
            codes.append((code[0::2] | (code[1::2] << 4)).tobytes())
        return pack_levels(np.concatenate(steps)) + b"".join(codes)

    def check(self, body: memoryview, count: int) -> None:
        self._read(body, count)

    def terms(self, body: memoryview, count: int, scale: np.float32, factor: np.float32) -> Iterator[Term]:
        steps, plane = self._read(body, count)
        steps *= scale
        for start, stop in spans(count, BLOCK):
            codes = plane[start // 2 : -(-stop // 2)]
            values = np.empty(2 * codes.size, dtype=np.float32)
            values[0::2] = codes & 15
            values[1::2] = codes >> 4
            values -= np.float32(8)
            yield slice(start, stop), _scaled(values[: stop - start], steps, start, factor)

    def largest_bytes(self, count: int) -> int:
        return 2 * block_count(count, BLOCK) + plane_bytes(4 * count)

    def _read(self, body: memoryview, count: int) -> tuple[Floats, np.ndarray[tuple[int], np.dtype[np.uint8]]]:
        cursor = Cursor(body)
        steps = cursor.levels(block_count(count, BLOCK), "steps")
        plane = cursor.plane(4 * count, "values")
        cursor.finish()
        return steps, plane


def _quantise(matrix: Floats, step: Floats, low: int, high: int) -> np.ndarray[tuple[int, int], np.dtype[np.int8]]:
    """Nearest multiple of each row's step, as integers in [low, high]; a zero step gives zeros. [rows, block]"""
    inverse = np.divide(np.float32(1), step, out=np.zeros_like(step), where=step != 0)
    return np.clip(np.rint(matrix * inverse[:, None]), low, high).astype(np.int8)


def _scaled(values: Floats, steps: Floats, start: int, factor: np.float32) -> Floats:
    """values * the step of their block * factor, in place. The first product is exact, only the second one rounds."""
    matrix = values.reshape(-1, min(BLOCK, values.size))
    matrix *= steps[start // BLOCK : start // BLOCK + matrix.shape[0], None]
    matrix *= factor
    return values
