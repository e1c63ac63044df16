"""What a peer trains on: leased positions of the run's data, or private rows of its own.

Both give batches in a fixed order; only the first has anything to do with the sequencer.
"""

from __future__ import annotations

import contextlib
from typing import Protocol

import numpy as np

from peer.data.private import PrivateRows
from peer.data.reader import Rows, ShardReader
from peer.errors import CommonweightsError
from peer.rounds.ranges import Ranges
from protos import swarm_pb2

LEASE_HORIZON_SECONDS = 30.0  # how much work a peer likes to have in stock


class Feed(Protocol):
    private_data: str  # what the owner calls the data; empty for the run's own
    stock: Ranges  # leased and not trained on yet

    async def batch(self, sequences: int) -> tuple[Ranges, Rows] | None:
        """The next batch and its positions; None when there is too little in stock.

        Raises:
            DataError: the rows could not be had.
        """

    async def look_ahead(self, sequences: int) -> None:
        """While a batch is trained on: read the next one, so that the device need not wait. Never fails."""

    def used(self, positions: Ranges) -> None:
        """A batch was trained on (or skipped): it does not come again."""

    def release(self) -> None:
        """Give back what is in stock: there will be no training for a while."""

    def wanted(self, tokens_per_second: float) -> int:
        """How many more sequences should be leased."""

    def take(self, reply: swarm_pb2.HeartbeatReply, asked: Ranges) -> bool:
        """New leases and lost ones; whether there were any. `asked`: the stock that the heartbeat told of."""


class LeasedFeed:
    """Rows of the run's data set, at positions that the sequencer leases to this peer."""

    private_data = ""

    def __init__(self, reader: ShardReader, sequence_length: int, batch_sequences: int) -> None:
        self.stock = Ranges()
        self._reader = reader
        self._sequence_length = sequence_length
        self._batch_sequences = batch_sequences
        self._ahead: tuple[Ranges, Rows] | None = None

    async def batch(self, sequences: int) -> tuple[Ranges, Rows] | None:
        positions = self.stock.first(sequences)
        if len(positions) < sequences:
            return None
        if self._ahead is not None and self._ahead[0] == positions:
            return self._ahead
        return positions, await self._read(positions)

    async def look_ahead(self, sequences: int) -> None:
        positions = (self.stock - self.stock.first(sequences)).first(sequences)
        if len(positions) == sequences:
            with contextlib.suppress(CommonweightsError):  # if it is still there, `batch` runs into it and tells
                self._ahead = positions, await self._read(positions)

    async def _read(self, positions: Ranges) -> Rows:
        return await self._reader.rows(np.concatenate([np.arange(*pair) for pair in positions]))

    def used(self, positions: Ranges) -> None:
        self.stock -= positions

    def release(self) -> None:
        self.stock = Ranges()

    def wanted(self, tokens_per_second: float) -> int:
        """So many more that the stock lasts for the next `LEASE_HORIZON_SECONDS`."""
        by_speed = int(tokens_per_second * LEASE_HORIZON_SECONDS / self._sequence_length)
        return max(0, max(4 * self._batch_sequences, by_speed) - len(self.stock))

    def take(self, reply: swarm_pb2.HeartbeatReply, asked: Ranges) -> bool:
        revoked = Ranges.from_protos(reply.revoked) & asked
        self.stock = (self.stock | Ranges.from_protos(reply.leased)) - revoked
        return bool(reply.leased or revoked)


class PrivateFeed:
    """Rows of the peer's own files, which nobody else sees; the records say that it trained on private data."""

    stock = Ranges()

    def __init__(self, rows: PrivateRows, private_data: str) -> None:
        self.private_data = private_data
        self._rows = rows
        self._next = 0

    async def batch(self, sequences: int) -> tuple[Ranges, Rows] | None:
        rows = await self._rows.rows(range(self._next, self._next + sequences))
        self._next += sequences
        return Ranges(), rows

    async def look_ahead(self, sequences: int) -> None:
        pass

    def used(self, positions: Ranges) -> None:
        pass

    def release(self) -> None:
        pass

    def wanted(self, tokens_per_second: float) -> int:
        return 0

    def take(self, reply: swarm_pb2.HeartbeatReply, asked: Ranges) -> bool:
        return False
