"""What is fetched before its record exists: large payloads at once, small ones one question after the other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from peer.background import Background
from peer.errors import UnreachableError
from peer.exchange.recent import SMALL_BYTES
from peer.identity import Identity, PeerId
from peer.rounds import prefetch
from peer.rounds.prefetch import Prefetch
from protos import swarm_pb2
from tests.small_run import replica_of, small_run

Question = dict[int, int]  # sizes in bytes by number


class Asked:
    """What was asked for, and when it comes."""

    def __init__(self) -> None:
        self.questions: list[Question] = []
        self.answers: list[asyncio.Future[None]] = []

    async def fetch_blobs(self, wanted: Sequence[tuple[bytes, int, PeerId]]) -> None:
        self.questions.append({hash_[0]: size for hash_, size, _ in wanted})
        self.answers.append(asyncio.get_running_loop().create_future())
        await self.answers[-1]

    async def until(self, questions: int) -> None:
        async with asyncio.timeout(10):
            while len(self.questions) < questions:
                await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def prefetching(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Prefetch, Asked]]:
    monkeypatch.setattr(prefetch, "max_payload_bytes", lambda parameters: 2 * SMALL_BYTES)
    async with small_run(folder) as run:
        replica, asked, background = replica_of(run.log, folder / "own", run.network.node()), Asked(), Background()
        monkeypatch.setattr(replica, "fetch_blobs", asked.fetch_blobs)
        yield Prefetch(replica, background), asked
        await background.end()
        replica.close()


def view(**sizes: int) -> swarm_pb2.WatchReply:
    """Announcements of payloads "p1", "p2", ... with their sizes in bytes."""
    maker = Identity.new().peer_id.public_key
    return swarm_pb2.WatchReply(
        announced=[
            swarm_pb2.Announcement(payload_hash=bytes([int(name[1:])] * 32), payload_bytes=size, peer=maker)
            for name, size in sizes.items()
        ]
    )


async def test_small_payloads_wait_for_those_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What three views announce while a question is out is asked for together; nothing twice."""
    async with prefetching(tmp_path, monkeypatch) as (prefetch, asked):
        prefetch.look(view(p1=10))
        prefetch.look(view(p1=10, p2=20))
        prefetch.look(view(p1=10, p2=20, p3=30))
        await asked.until(1)
        asked.answers[0].set_result(None)
        await asked.until(2)
        prefetch.look(view(p1=10, p2=20, p3=30))
        asked.answers[1].set_result(None)
        assert asked.questions == [{1: 10}, {2: 20, 3: 30}]


async def test_large_payloads_wait_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a home link each of them takes minutes. What can be no payload is not fetched at all."""
    async with prefetching(tmp_path, monkeypatch) as (prefetch, asked):
        prefetch.look(view(p1=10))
        await asked.until(1)
        prefetch.look(view(p1=10, p2=20, p3=SMALL_BYTES + 1, p4=2 * SMALL_BYTES + 1))
        await asked.until(2)
        assert asked.questions == [{1: 10}, {3: SMALL_BYTES + 1}]


async def test_what_did_not_come_is_asked_for_at_the_next_view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at once: who cannot be reached is not helped by asking without a pause."""
    async with prefetching(tmp_path, monkeypatch) as (prefetch, asked):
        prefetch.look(view(p1=10))
        await asked.until(1)
        asked.answers[0].set_exception(UnreachableError("away"))
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(asked.questions) == 1
        prefetch.look(view(p1=10, p2=20))
        await asked.until(2)
        assert asked.questions[1] == {1: 10, 2: 20}
