"""Sets of positions as sorted, disjoint, half-open ranges.

The accepted positions of a healthy run are one long range and a few gaps, so a tuple of pairs and linear passes are
both simplest and fast.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self

from protos import log_pb2

MAX_POSITION = 1 << 60  # far beyond any run; a set of positions below it can be counted in 64 bits


@dataclass(frozen=True)
class Ranges:
    """An immutable set of non-negative integers, stored as sorted disjoint pairs (start, stop)."""

    pairs: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, pairs: Iterable[tuple[int, int]]) -> Self:
        """Any pairs, in any order, overlapping or not; empty ones vanish."""
        merged: list[tuple[int, int]] = []
        for start, stop in sorted(pair for pair in pairs if pair[0] < pair[1]):
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
            else:
                merged.append((start, stop))
        return cls(tuple(merged))

    @classmethod
    def from_protos(cls, ranges: Iterable[log_pb2.Range]) -> Self:
        return cls.of((item.start, item.stop) for item in ranges)

    def to_protos(self) -> list[log_pb2.Range]:
        return [log_pb2.Range(start=start, stop=stop) for start, stop in self.pairs]

    def __len__(self) -> int:
        return sum(stop - start for start, stop in self.pairs)

    def __bool__(self) -> bool:
        return bool(self.pairs)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.pairs)

    def __or__(self, other: Ranges) -> Ranges:
        return Ranges.of((*self.pairs, *other.pairs))

    def __sub__(self, other: Ranges) -> Ranges:
        kept: list[tuple[int, int]] = []
        cuts = iter((*other.pairs, (1 << 64, 1 << 64)))
        cut = next(cuts)
        for start, stop in self.pairs:
            while cut[1] <= start:
                cut = next(cuts)
            while cut[0] < stop:
                if start < cut[0]:
                    kept.append((start, cut[0]))
                start = cut[1]
                if start >= stop:
                    break
                cut = next(cuts)
            if start < stop:
                kept.append((start, stop))
        return Ranges(tuple(kept))

    def __and__(self, other: Ranges) -> Ranges:
        return self - (self - other)

    def first(self, count: int) -> Ranges:
        """The `count` smallest members (all of them when there are fewer)."""
        taken: list[tuple[int, int]] = []
        for start, stop in self.pairs:
            if count <= 0:
                break
            stop = min(stop, start + count)
            taken.append((start, stop))
            count -= stop - start
        return Ranges(tuple(taken))

    @property
    def stop(self) -> int:
        """One above the largest member; 0 when empty."""
        return self.pairs[-1][1] if self.pairs else 0


def well_formed(ranges: Iterable[log_pb2.Range]) -> bool:
    """Whether ranges from outside are sorted, disjoint, non-empty and not absurd, as a contribution must list them."""
    end = 0
    for item in ranges:
        if item.start < end or item.stop <= item.start:
            return False
        end = item.stop
    return end <= MAX_POSITION
