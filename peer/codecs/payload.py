"""A contribution's compressed vector: header, segment table, segment bodies.

    offset  bytes
    0       4      magic "CWPL"
    4       1      version (1)
    5       3      zero
    8       16     codec name, ASCII, zero padded
    24      8      parameters, the length of the vector
    32      5 * S  per segment of 2^22 parameters: body bytes (u32), exponent e (i8)
    ...            the bodies, one after another

Every segment decodes alone, so a reader needs the memory of one segment, whatever the model's size. A segment is
normalised by an exact power of two before a codec sees it: its largest magnitude lies in [2^14, 2^15), and decoded
values are multiplied by 2^e. Half-precision levels therefore serve deltas of 1e-20 as well as of 1e20, and every
product is exact: decoding gives the same bits on every machine. There is no checksum: payloads travel as blobs named
by their hash.

Values below 2^-25 of their segment's largest are lost to the rounding of the levels (they stay in the error feedback).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch

from peer.codecs.dense import Half, Uniform4, Uniform8
from peer.codecs.lowbit import Sign, Ternary, TwoLevel
from peer.codecs.sparse import TopK
from peer.codecs.wire import Floats, Term
from peer.errors import CommonweightsError, PayloadError
from peer.yielding import stand_back

T = TypeVar("T")

SEGMENT_PARAMETERS = 1 << 22
VERSION = 1

_MAGIC = b"CWPL"
_HEADER = struct.Struct("<4sB3s16sQ")
_ENTRY = struct.Struct("<Ib")
# Decoded values are zero or normal fp32 numbers whatever the bytes: a level's magnitude is 0 or in [2^-24, 2^16), an
# integer factor's at most 2^7.
_EXPONENTS = range(-100, 86)
_LARGEST_EXPONENT = 100  # encode refuses magnitudes of 2^100 and above


class SegmentCodec(Protocol):
    """Turns one segment's values, largest magnitude below 2^15, into bytes and back."""

    def encode(self, values: Floats) -> bytes: ...

    def check(self, body: memoryview, count: int) -> None:
        """Raise PayloadError unless `terms` will give at most `count` finite values in their places."""

    def terms(self, body: memoryview, count: int, scale: np.float32, factor: np.float32) -> Iterator[Term]:
        """The decoded values, exact, and then times `factor`, rounded once; piece by piece, in the reader's cache.

        Raises what `check` raises, before the first piece.
        """

    def largest_bytes(self, count: int) -> int:
        """Upper bound of a valid body's size."""


CODECS: Mapping[str, SegmentCodec] = {
    "fp16": Half(),
    "dense8": Uniform8(),
    "dense4": Uniform4(),
    "lowbit2": TwoLevel(),
    "ternary": Ternary(),
    "sign": Sign(),
    "sparse/8": TopK(8),
    "sparse/16": TopK(16),
    "sparse/32": TopK(32),
    "sparse/64": TopK(64),
}


class _Segment(NamedTuple):
    offset: int
    length: int
    body: memoryview
    scale: np.float32


class Payload:
    """A validated payload. Made by `open_payload`; holds the compressed bytes and decodes a segment when asked."""

    def __init__(self, codec: str, parameters: int, size_bytes: int, segments: list[_Segment]) -> None:
        self.codec = codec
        self.parameters = parameters
        self.size_bytes = size_bytes
        self._segments = segments

    @property
    def segments(self) -> int:
        return len(self._segments)

    @property
    def bits_per_parameter(self) -> float:
        """Everything counted: header, table, levels, indices."""
        return 8 * self.size_bytes / self.parameters

    def segment(self, index: int) -> tuple[int, torch.Tensor]:
        """(offset, values): the decoded fp32 values of one segment, dense, on CPU, the caller's to change."""
        segment = self._segments[index]
        values = np.zeros(segment.length, dtype=np.float32)
        for where, term in self._terms(segment, np.float32(1)):
            values[where] = term
        return segment.offset, torch.from_numpy(values)

    def add_segment(self, index: int, total: Floats, factor: np.float32) -> None:
        """total += factor * the segment's values, in place; product and sum are rounded one after the other.

        What is zero is not added: no total that began as +0 notices, since +0 + 0 and x + 0 change nothing.

        Args:
            total: fp32 [the segment's length].
        """
        for where, term in self._terms(self._segments[index], factor):
            if isinstance(where, slice):
                total[where] += term
            else:
                np.add.at(total, where, term)  # places are distinct; half the time of indexing

    def add_to(self, vector: torch.Tensor, factor: float) -> None:
        """vector += factor * decoded values, in place, segment by segment. `vector` fp32 [parameters], CPU."""
        values = vector.numpy()

        def add(index: int) -> None:
            segment = self._segments[index]
            self.add_segment(index, values[segment.offset : segment.offset + segment.length], np.float32(factor))

        in_parallel(add, range(self.segments))

    def _terms(self, segment: _Segment, factor: np.float32) -> Iterator[Term]:
        return CODECS[self.codec].terms(segment.body, segment.length, segment.scale, factor)

    def vector(self) -> torch.Tensor:
        """All decoded values, fp32 [parameters]. For tests and small models; `segment` needs less memory."""
        return torch.cat([self.segment(index)[1] for index in range(self.segments)])


