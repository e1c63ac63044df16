"""One contract for both swarms: the one over hivemind (real p2p daemons on 127.0.0.1) and its twin in memory."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from unittest.mock import AsyncMock, Mock

import pytest

from peer.errors import DataError, Refused, UnreachableError
from peer.identity import Identity, PeerId
from peer.swarm import MAX_ENTRY_BYTES, MAX_REPLY_BYTES, PIECE_BYTES, HivemindSwarm, Swarm, wire
from peer.swarm.memory import MemoryNetwork, MemorySwarm
from protos.swarm_pb2 import Presence


class Lab:
    """Makes connected peers of one kind, and ends them."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.network = MemoryNetwork()
        self.peers: list[Swarm] = []

    async def peer(self) -> Swarm:
        if self.kind == "memory":
            self.peers.append(self.network.node())
        else:
            bootstrap = [(other.peer_id, other.addresses) for other in self.peers[:1]]
            swarm = await HivemindSwarm.create(Identity.new(), listen_host="127.0.0.1", bootstrap=bootstrap)
            self.peers.append(swarm)
        return self.peers[-1]

    async def two(self) -> tuple[Swarm, Swarm]:
        return await self.peer(), await self.peer()

    def kill(self, swarm: Swarm) -> None:
        """As if its machine lost power."""
        if isinstance(swarm, HivemindSwarm):
            assert swarm._keeper.current is not None
            swarm._keeper.current.daemon.process.kill()
        else:
            self.network.kill(swarm.peer_id)


