"""Blobs get through whatever the sources do, and never wrong ones; serving has limits."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

import peer.exchange.download
import peer.exchange.exchange
import peer.exchange.intake
import peer.exchange.pace
from peer.errors import CommonweightsError, Refused, UnreachableError
from peer.exchange import ratelimit
from peer.exchange.blobs import SEGMENT_BYTES, BlobStore
from peer.exchange.donors import Donors
from peer.exchange.exchange import Exchange
from peer.exchange.intake import Intake
from peer.exchange.pace import ECHO_SECONDS, LOOK_SECONDS, START_BYTES_PER_SECOND, Echoes, Pace, adjusted
from peer.exchange.ratelimit import RateLimiter, full, spend
from peer.identity import Identity, PeerId
from peer.swarm import HivemindSwarm
from peer.swarm.interface import PIECE_BYTES
from peer.swarm.memory import MemoryNetwork, MemorySwarm
from protos.swarm_pb2 import BlobRequest
from tests.exchanges import NewPeer, id_of

pytest_plugins = ["tests.exchanges"]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines short enough for tests; the logic does not depend on their size."""
    monkeypatch.setattr(peer.exchange.pace, "START_BYTES_PER_SECOND", 1e9)
    monkeypatch.setattr(peer.exchange.download, "SILENCE_SECONDS", 1.0)
    monkeypatch.setattr(peer.exchange.download, "STALLED_SECONDS", 0.1)
    monkeypatch.setattr(peer.exchange.download, "MORE_SECONDS", 1e-6)
    monkeypatch.setattr(peer.exchange.download, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(peer.exchange.download, "LOOK_SECONDS", 0.02)


def put_everywhere(content: bytes, donors: Iterable[Exchange]) -> bytes:
    return [donor.store.put(content) for donor in donors].pop()


async def test_a_blob_comes_over(new_peer: NewPeer) -> None:
    """One source, several segments: same bytes, counted on both sides, nothing asked when it is there already."""
    donor, taker = new_peer(), new_peer()
    content = os.urandom(2 * SEGMENT_BYTES + 12345)
    blob = donor.store.put(content)
    await taker.fetch(blob, len(content), [id_of(donor)], deadline_seconds=10)
    assert taker.store.check(blob)
    assert donor.bytes_sent == taker.bytes_received == len(content)
    await taker.fetch(blob, len(content), [], deadline_seconds=0)


async def test_the_empty_blob_comes_over(new_peer: NewPeer) -> None:
    """Nothing has to be asked of anybody for zero bytes."""
    taker = new_peer()
    await taker.fetch(blake3(b"").digest(), 0, [], deadline_seconds=5)
    assert taker.store.read(blake3(b"").digest()) == b""


async def test_several_sources_share_the_work(new_peer: NewPeer) -> None:
    """Of a large blob, every one of four sources gives a part, and no byte is sent twice."""
    donors, taker = [new_peer() for _ in range(4)], new_peer()
    content = os.urandom(8 * SEGMENT_BYTES)
    blob = put_everywhere(content, donors)
    await taker.fetch(blob, len(content), [id_of(donor) for donor in donors], deadline_seconds=20)
    assert taker.store.check(blob)
    assert all(donor.bytes_sent > 0 for donor in donors)
    assert taker.bytes_received == len(content)


async def test_a_small_blob_is_not_fetched_twice_at_once(new_peer: NewPeer) -> None:
    """One segment is one source's work; the others stay unasked."""
    donors, taker = [new_peer() for _ in range(3)], new_peer()
    content = os.urandom(SEGMENT_BYTES)
    blob = put_everywhere(content, donors)
    await taker.fetch(blob, len(content), [id_of(donor) for donor in donors], deadline_seconds=10)
    assert [donor.bytes_sent for donor in donors] == [SEGMENT_BYTES, 0, 0]


async def test_concurrent_fetches_are_one_download(new_peer: NewPeer) -> None:
    """Three callers at once cost the bytes of one, and the sources of all are used."""
    donor, taker = new_peer(), new_peer()
    content = os.urandom(SEGMENT_BYTES)
    blob = donor.store.put(content)
    stranger = new_peer()
    sources = [[id_of(stranger)], [id_of(donor)], []]
    await asyncio.gather(*(taker.fetch(blob, len(content), s, deadline_seconds=10) for s in sources))
    assert taker.bytes_received == len(content)


async def test_a_cancelled_caller_does_not_stop_the_others(new_peer: NewPeer) -> None:
    """A shared download ends early only when nobody waits for it any more; then it ends at once."""
    donor, taker = new_peer(upload_bytes_per_second=4_000_000), new_peer()
    content = os.urandom(SEGMENT_BYTES)
    blob = donor.store.put(content)
    fetches = [
        asyncio.create_task(taker.fetch(blob, len(content), [id_of(donor)], deadline_seconds=20)) for _ in range(2)
    ]
    await until(lambda: taker.bytes_received > 0)
    fetches[0].cancel()
    await fetches[1]
    assert taker.store.check(blob)
    other = donor.store.put(os.urandom(SEGMENT_BYTES))
    fetch = asyncio.create_task(taker.fetch(other, SEGMENT_BYTES, [id_of(donor)], deadline_seconds=20))
    await until(lambda: taker.bytes_received > len(content))
    fetch.cancel()
    await asyncio.gather(fetch, return_exceptions=True)
    assert not taker._fetching and not donor._serving


async def test_wrong_bytes_never_become_a_blob(new_peer: NewPeer, network: MemoryNetwork) -> None:
    """A single lying source: refused with its name and the reason; the store stays empty."""
    liar, taker = new_peer(), new_peer()
    content = os.urandom(100_000)
    blob = liar.store.put(content)
    network.corrupt(id_of(liar))
    with pytest.raises(UnreachableError, match=f"{id_of(liar).short}: sent wrong bytes"):
        await taker.fetch(blob, len(content), [id_of(liar)], deadline_seconds=10)
    assert not taker.store.has(blob)


async def test_a_liar_among_honest_sources_costs_time_only(new_peer: NewPeer, network: MemoryNetwork) -> None:
    """Segments of a liar mixed with honest ones: the blob still arrives, right."""
    liar, honest, taker = new_peer(), [new_peer(), new_peer()], new_peer()
    content = os.urandom(6 * SEGMENT_BYTES)
    blob = put_everywhere(content, (liar, *honest))
    network.corrupt(id_of(liar))
    sources = [id_of(donor) for donor in (liar, *honest)]
    await taker.fetch(blob, len(content), sources, deadline_seconds=30)
    assert taker.store.check(blob)


@pytest.mark.parametrize("fault", ["dead", "frozen", "killed", "empty", "silent", "truncated", "overlong"])
async def test_a_bad_source_is_replaced(new_peer: NewPeer, network: MemoryNetwork, fault: str) -> None:
    """Whatever the first source does, the second one finishes the job."""
    bad, good, taker = new_peer(), new_peer(), new_peer()
    content = os.urandom(SEGMENT_BYTES)
    blob = good.store.put(content)
    source = id_of(bad)
    if fault == "dead":
        network.kill(source)
    elif fault == "frozen":
        bad.store.put(content)
        network.freeze(source)
    elif fault == "killed":
        bad.store.put(content)
        network.delay(0.02, source)
        asyncio.get_running_loop().call_later(0.1, network.kill, source)
    elif fault != "empty":
        source = dishonest(network, content, fault)
    await taker.fetch(blob, len(content), [source, id_of(good)], deadline_seconds=20)
    assert taker.store.check(blob)
    assert good.bytes_sent > 0


def dishonest(network: MemoryNetwork, content: bytes, fault: str) -> PeerId:
    """A peer that serves blobs in a way of its own."""

    async def serve(requester: PeerId, request: bytes) -> AsyncIterator[bytes]:
        wanted = BlobRequest.FromString(request)
        if fault == "silent":
            yield content[: PIECE_BYTES // 2]
            await asyncio.sleep(3600)
        elif fault == "truncated":
            yield content[wanted.offset : wanted.offset + 1000]
        else:
            while True:
                yield b"x" * PIECE_BYTES

    node = network.node()
    node.serve_stream(peer.exchange.download.METHOD, serve, max_request_bytes=128)
    return node.peer_id


async def test_no_source_left_says_what_was_tried(new_peer: NewPeer, network: MemoryNetwork) -> None:
    """Every source with its own reason, long before the deadline."""
    empty, dead, taker = new_peer(), new_peer(), new_peer()
    network.kill(id_of(dead))
    began = time.monotonic()
    with pytest.raises(UnreachableError) as caught:
        await taker.fetch(b"\1" * 32, 1000, [id_of(empty), id_of(dead)], deadline_seconds=60)
    assert f"{id_of(empty).short}: no such blob here" in str(caught.value)
    assert f"{id_of(dead).short}: peer {id_of(dead).short}: cannot be reached" in str(caught.value)
    assert time.monotonic() - began < 30
    with pytest.raises(UnreachableError, match="no sources"):
        await taker.fetch(b"\2" * 32, 1000, [], deadline_seconds=60)


async def test_the_deadline_holds(new_peer: NewPeer, network: MemoryNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen source and a short deadline: an error in time, nothing left running."""
    monkeypatch.setattr(peer.exchange.download, "SILENCE_SECONDS", 60.0)
    donor, taker = new_peer(), new_peer()
    blob = donor.store.put(b"content")
    network.freeze(id_of(donor))
    with pytest.raises(UnreachableError, match=r"not within 0\.3 s"):
        await taker.fetch(blob, 7, [id_of(donor)], deadline_seconds=0.3)
    assert not taker._fetching and not donor._serving


async def test_an_interrupted_download_goes_on_where_it_was(new_peer: NewPeer, network: MemoryNetwork) -> None:
    """The second try asks for the rest only, even in a new process."""
    donor, taker = new_peer(upload_bytes_per_second=3_000_000), new_peer()
    content = os.urandom(SEGMENT_BYTES)
    blob = donor.store.put(content)
    with pytest.raises(UnreachableError):
        await taker.fetch(blob, len(content), [id_of(donor)], deadline_seconds=0.4)
    came = taker.bytes_received
    assert 0 < came < len(content)
    donor.upload.set_rate(None)
    again = Exchange(network.node(), BlobStore(taker.store.folder))
    await again.fetch(blob, len(content), [id_of(donor)], deadline_seconds=20)
    assert again.store.check(blob) and again.bytes_received == len(content) - came


async def test_a_rotten_beginning_is_not_fatal(new_peer: NewPeer) -> None:
    """What an earlier run left on disk may be wrong: the blob is fetched anew, and the source is not blamed."""
    donor, taker = new_peer(), new_peer()
    content = os.urandom(2 * SEGMENT_BYTES)
    blob = donor.store.put(content)
    partial = taker.store.partial(blob, len(content))
    partial.write(0, 0, b"rotten" * 1000)
    partial.close()
    await taker.fetch(blob, len(content), [id_of(donor)], deadline_seconds=20)
    assert taker.store.check(blob)


async def test_a_full_disk_reaches_the_caller(new_peer: NewPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as a source's fault."""
    donor, taker = new_peer(), new_peer()
    blob = donor.store.put(b"content")

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full_disk)
    with pytest.raises(CommonweightsError, match="disk is full"):
        await taker.fetch(blob, 7, [id_of(donor)], deadline_seconds=10)


async def test_serving_has_limits(new_peer: NewPeer, network: MemoryNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    """One requester gets a few streams at once, then a refusal; another one is still served; all slots come back."""
    monkeypatch.setattr(peer.exchange.exchange, "MIN_MOVING", 100)  # the limit here is the one of a peer
    donor = new_peer(upload_bytes_per_second=100_000)
    blob = donor.store.put(os.urandom(SEGMENT_BYTES))
    greedy, modest = network.node(), network.node()
    request = BlobRequest(hash=blob).SerializeToString()

    def ask(who: MemorySwarm) -> AsyncIterator[bytes]:
        return who.stream(
            id_of(donor), peer.exchange.download.METHOD, request, timeout_seconds=10, max_bytes=SEGMENT_BYTES
        )

    open_streams = [ask(greedy) for _ in range(peer.exchange.exchange.MAX_SERVED_PER_PEER)]
    waiting = [asyncio.ensure_future(anext(stream)) for stream in open_streams]
    await until(lambda: donor._serving.total() == len(open_streams))
    with pytest.raises(Refused, match="busy"):
        await anext(ask(greedy))
    waiting.append(asyncio.ensure_future(anext(ask(modest))))
    await until(lambda: len(donor._serving) == 2)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    await until(lambda: not donor._serving)


async def test_a_new_blob_is_not_asked_of_everybody_at_once(new_peer: NewPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty sources that do not have it yet are asked one by one, more and more slowly, until one does."""
    monkeypatch.setattr(peer.exchange.download, "RETRY_SECONDS", 0.5)
    asked: list[bytes] = []

    def note(who: PeerId, blob: bytes) -> None:
        asked.append(blob)

    others, taker = [new_peer(admission=note) for _ in range(30)], new_peer()
    content = os.urandom(1000)
    blob = blake3(content).digest()
    fetching = asyncio.ensure_future(
        taker.fetch(blob, len(content), [id_of(other) for other in others], deadline_seconds=20)
    )
    await until(lambda: len(asked) >= 5)
    for other in others:
        other.store.put(content)
    began, before = time.monotonic(), len(asked)
    await fetching
    assert len(asked) <= before + 1
    assert time.monotonic() - began < 2.0


async def test_frozen_takers_cost_others_nothing(
    new_peer: NewPeer, network: MemoryNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crowd that opens streams and reads nothing: once that shows, they hold no places, and a blob gets through at
    the donor's full rate."""
    monkeypatch.setattr(peer.exchange.exchange, "STUCK_SECONDS", 0.05)
    donor, taker = new_peer(upload_bytes_per_second=4_000_000), new_peer()
    blob = donor.store.put(os.urandom(SEGMENT_BYTES))
    request = BlobRequest(hash=blob).SerializeToString()
    frozen = [
        network.node().stream(id_of(donor), "blob", request, timeout_seconds=60, max_bytes=SEGMENT_BYTES)
        for _ in range(40)
    ]
    for stream in frozen:
        with contextlib.suppress(Refused):
            await anext(stream)
        await asyncio.sleep(0.01)
    began = time.monotonic()
    await taker.fetch(blob, SEGMENT_BYTES, [id_of(donor)], deadline_seconds=20)
    assert donor._serving.total() > 20, "they are there all the time"
    assert time.monotonic() - began < 10
    for stream in frozen:
        await stream.aclose()


async def test_who_does_not_have_it_yet_is_asked_again(new_peer: NewPeer) -> None:
    """As long as somebody slow has the blob, one that gets it meanwhile helps; without anybody, the end comes soon."""
    slow, late, taker = new_peer(upload_bytes_per_second=400_000), new_peer(), new_peer()
    content = os.urandom(2 * SEGMENT_BYTES)
    blob = slow.store.put(content)
    fetch = asyncio.create_task(taker.fetch(blob, len(content), [id_of(late), id_of(slow)], deadline_seconds=60))
    await until(lambda: taker.bytes_received > 0)
    late.store.put(content)
    await fetch
    assert late.bytes_sent > slow.bytes_sent > 0


async def test_a_liar_is_not_asked_again(new_peer: NewPeer, network: MemoryNetwork) -> None:
    """Once found out it is left out of other blobs too, though it is the first in line."""
    liar, honest, taker = new_peer(), new_peer(), new_peer()
    contents = [os.urandom(100_000) for _ in range(3)]
    blobs = [put_everywhere(content, [liar, honest]) for content in contents]
    network.corrupt(id_of(liar))
    for blob in blobs:
        await taker.fetch(blob, 100_000, [id_of(liar), id_of(honest)], deadline_seconds=20)
    assert liar.bytes_sent == 100_000 and honest.bytes_sent == 300_000
    assert list(taker.donors.liars) == [id_of(liar)]


async def test_a_full_link_is_not_offered_more(new_peer: NewPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the first source fills the taker's own link, nobody else is asked, and nothing comes twice."""
    monkeypatch.setattr(peer.exchange.download, "MORE_SECONDS", 0.5)
    monkeypatch.setattr(peer.exchange.download, "SLOW_SECONDS", 0.5)
    monkeypatch.setattr(peer.exchange.intake, "MEMORY_SECONDS", 0.2)
    donors, taker = [new_peer() for _ in range(3)], new_peer(download_bytes_per_second=8_000_000)
    contents = [os.urandom(2 * SEGMENT_BYTES) for _ in range(2)]
    blobs = [put_everywhere(content, donors) for content in contents]
    sources = [id_of(donor) for donor in donors]
    await asyncio.gather(*(taker.fetch(blob, 2 * SEGMENT_BYTES, sources, deadline_seconds=20) for blob in blobs))
    assert [donor.bytes_sent for donor in donors] == [4 * SEGMENT_BYTES, 0, 0]


def test_the_intake_is_full_at_the_speed_of_the_link() -> None:
    """By pieces of half a second each, as on the slowest links; and it empties when nothing comes."""
    now = 0.0
    intake = Intake(RateLimiter(500_000, clock=lambda: now), clock=lambda: now)
    assert not intake.is_full
    for _ in range(20):
        now += 0.5
        intake.came(250_000)
    assert intake.is_full
    now += 0.5
    assert intake.is_full
    now += 2.0
    assert not intake.is_full


def test_load_spreads_by_speed() -> None:
    """Different nodes ask different holders first; one that was seen to be four times as fast is asked first more
    often; one that failed is asked later."""
    donors = [Identity.new().peer_id for _ in range(4)]
    blob = os.urandom(32)

    def firsts(fast: PeerId | None = None, failed: PeerId | None = None) -> Counter[PeerId]:
        count: Counter[PeerId] = Counter()
        for _ in range(400):
            mine = Donors(PeerId(os.urandom(32)))
            for donor in donors if fast else []:
                mine.gave(donor, 4000 if donor == fast else 1000, 1.0)
            if failed:
                mine.failed(failed)
            count[mine.order(blob, donors)[0]] += 1
        return count

    assert min(firsts().values()) > 50
    assert firsts(fast=donors[2])[donors[2]] > 160
    assert firsts(failed=donors[1])[donors[1]] < 70


def simulated(link: float) -> tuple[float, float]:
    """A sender paced by `adjusted` for a minute on a link (bytes per second) with an endless queue: what share of it
    was used, and the longest that anything waited in the second half."""
    pace, queued, passed, worst, now = Pace(START_BYTES_PER_SECOND), 0.0, 0.0, 0.0, 0.0
    while now < 60:
        elapsed = max(LOOK_SECONDS, min(ECHO_SECONDS, queued / link))
        moved = pace.bytes_per_second * elapsed
        out = min(queued + moved, link * elapsed)
        queued, passed, now = queued + moved - out, passed + out, now + elapsed
        worst = max(worst, queued / link) if now > 30 else 0.0
        pace = adjusted(pace, min(ECHO_SECONDS, queued / link), moved, elapsed)
    return passed / now / link, worst


@given(link=st.floats(80e3, 200e6))
def test_the_pace_finds_the_link(link: float) -> None:
    """From 0.6 Mbit/s to 1.6 Gbit/s: most of it is used, and the queue stays far below a heartbeat's patience."""
    used, worst = simulated(link)
    assert used > 0.6 and worst < 2.0


def test_a_pace_that_is_not_used_does_not_grow() -> None:
    """What little traffic there was says nothing about a higher rate."""
    pace = Pace(1e6)
    assert adjusted(pace, 0.0, 1000.0, LOOK_SECONDS).bytes_per_second == 1e6
    assert adjusted(pace, 3.0, 0.0, LOOK_SECONDS).bytes_per_second == 1e6


def test_what_an_answer_waited_is_beyond_the_quickest_of_its_partner() -> None:
    """The first answer of a partner tells nothing; a quicker one than ever has not waited."""
    a, b = Identity.new().peer_id, Identity.new().peer_id
    echoes = Echoes()
    assert echoes.waited_seconds(a, 0.02) is None and echoes.waited_seconds(b, 0.1) is None
    assert echoes.waited_seconds(a, 1.0) == pytest.approx(0.98, abs=0.03)
    assert echoes.waited_seconds(b, 0.09) == 0.0


def test_what_a_link_has_borne_is_given_up_slowly() -> None:
    """A queue that may be the other direction's, or the partners': it costs a quarter at once, and more if it stays."""
    pace = Pace(1e6, is_new=False)
    for _ in range(40):
        pace = adjusted(pace, 0.0, 250_000, LOOK_SECONDS)
    for _ in range(4):
        pace = adjusted(pace, ECHO_SECONDS, 50_000, LOOK_SECONDS)
    assert 600_000 < pace.bytes_per_second < 800_000
    for _ in range(60):
        pace = adjusted(pace, ECHO_SECONDS, 50_000, LOOK_SECONDS)
    assert pace.bytes_per_second < 200_000


async def test_full_links_of_the_partners_are_not_our_own(new_peer: NewPeer, network: MemoryNetwork) -> None:
    """Two partners whose own links are full are not believed as long as a third one answers at once."""
    server, takers = new_peer(), [new_peer() for _ in range(3)]
    pacer = server._pacer
    pacer._partners = dict.fromkeys(id_of(taker) for taker in takers)
    assert await pacer._queued(is_idle=True) < 0.05  # how quick they can be
    for slow in takers[1:]:
        network.delay(0.2, id_of(slow))
    assert await pacer._queued(is_idle=False) < 0.05
    network.delay(0.2, id_of(takers[0]))
    assert await pacer._queued(is_idle=False) > 0.15


async def test_a_busy_process_is_no_queue() -> None:
    """What share of a wait this process slept through is known, and little of it otherwise."""
    waiting = asyncio.create_task(peer.exchange.pace._with_lateness(asyncio.sleep(0.4, "answer")))
    await asyncio.sleep(0.01)
    time.sleep(0.35)  # noqa: ASYNC251
    answer, late_share = await waiting
    assert answer == "answer" and late_share > 0.5


async def test_a_new_rate_holds_for_those_who_wait() -> None:
    """Two spenders in debt for minutes pass in their order, within the time of the new rate."""
    limiter, passed = RateLimiter(65_536), list[int]()

    async def spender(number: int) -> None:
        await limiter.take(10_000_000)
        passed.append(number)

    spenders = [asyncio.create_task(spender(number)) for number in range(2)]
    await asyncio.sleep(0.01)
    limiter.set_rate(100_000_000)
    async with asyncio.timeout(5):
        await asyncio.gather(*spenders)
    assert passed == [0, 1]


async def test_nonsense_requests_are_refused(new_peer: NewPeer, network: MemoryNetwork) -> None:
    """Garbage, short hashes, unknown blobs, requests beyond the end, strangers the admission rule keeps out."""
    stranger = network.node()
    donor = new_peer(admission=lambda who, blob: "not of this run" if who == stranger.peer_id else None)
    blob = donor.store.put(b"0123456789")
    member = network.node()

    async def get(who: MemorySwarm, request: bytes) -> bytes:
        stream = who.stream(id_of(donor), peer.exchange.download.METHOD, request, timeout_seconds=5, max_bytes=1000)
        return b"".join([piece async for piece in stream])

    for request, reason in [
        (b"\xff\xff\xff", "not a valid message"),
        (BlobRequest(hash=b"short").SerializeToString(), "32 bytes"),
        (BlobRequest(hash=b"\0" * 32).SerializeToString(), "no such blob"),
        (b"x" * 1000, "limit"),
    ]:
        with pytest.raises(Refused, match=reason):
            await get(member, request)
    with pytest.raises(Refused, match="not of this run"):
        await get(stranger, BlobRequest(hash=blob).SerializeToString())
    assert await get(member, BlobRequest(hash=blob, offset=3, length=4).SerializeToString()) == b"3456"
    assert await get(member, BlobRequest(hash=blob, offset=2**63).SerializeToString()) == b""
    assert await get(member, BlobRequest(hash=blob, offset=8, length=2**63).SerializeToString()) == b"89"


async def test_closing_ends_fetches(new_peer: NewPeer, network: MemoryNetwork) -> None:
    """Callers get an error instead of waiting."""
    donor, taker = new_peer(), new_peer()
    blob = donor.store.put(b"content")
    network.freeze(id_of(donor))
    fetch = asyncio.create_task(taker.fetch(blob, 7, [id_of(donor)], deadline_seconds=60))
    await until(lambda: bool(taker._fetching))
    await taker.close()
    with pytest.raises(UnreachableError, match="given up"):
        await fetch


@given(
    rate=st.floats(1e3, 1e9),
    spends=st.lists(st.tuples(st.floats(0, 2), st.integers(1, 10**7)), min_size=1, max_size=50),
)
def test_the_bucket_never_passes_more_than_its_rate(rate: float, spends: list[tuple[float, int]]) -> None:
    """Whatever is asked when: all that was let through by any time is at most the burst plus rate times time."""
    now = passed = 0.0
    bucket = full(rate, now)
    for pause, amount in spends:
        now += pause
        bucket, wait = spend(bucket, amount, now)
        passed += amount
        assert passed <= bucket.burst_bytes + rate * (now + wait) * (1 + 1e-6) + 1
        assert wait >= 0


def test_the_bucket_gives_all_its_rate() -> None:
    """A spender that always waits as told gets the whole rate after the burst."""
    bucket, now = full(1_000_000.0, 0.0), 0.0
    for _ in range(100):
        bucket, wait = spend(bucket, 256 * 1024, now)
        now += wait
    assert 100 * 256 * 1024 / now >= 1_000_000


async def test_the_limiter_gives_back_what_was_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A spender that is cancelled while waiting costs the next one nothing; no rate means no waiting."""
    now = [0.0]
    limiter = RateLimiter(1_000_000, clock=lambda: now[0])
    await limiter.take(250_000)
    task = asyncio.create_task(limiter.take(10**9))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert limiter._bucket is not None and limiter._bucket.level == pytest.approx(0)
    await RateLimiter(None).take(10**12)
    assert full(1.0, 0.0).level >= ratelimit.MIN_BURST_BYTES


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Polls with a deadline."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_donor_lost_in_the_middle_over_the_real_swarm(tmp_path: Path, fault: signal.Signals) -> None:
    """The donor's daemon is killed or frozen when a part has come: another donor delivers the rest."""
    content = os.urandom(3 * SEGMENT_BYTES)
    async with contextlib.AsyncExitStack() as stack:
        swarms: list[HivemindSwarm] = []
        for _ in range(3):
            bootstrap = [(swarm.peer_id, swarm.addresses) for swarm in swarms[:1]]
            swarm = await HivemindSwarm.create(Identity.new(), listen_host="127.0.0.1", bootstrap=bootstrap)
            swarms.append(await stack.enter_async_context(swarm))
        taker, bad, good = (
            Exchange(swarm, BlobStore(tmp_path / str(swarm.peer_id)), upload_bytes_per_second=20_000_000)
            for swarm in swarms
        )
        blob = put_everywhere(content, [bad, good])
        fetch = asyncio.create_task(taker.fetch(blob, len(content), [id_of(bad), id_of(good)], deadline_seconds=60))
        await until(lambda: bad.bytes_sent > SEGMENT_BYTES // 2)
        assert swarms[1]._keeper.current is not None
        daemon = swarms[1]._keeper.current.daemon.process
        daemon.send_signal(fault)
        await fetch
        assert taker.store.check(blob) and taker.bytes_received < 2 * len(content)
