"""Many small blobs over one stream: all that are there come, wrong ones never; what is missing is left to others."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from peer.errors import Refused
from peer.exchange import bundle, pace
from peer.exchange.recent import SMALL_BYTES
from peer.identity import PeerId
from peer.swarm.memory import MemoryNetwork
from protos.swarm_pb2 import BlobsRequest
from tests.exchanges import NewPeer, id_of

pytest_plugins = ["tests.exchanges"]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "START_BYTES_PER_SECOND", 1e9)
    monkeypatch.setattr(bundle, "BUSY_SECONDS", (0.01, 0.01))


def small_blobs(count: int) -> list[bytes]:
    return [os.urandom(1 + 5000 * number) for number in range(count)]


async def test_small_blobs_come_in_one_conversation(new_peer: NewPeer) -> None:
    """As many as the source has, whatever pieces they fall into; what it lacks is left out and does no harm."""
    donor, taker = new_peer(), new_peer()
    contents = small_blobs(80)
    wanted = {donor.store.put(content): len(content) for content in contents}
    missing = bytes(32)
    asked: list[bytes] = []
    stream = taker._swarm.stream

    def noted(peer: PeerId, method: str, request: bytes, **options: Any) -> Any:
        asked.append(request)
        return stream(peer, method, request, **options)

    taker._swarm.stream = noted  # type: ignore[method-assign]
    await taker.fetch_small({missing: 100, **wanted}, id_of(donor))
    assert all(taker.store.check(blob) for blob in wanted)
    assert not taker.store.has(missing)
    assert len(asked) == len(list(bundle.bundles(wanted))) < 10


async def test_whoever_sends_other_bytes_in_a_bundle_is_known_as_a_liar(
    new_peer: NewPeer, network: MemoryNetwork
) -> None:
    """Nothing of what it sent is stored under a name that it does not have, and it is not asked again."""
    donor, taker = new_peer(), new_peer()
    wanted = {donor.store.put(content): len(content) for content in small_blobs(3)}
    network.corrupt(id_of(donor))
    await taker.fetch_small(wanted, id_of(donor))
    assert all(taker.store.check(blob) for blob in wanted if taker.store.has(blob))
    assert not all(taker.store.has(blob) for blob in wanted)
    assert id_of(donor) in taker.donors.liars


async def test_a_bundle_that_breaks_off_leaves_the_rest_to_others(new_peer: NewPeer, network: MemoryNetwork) -> None:
    """A source that dies in the middle costs nothing that came before; `fetch` gets the rest elsewhere."""
    donor, other, taker = new_peer(), new_peer(), new_peer()
    wanted = {donor.store.put(content): len(content) for content in small_blobs(80) if other.store.put(content)}
    network.limit(20e6, id_of(donor))
    fetching = asyncio.create_task(taker.fetch_small(wanted, id_of(donor)))
    while not any(taker.store.has(blob) for blob in wanted):
        await asyncio.sleep(0.005)
    network.kill(id_of(donor))
    await fetching
    rest = {blob: size for blob, size in wanted.items() if not taker.store.has(blob)}
    assert rest
    await asyncio.gather(*(taker.fetch(blob, size, [id_of(other)], deadline_seconds=10) for blob, size in rest.items()))
    assert all(taker.store.check(blob) for blob in wanted)


async def test_a_busy_source_is_asked_for_a_bundle_again(new_peer: NewPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has what is wanted and is free in a moment: nobody else need be asked."""
    donor, taker = new_peer(), new_peer()
    wanted = {donor.store.put(content): len(content) for content in small_blobs(3)}
    answers = iter((True, False))
    monkeypatch.setattr(donor, "_is_busy", lambda requester: next(answers))
    await taker.fetch_small(wanted, id_of(donor))
    assert all(taker.store.check(blob) for blob in wanted)


async def test_a_blob_in_a_bundle_under_way_is_not_asked_for_again(new_peer: NewPeer, network: MemoryNetwork) -> None:
    """Two who want the same at the same time share the conversation."""
    donor, taker = new_peer(), new_peer()
    wanted = {donor.store.put(content): len(content) for content in small_blobs(20)}
    network.delay(0.05, id_of(donor))
    await asyncio.gather(*(taker.fetch_small(wanted, id_of(donor)) for _ in range(3)))
    assert taker.bytes_received == sum(wanted.values()) + len(wanted)  # and a byte before each


@pytest.mark.parametrize(
    ("hashes", "sizes"),
    [
        ([b"short"], [1]),
        ([bytes(32)], []),
        ([bytes(32)], [SMALL_BYTES + 1]),
        ([bytes([number]) * 32 for number in range(9)], [SMALL_BYTES] * 9),
        ([number.to_bytes(32, "big") for number in range(bundle.MAX_BLOBS + 1)], [1] * (bundle.MAX_BLOBS + 1)),
    ],
)
async def test_a_bundle_has_limits(new_peer: NewPeer, hashes: list[bytes], sizes: list[int]) -> None:
    """What asks for more than small blobs, or for too many, is refused before a disk is read."""
    donor, taker = new_peer(), new_peer()
    request = BlobsRequest(hashes=hashes, sizes=sizes).SerializeToString()
    with pytest.raises(Refused, match=r"hash|at most"):
        async for _ in taker._swarm.stream(
            id_of(donor), bundle.METHOD, request, timeout_seconds=1, max_bytes=bundle.MAX_BYTES
        ):
            pass


@given(st.data())
def test_a_bundle_reads_the_same_in_any_pieces(data: st.DataObject) -> None:
    """Wherever the network cuts the answer, the same blobs come out, and only those that are there."""
    contents = data.draw(st.lists(st.binary(min_size=0, max_size=40), max_size=8, unique=True))
    here = data.draw(st.sets(st.sampled_from(contents))) if contents else set()
    answer = b"".join(b"\1" + content if content in here else b"\0" for content in contents)
    reader = bundle.Reader({blake3(content).digest(): len(content) for content in contents})
    found: dict[bytes, bytes] = {}
    while answer:
        cut = data.draw(st.integers(1, len(answer)))
        found |= reader.feed(answer[:cut])
        answer = answer[cut:]
    assert reader.is_complete
    assert set(found.values()) == here
    with pytest.raises(bundle.WrongBytesError):
        bundle.Reader({bytes(32): 1}).feed(b"\2x")