def encode(name: str, vector: torch.Tensor) -> bytes:
    """Compress a flat fp32 vector, on CPU or CUDA, of any length from 1 up.

    Segments are spread over torch's threads; the bytes do not depend on how many.

    Raises:
        CommonweightsError: unknown codec, empty vector, or a value that is not finite or is 2^100 and more.
    """
    codec = CODECS.get(name)
    if codec is None:
        raise CommonweightsError(f"unknown codec {name!r}; known are {', '.join(CODECS)}")
    if vector.numel() == 0:
        raise CommonweightsError("cannot encode an empty vector; the model has no trainable parameters")
    flat = vector.detach().reshape(-1)
    starts = range(0, flat.numel(), SEGMENT_PARAMETERS)

    def encode_at(start: int) -> tuple[bytes, int]:
        values = flat[start : start + SEGMENT_PARAMETERS].to(device="cpu", dtype=torch.float32).numpy()
        exponent = _exponent(values)
        return codec.encode(values * np.float32(2.0**-exponent)), exponent

    parts = in_parallel(encode_at, starts)
    head = _HEADER.pack(_MAGIC, VERSION, b"", name.encode(), flat.numel())
    table = b"".join(_ENTRY.pack(len(body), exponent) for body, exponent in parts)
    return b"".join((head, table, *(body for body, _ in parts)))


def open_payload(payload: bytes | memoryview, parameters: int, *, bodies: bool = True) -> Payload:
    """Check a payload from anywhere: afterwards every segment decodes, to finite values.

    Needs the memory of one segment beside the payload itself, however the bytes lie about their lengths.

    Args:
        payload: the bytes; kept, not copied.
        parameters: the length that the vector must have.
        bodies: check the segments' bodies too. Without, a bad one is found when it is decoded.

    Raises:
        PayloadError: with the reason, for anything but a valid payload of that length.
    """
    view = memoryview(payload).cast("B")
    if len(view) < _HEADER.size:
        raise PayloadError(f"truncated payload: {len(view)} bytes, the header alone has {_HEADER.size}")
    magic, version, zeros, padded_name, count = _HEADER.unpack(view[: _HEADER.size])
    if magic != _MAGIC:
        raise PayloadError("not a payload: it does not begin with CWPL")
    if version != VERSION:
        raise PayloadError(f"payload of format version {version}; this program reads version {VERSION}: update it")
    name = padded_name.rstrip(b"\0").decode("ascii", errors="replace")
    codec = CODECS.get(name)
    if codec is None or any(zeros):
        raise PayloadError(f"payload of an unknown codec {name[:16]!r}; known are {', '.join(CODECS)}")
    if count != parameters:
        raise PayloadError(f"payload of {count} parameters; the model has {parameters}")
    segments = _table(view, parameters)
    if bodies:
        in_parallel(lambda index: codec.check(segments[index].body, segments[index].length), range(len(segments)))
    return Payload(name, parameters, len(view), segments)


def largest_payload_bytes(name: str, parameters: int) -> int:
    """Upper bound of a valid payload's size: what is larger can be refused before it is fetched."""
    full, rest = divmod(parameters, SEGMENT_PARAMETERS)
    codec = CODECS[name]
    bodies = full * codec.largest_bytes(SEGMENT_PARAMETERS) + (codec.largest_bytes(rest) if rest else 0)
    return _HEADER.size + _ENTRY.size * (full + (rest > 0)) + bodies


def _table(view: memoryview, parameters: int) -> list[_Segment]:
    count = -(-parameters // SEGMENT_PARAMETERS)
    at = _HEADER.size + count * _ENTRY.size
    if len(view) < at:
        raise PayloadError(f"truncated payload: the segment table ends at byte {at}, the payload at {len(view)}")
    segments = []
    for index, (size, exponent) in enumerate(_ENTRY.iter_unpack(view[_HEADER.size : at])):
        if exponent not in _EXPONENTS:
            raise PayloadError(f"damaged payload: exponent {exponent} of segment {index} is out of range")
        if at + size > len(view):
            raise PayloadError(
                f"truncated payload: segment {index} ends at {at + size}, the payload at {len(view)} bytes"
            )
        offset = index * SEGMENT_PARAMETERS
        length = min(SEGMENT_PARAMETERS, parameters - offset)
        segments.append(_Segment(offset, length, view[at : at + size], np.float32(2.0**exponent)))
        at += size
    if at != len(view):
        raise PayloadError(f"damaged payload: {len(view) - at} bytes after the last segment")
    return segments


def _exponent(values: Floats) -> int:
    """e such that the largest magnitude / 2^e lies in [2^14, 2^15), within what decoding can undo exactly."""
    low, high = float(values.min()), float(values.max())
    largest = max(-low, high)
    if not largest < 2.0**_LARGEST_EXPONENT:  # also NaN, which min and max pass on
        raise CommonweightsError("cannot encode: not all values are finite; training diverged, lower the learning rate")
    return max(_EXPONENTS.start, int(np.frexp(largest)[1]) - 15)


def in_parallel(work: Callable[[int], T], items: range) -> list[T]:
    """`work` for every item, in order, on as many threads as torch uses (numpy releases the interpreter lock)."""
    workers = min(torch.get_num_threads(), len(items))
    if workers <= 1:
        return [work(item) for item in items]
    with ThreadPoolExecutor(workers, initializer=stand_back) as pool:
        return list(pool.map(work, items))
