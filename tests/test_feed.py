"""What a peer trains on next: leased positions, each once, read while the device is busy with those before."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import numpy as np

from peer.data.feed import LeasedFeed
from peer.data.reader import Rows, ShardReader
from peer.errors import DataError
from peer.rounds.ranges import Ranges


class Reader:
    """Rows that say which positions they are of; `asked` counts how often somebody had to wait for them."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.out_of_order = False

    async def rows(self, positions: Iterable[int]) -> Rows:
        if self.out_of_order:
            raise DataError("nobody has this shard")
        self.asked.append([int(position) for position in positions])
        return np.array(self.asked[-1])[:, None]


def feed_of(reader: Reader, positions: Ranges) -> LeasedFeed:
    feed = LeasedFeed(cast(ShardReader, reader), sequence_length=8, batch_sequences=2)
    feed.stock = positions
    return feed


async def test_the_next_batch_is_read_ahead_and_is_the_one_that_comes() -> None:
    """Batches come in the order of the leases, each read once, also when the next one was read ahead."""
    reader = Reader()
    feed = feed_of(reader, Ranges(((0, 3), (7, 10))))
    seen = []
    while (batch := await feed.batch(2)) is not None:
        positions, rows = batch
        await feed.look_ahead(2)
        seen.append(rows[:, 0].tolist())
        feed.used(positions)
    assert seen == reader.asked == [[0, 1], [2, 7], [8, 9]]


async def test_what_was_read_ahead_is_forgotten_when_its_lease_is_lost() -> None:
    """A revoked position is not trained on because its rows happened to be here."""
    reader = Reader()
    feed = feed_of(reader, Ranges(((0, 6),)))
    first = await feed.batch(2)
    await feed.look_ahead(2)
    assert first is not None
    feed.used(first[0])
    feed.stock -= Ranges(((2, 3),))
    second = await feed.batch(2)
    assert second is not None and second[1][:, 0].tolist() == [3, 4]


async def test_trouble_ahead_is_told_when_its_turn_comes() -> None:
    """Looking ahead never fails; the batch that cannot be had does, and can be had once the trouble is over."""
    reader = Reader()
    feed = feed_of(reader, Ranges(((0, 4),)))
    first = await feed.batch(2)
    assert first is not None
    reader.out_of_order = True
    await feed.look_ahead(2)
    feed.used(first[0])
    try:
        await feed.batch(2)
        raise AssertionError("rows came from nowhere")
    except DataError:
        reader.out_of_order = False
    second = await feed.batch(2)
    assert second is not None and second[1][:, 0].tolist() == [2, 3]