@pytest.fixture(params=["memory", "hivemind"])
async def lab(request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    lab = Lab(request.param)
    yield lab
    for swarm in reversed(lab.peers):
        await swarm.close()
    leftover = asyncio.all_tasks() - {asyncio.current_task()}
    assert not leftover, f"tasks left behind: {leftover}"


async def echo(sender: PeerId, request: bytes) -> bytes:
    return request


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Polls with a deadline."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def collect(pieces: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in pieces])


async def test_a_call_is_answered(lab: Lab) -> None:
    """The reply is the handler's, of any size up to the limit, empty ones included; the sender is who it says."""
    a, b = await lab.two()

    async def whoami(sender: PeerId, request: bytes) -> bytes:
        return sender.public_key + request

    a.serve("echo", echo, max_request_bytes=MAX_REPLY_BYTES)
    a.serve("whoami", whoami, max_request_bytes=100)
    for size in (0, 1, 100, 70_000, 1_500_000, MAX_REPLY_BYTES):
        request = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
        assert await b.call(a.peer_id, "echo", request, timeout_seconds=10) == request
    assert await b.call(a.peer_id, "whoami", b"!", timeout_seconds=10) == b.peer_id.public_key + b"!"


async def test_a_refusal_carries_its_reason(lab: Lab) -> None:
    """Refused arrives as Refused, word for word but for control characters; a bug in a handler tells nothing."""
    a, b = await lab.two()

    async def refuse(sender: PeerId, request: bytes) -> bytes:
        raise Refused("base digest is of round 41,\x1b[31m head is 43")

    async def fail(sender: PeerId, request: bytes) -> bytes:
        raise DataError("no such shard")

    async def crash(sender: PeerId, request: bytes) -> bytes:
        raise RuntimeError("secret")

    async def parse(sender: PeerId, request: bytes) -> bytes:
        return Presence.FromString(request).SerializeToString()

    for method, handler in [("refuse", refuse), ("fail", fail), ("crash", crash), ("parse", parse)]:
        a.serve(method, handler, max_request_bytes=100)
    for method, reason in [
        ("refuse", "base digest is of round 41,?[31m head is 43"),
        ("fail", "no such shard"),
        ("crash", "internal error"),
        ("parse", "the request is not a valid message"),
        ("unheard", "does not serve 'unheard'"),
    ]:
        with pytest.raises(Refused) as caught:
            await b.call(a.peer_id, method, b"\xff\xff\xff", timeout_seconds=10)
        assert str(caught.value) == reason


async def test_sizes_are_limited_both_ways(lab: Lab) -> None:
    """A request above the method's limit, a reply above the swarm's (5 MiB) or the caller's: refused, never a hang."""
    a, b = await lab.two()
    asked = []

    async def five_mebibytes(sender: PeerId, request: bytes) -> bytes:
        asked.append(request)
        return bytes(5 * 1024 * 1024)

    a.serve("five", five_mebibytes, max_request_bytes=1000)
    a.serve("echo", echo, max_request_bytes=2_000_000)
    with pytest.raises(Refused, match="limit"):
        await b.call(a.peer_id, "five", b"", timeout_seconds=10)
    for size in (1001, 3_000_000):
        with pytest.raises(Refused, match="limit is 1000"):
            await b.call(a.peer_id, "five", bytes(size), timeout_seconds=10)
    assert asked == [b""]
    with pytest.raises(Refused, match="limit is 999"):
        await b.call(a.peer_id, "echo", bytes(100_000), timeout_seconds=10, max_reply_bytes=999)


async def test_a_silent_handler_is_unreachable_and_told(lab: Lab) -> None:
    """The caller waits as long as it said; the handler is cancelled once nobody listens."""
    a, b = await lab.two()
    cancelled = asyncio.Event()

    async def ponder(sender: PeerId, request: bytes) -> bytes:
        try:
            await asyncio.sleep(3600)
        finally:
            cancelled.set()
        return b""

    a.serve("ponder", ponder, max_request_bytes=100)
    began = time.monotonic()
    with pytest.raises(UnreachableError, match=a.peer_id.short):
        await b.call(a.peer_id, "ponder", b"", timeout_seconds=0.3)
    assert time.monotonic() - began < 3
    async with asyncio.timeout(5):
        await cancelled.wait()


async def test_the_dead_and_the_unknown_are_unreachable(lab: Lab) -> None:
    """Calls, streams and connects to peers that are gone, or never were, end with UnreachableError in time."""
    a, b = await lab.two()
    a.serve("echo", echo, max_request_bytes=100)
    await b.call(a.peer_id, "echo", b"", timeout_seconds=10)
    await a.close()
    for peer in (a.peer_id, Identity.new().peer_id):
        with pytest.raises(UnreachableError):
            await b.call(peer, "echo", b"", timeout_seconds=3)
        with pytest.raises(UnreachableError):
            await collect(b.stream(peer, "echo", b"", timeout_seconds=3, max_bytes=100))
        with pytest.raises(UnreachableError):
            await b.connect(peer, a.addresses, timeout_seconds=3)


async def test_one_can_talk_to_oneself(lab: Lab) -> None:
    """A call or stream to the own peer id works by the same rules."""
    a = await lab.peer()

    async def count(sender: PeerId, request: bytes) -> AsyncIterator[bytes]:
        for number in range(3):
            yield bytes([number])

    a.serve("echo", echo, max_request_bytes=10)
    a.serve_stream("count", count, max_request_bytes=10)
    assert await a.call(a.peer_id, "echo", b"hi", timeout_seconds=5) == b"hi"
    assert await collect(a.stream(a.peer_id, "count", b"", timeout_seconds=5, max_bytes=10)) == b"\0\1\2"
    with pytest.raises(Refused, match="limit is 10"):
        await a.call(a.peer_id, "echo", bytes(11), timeout_seconds=5)
    with pytest.raises(Refused, match="does not serve"):
        await a.call(a.peer_id, "nothing", b"", timeout_seconds=5)
    await a.connect(a.peer_id, a.addresses, timeout_seconds=5)


async def test_a_stream_arrives_in_order_and_whole(lab: Lab) -> None:
    """Pieces come in order; those above the limit are cut, empty ones left out; no pieces is a normal end."""
    a, b = await lab.two()
    content = bytes(range(256)) * 12_000

    async def send(sender: PeerId, request: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(content), 700_000):
            yield content[start : start + 700_000]
            yield b""

    async def nothing(sender: PeerId, request: bytes) -> AsyncIterator[bytes]:
        return
        yield b""

    a.serve_stream("send", send, max_request_bytes=10)
    a.serve_stream("nothing", nothing, max_request_bytes=10)
    pieces = [p async for p in b.stream(a.peer_id, "send", b"", timeout_seconds=10, max_bytes=len(content))]
    assert b"".join(pieces) == content
    assert all(0 < len(piece) <= PIECE_BYTES for piece in pieces)
    assert await collect(b.stream(a.peer_id, "nothing", b"", timeout_seconds=10, max_bytes=0)) == b""


async def test_a_stream_can_end_badly_in_many_ways(lab: Lab) -> None:
    """Refused at once or in the middle, a crash in the middle, too many bytes, silence between two pieces."""
    a, b = await lab.two()

    async def misbehave(sender: PeerId, request: bytes) -> AsyncIterator[bytes]:
        if request == b"refuse at once":
            raise Refused("not today")
        yield b"first"
        if request == b"refuse later":
            raise Refused("enough")
        if request == b"crash":
            raise RuntimeError("secret")
        if request == b"fall silent":
            await asyncio.sleep(3600)
        while True:
            yield bytes(1000)

    a.serve_stream("misbehave", misbehave, max_request_bytes=100)
    for request, error, reason in [
        (b"refuse at once", Refused, "not today"),
        (b"refuse later", Refused, "enough"),
        (b"crash", Refused, "internal error"),
        (b"fall silent", UnreachableError, "silent"),
        (b"go on for ever", Refused, "more than the 100000 bytes"),
        (b"x" * 101, Refused, "limit is 100"),
    ]:
        patience = 1.0 if request == b"fall silent" else 15.0
        with pytest.raises(error, match=reason):
            await collect(b.stream(a.peer_id, "misbehave", request, timeout_seconds=patience, max_bytes=100_000))


async def test_leaving_a_stream_early_ends_the_handler(lab: Lab) -> None:
    """The server does not go on for a reader that closed the stream."""
    a, b = await lab.two()
    ended = asyncio.Event()

    async def endless(sender: PeerId, request: bytes) -> AsyncIterator[bytes]:
        try:
            while True:
                yield bytes(PIECE_BYTES)
                await asyncio.sleep(0.01)
        finally:
            ended.set()

    a.serve_stream("endless", endless, max_request_bytes=10)
    async with contextlib.aclosing(
        b.stream(a.peer_id, "endless", b"", timeout_seconds=10, max_bytes=1 << 40)
    ) as pieces:
        assert len(await anext(pieces)) == PIECE_BYTES
    async with asyncio.timeout(5):
        await ended.wait()


async def test_a_peer_killed_in_the_middle_is_not_a_normal_end(lab: Lab) -> None:
    """Half a stream, then power loss: UnreachableError, not silence and not an end."""
    a, b = await lab.two()

    async def slowly(sender: PeerId, request: bytes) -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield bytes(1000)
            await asyncio.sleep(0.01)

    a.serve_stream("slowly", slowly, max_request_bytes=10)
    received = 0
    with pytest.raises(UnreachableError):
        async for piece in b.stream(a.peer_id, "slowly", b"", timeout_seconds=10, max_bytes=1 << 30):
            received += len(piece)
            if received == 5000:
                lab.kill(a)
    assert 5000 <= received < 1_000_000


async def test_a_slow_reader_holds_up_its_own_stream_only(lab: Lab) -> None:
    """The server's handler waits (bounded memory) while other calls to the same peer pass."""
    a, b = await lab.two()
    sent = [0]

    async def flood(sender: PeerId, request: bytes) -> AsyncIterator[bytes]:
        while sent[0] < 400:
            sent[0] += 1
            yield bytes(PIECE_BYTES)

    a.serve_stream("flood", flood, max_request_bytes=10)
    a.serve("echo", echo, max_request_bytes=10)
    async with contextlib.aclosing(b.stream(a.peer_id, "flood", b"", timeout_seconds=10, max_bytes=1 << 40)) as pieces:
        await anext(pieces)
        for _ in range(20):
            await b.call(a.peer_id, "echo", b"", timeout_seconds=5)
        assert sent[0] < 400


async def test_many_calls_at_once(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that fit are answered; a peer that opens too many at once is refused some, and served again afterwards."""
    a, b = await lab.two()
    gate = asyncio.Event()

    async def wait(sender: PeerId, request: bytes) -> bytes:
        await gate.wait()
        return request

    a.serve("wait", wait, max_request_bytes=10)
    calls = [
        asyncio.create_task(b.call(a.peer_id, "wait", bytes([i]), timeout_seconds=20))
        for i in range(wire.MAX_CONVERSATIONS_PER_PEER + 20)
    ]
    await until(lambda: sum(call.done() for call in calls) == 20)
    gate.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(result, Refused) and "busy" in str(result) for result in results) == 20
    assert all(result == bytes([i]) for i, result in enumerate(results) if isinstance(result, bytes))

    async def served_again() -> bool:
        with contextlib.suppress(Refused):
            return await b.call(a.peer_id, "wait", b"", timeout_seconds=20) == b""
        return False

    async with asyncio.timeout(10):
        while not await served_again():
            await asyncio.sleep(0.02)


async def test_a_question_leaves_in_one_write() -> None:
    """Method and request go out together: written apart they would be two packets, a hundred bytes more."""
    transport, reader = Mock(get_write_buffer_size=lambda: 0), asyncio.StreamReader()
    writer = asyncio.StreamWriter(transport, Mock(_drain_helper=AsyncMock()), None, asyncio.get_running_loop())
    asked = asyncio.create_task(wire.ask(reader, writer, "method", b"request", limit=10))
    await until(lambda: transport.writelines.called)
    reader.feed_eof()
    with pytest.raises(UnreachableError):
        await asked
    assert transport.write.call_count + transport.writelines.call_count == 1


async def test_peers_see_who_is_connected(lab: Lab) -> None:
    """Both sides list each other after a connection, whatever suffix the addresses carry."""
    a, b = await lab.two()
    await b.connect(a.peer_id, [f"{address}/p2p/{a.peer_id}" for address in a.addresses], timeout_seconds=10)
    assert await b.peers() == [a.peer_id]
    async with asyncio.timeout(5):
        while await a.peers() != [b.peer_id]:
            await asyncio.sleep(0.02)


async def test_announcements_are_found_under_their_owner(lab: Lab) -> None:
    """Every peer finds every announcement of a key; the later one of a peer replaces its earlier one."""
    a, b = await lab.two()
    c = await lab.peer()
    await a.announce("run/head", b"41", ttl_seconds=60)
    await b.announce("run/head", b"42", ttl_seconds=60)
    await a.announce("run/head", b"43", ttl_seconds=30)  # a shorter life does not lose against the longer one before
    for swarm in (a, b, c):
        assert await swarm.lookup("run/head") == {a.peer_id: b"43", b.peer_id: b"42"}
        assert await swarm.lookup("run/other") == {}


async def test_announcements_expire(lab: Lab) -> None:
    """After its time an entry is gone."""
    a, b = await lab.two()
    await a.announce("key", b"value", ttl_seconds=0.7)
    assert await b.lookup("key") == {a.peer_id: b"value"}
    async with asyncio.timeout(5):
        while await b.lookup("key"):
            await asyncio.sleep(0.05)


async def test_announcements_are_small(lab: Lab) -> None:
    """The limit itself passes, one byte more is refused with the reason."""
    a, b = await lab.two()
    await a.announce("key", bytes(MAX_ENTRY_BYTES), ttl_seconds=60)
    assert await b.lookup("key") == {a.peer_id: bytes(MAX_ENTRY_BYTES)}
    with pytest.raises(Refused, match="DHT entry"):
        await a.announce("key", bytes(MAX_ENTRY_BYTES + 1), ttl_seconds=60)


async def test_closing_ends_everything_at_once(lab: Lab) -> None:
    """Calls and streams under way, ours and others', end with UnreachableError; later ones too; twice is fine."""
    a, b = await lab.two()
    entered = [0]

    async def ponder(sender: PeerId, request: bytes) -> bytes:
        entered[0] += 1
        await asyncio.sleep(3600)
        return b""

    for swarm in (a, b):
        swarm.serve("ponder", ponder, max_request_bytes=10)
    calls = [
        asyncio.create_task(a.call(b.peer_id, "ponder", b"", timeout_seconds=60)),
        asyncio.create_task(b.call(a.peer_id, "ponder", b"", timeout_seconds=60)),
    ]
    await until(lambda: entered[0] == 2)
    began = time.monotonic()
    await a.close()
    assert time.monotonic() - began < 2
    results = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 5)
    assert [type(result) for result in results] == [UnreachableError, UnreachableError]
    with pytest.raises(UnreachableError):
        await a.call(b.peer_id, "ponder", b"", timeout_seconds=1)
    assert await a.lookup("key") == {} and await a.peers() == []
    with pytest.raises(UnreachableError):
        await a.announce("key", b"", ttl_seconds=1)
    await a.close()


async def test_faults_in_memory() -> None:
    """cut, freeze, delay, corrupt and heal do what they say."""
    network = MemoryNetwork()
    a, b, c = network.node(), network.node(), network.node()
    a.serve("echo", echo, max_request_bytes=10)

    async def ask(who: MemorySwarm) -> bytes:
        return await who.call(a.peer_id, "echo", b"hi", timeout_seconds=0.2)

    network.cut(a.peer_id, b.peer_id)
    with pytest.raises(UnreachableError):
        await ask(b)
    assert await ask(c) == b"hi" and await b.peers() == [c.peer_id]
    await b.announce("key", b"b", ttl_seconds=60)
    assert await a.lookup("key") == {b.peer_id: b"b"}, "c, whom both reach, holds the entry"
    network.freeze(a.peer_id)
    with pytest.raises(UnreachableError, match="no answer"):
        await ask(c)
    network.heal()
    assert await ask(b) == await ask(c) == b"hi"
    network.corrupt(a.peer_id)
    assert await ask(b) not in (b"hi", b"")
    network.heal()
    network.delay(0.05)
    began = time.monotonic()
    assert await ask(b) == b"hi" and time.monotonic() - began >= 0.05
    network.kill(a.peer_id)
    with pytest.raises(UnreachableError):
        await ask(b)


async def test_a_hidden_peer_of_the_memory_network_is_like_one_behind_nat() -> None:
    """Nobody dials it; whom it dialled talks to it, until it hides again."""
    network = MemoryNetwork()
    hidden, other = network.node(), network.node()
    hidden.serve("echo", echo, max_request_bytes=10)
    network.hide(hidden.peer_id)
    assert hidden.addresses == [] and other.addresses
    with pytest.raises(UnreachableError):
        await other.call(hidden.peer_id, "echo", b"", timeout_seconds=1)
    await hidden.connect(other.peer_id, other.addresses, timeout_seconds=1)
    assert await other.call(hidden.peer_id, "echo", b"hi", timeout_seconds=1) == b"hi"
