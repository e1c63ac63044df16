"""The order of the training sequences: a keyed permutation with random access and no state.

Positions count without end; position // rows is the epoch and every epoch visits every row exactly once. A lease is a
range of positions, so whoever holds the key (it is derived from the run's seed) can say which rows a peer trained on.

A permutation over the whole data set would scatter every batch over all shards, and a peer on a home link would have to
fetch all of them for its first step. Rows are therefore shuffled on two levels: the order of *windows* (a few shards of
consecutive rows), and the rows within each window. The price: rows of different windows do not mix inside one peer's
batch. They still mix in the round, where peers work on different leases.

The permutation is a balanced Feistel network over the smallest 4**k >= n values, cycle-walked into [0, n) (Black and
Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). It shuffles; it is not meant to keep a secret.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from blake3 import blake3

ROUNDS = 6

Indices = npt.NDArray[np.int64]


def order_key(seed: int) -> bytes:
    """The 32-byte key of a run's data order."""
    return blake3(b"order" + seed.to_bytes(16, "little")).digest()


def position_to_row(key: bytes, position: int, rows: int, window: int = 0) -> int:
    """The row in [0, rows) that stands at `position` of the endless order."""
    return int(positions_to_rows(key, [position], rows, window)[0])


def positions_to_rows(key: bytes, positions: Sequence[int] | Indices, rows: int, window: int = 0) -> Indices:
    """Rows at the given positions, int64, in the given order.

    Args:
        key: of the run, see `order_key`.
        positions: any non-negative integers; a `range` is fastest, since it stays within few windows.
        rows: of the data set.
        window: rows that are shuffled among themselves; 0 means all of them.
    """
    if rows <= 0:
        raise ValueError("a data set without rows has no order")
    where = np.asarray(positions, dtype=np.int64)
    if where.size and int(where.min()) < 0:
        raise ValueError("positions start at 0")
    window = min(window, rows) or rows
    whole_windows = rows // window
    epochs, offsets = np.divmod(where, rows)
    slots, inner = np.divmod(offsets, window)
    result = np.empty_like(where)
    # The last, shorter window stays at the end of every epoch: then all others have one size and division finds them.
    slots_per_epoch = whole_windows + 1
    group_of = epochs * slots_per_epoch + slots
    for group in np.unique(group_of):
        epoch, slot = divmod(int(group), slots_per_epoch)
        mine = group_of == group
        whole = slot < whole_windows
        chosen = int(permute(_round_keys(key, epoch, -1), np.array([slot]), whole_windows)[0]) if whole else slot
        size = window if whole else rows - whole_windows * window
        result[mine] = chosen * window + permute(_round_keys(key, epoch, chosen), inner[mine], size)
    return result


def permute(round_keys: npt.NDArray[np.uint64], values: Indices, size: int) -> Indices:
    """Images of `values`, all in [0, size), under the bijection of [0, size) that the round keys choose."""
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    images = values.astype(np.uint64)
    outside = np.ones(images.shape, dtype=bool)
    while outside.any():  # the domain is less than four times too large: a few turns
        images[outside] = _feistel(round_keys, images[outside], half_bits)
        outside = images >= size
    return images.astype(np.int64)


def _feistel(
    round_keys: npt.NDArray[np.uint64], values: npt.NDArray[np.uint64], half_bits: int
) -> npt.NDArray[np.uint64]:
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> shift, values & mask
    for key in round_keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << shift) | right


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea and Flood, 2014): every input bit reaches every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _round_keys(key: bytes, epoch: int, window: int) -> npt.NDArray[np.uint64]:
    name = key + epoch.to_bytes(8, "little") + window.to_bytes(8, "little", signed=True)
    return np.frombuffer(blake3(name).digest(length=8 * ROUNDS), dtype="<u8")
