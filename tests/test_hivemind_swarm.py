"""What only the real swarm can get wrong: daemons, ports, clocks, forged DHT entries, garbage from strangers."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from peer.errors import Refused, UnreachableError, UsageError
from peer.identity import Identity, PeerId
from peer.swarm import PIECE_BYTES, HivemindSwarm, keeper
from peer.swarm.daemon import PrivateFolder
from peer.swarm.entries import seal, subkey_of
from peer.swarm.quietly import DHTID, MSGPackSerializer, PeerID, dht_pb2
from tests.test_swarm import collect, echo

LOCAL = "127.0.0.1"


@pytest.fixture
async def new_swarm() -> AsyncIterator[Callable[..., Any]]:
    """Makes swarms on loopback that are closed at the end."""
    made: list[HivemindSwarm] = []

    async def make(first: HivemindSwarm | None = None, **options: Any) -> HivemindSwarm:
        bootstrap = [(first.peer_id, first.addresses)] if first else []
        options = {"listen_host": LOCAL, "bootstrap": bootstrap, **options}
        made.append(await HivemindSwarm.create(options.pop("identity", None) or Identity.new(), **options))
        return made[-1]

    yield make
    for swarm in reversed(made):
        await swarm.close()


class Program:
    """tests/swarm_program.py, running."""

    def __init__(self, loop: str, skew_seconds: float = 0.0, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.swarm_program", loop, str(skew_seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )

    async def ready(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = await asyncio.to_thread(self.process.stdout.readline)
        if not line:
            assert self.process.stderr is not None
            pytest.fail(await asyncio.to_thread(self.process.stderr.read))
        about: dict[str, Any] = json.loads(line)
        return about

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def program() -> Iterator[Callable[..., Program]]:
    started: list[Program] = []

    def start(*arguments: Any, **options: Any) -> Program:
        started.append(Program(*arguments, **options))
        return started[-1]

    yield start
    for running in started:
        running.end()


async def until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    """Polls with a deadline."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def daemon_of(swarm: HivemindSwarm) -> asyncio.subprocess.Process:
    assert swarm._keeper.current is not None
    return swarm._keeper.current.daemon.process


def is_running(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


async def test_the_identity_is_the_libp2p_id(new_swarm: Callable[..., Any], tmp_path: Path) -> None:
    """The daemon has the id of the identity file, again after a restart, and leaves no copy of the key."""
    path = tmp_path / "identity.key"
    swarm = await new_swarm(identity=Identity.load_or_create(path))
    assert PeerID(swarm.peer_id.to_multihash()) == swarm._keeper.current.dht.p2p.peer_id
    assert not list(swarm._keeper.folder.path.rglob("*.key"))
    assert swarm._keeper.folder.path.stat().st_mode & 0o077 == 0
    folder = swarm._keeper.folder.path
    await swarm.close()
    assert not folder.exists()
    async with await HivemindSwarm.create(path, listen_host=LOCAL) as again:
        assert again._keeper.current is not None
        assert again.peer_id == swarm.peer_id and str(again._keeper.current.dht.p2p.peer_id) == str(swarm.peer_id)


async def test_a_port_in_use_is_said(new_swarm: Callable[..., Any]) -> None:
    """By a stranger or by another peer (libp2p alone would share the port and split the connections)."""
    with socket.socket() as other:
        other.bind((LOCAL, 0))
        other.listen()
        with pytest.raises(UsageError, match=r"port \d+ is in use.*choose another"):
            await new_swarm(port=other.getsockname()[1])
    first = await new_swarm()
    port = int(first.addresses[0].rpartition("/")[2])
    with pytest.raises(UsageError, match=f"port {port} is in use"):
        await new_swarm(port=port)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"listen_host": "example"}, "not an IP address"),
        ({"listen_host": "203.0.113.1"}, "cannot listen on 203.0.113.1"),
        ({"port": 70000}, "ports go from 0"),
        ({"announce_addresses": ["/ip4/1.2.3.4/udp/1/quic-v1"]}, "not a TCP multiaddr"),
        ({"bootstrap": [(Identity.new().peer_id, ["localhost:4000"])]}, "not a TCP multiaddr"),
    ],
)
async def test_wrong_settings_are_named(options: dict[str, Any], reason: str) -> None:
    """Before any process is started, or without one left."""
    with pytest.raises(UsageError, match=reason):
        await HivemindSwarm.create(Identity.new(), **options)


async def test_nobody_at_the_bootstrap_addresses(new_swarm: Callable[..., Any]) -> None:
    """An error with the addresses after the time given; without `bootstrap_required`, joining goes on by itself."""
    identity, port = Identity.new(), free_port()
    bootstrap = [(identity.peer_id, [f"/ip4/{LOCAL}/tcp/{port}"])]
    with pytest.raises(UnreachableError, match=f"nobody of the swarm answers at /ip4/{LOCAL}/tcp/{port}"):
        await new_swarm(bootstrap=bootstrap, startup_timeout=1.5)
    early = await new_swarm(bootstrap=bootstrap, bootstrap_required=False)
    early.serve("echo", echo, max_request_bytes=10)
    late = await new_swarm(identity=identity, port=port)
    await early._keeper.tick(early._keeper.current)
    async with asyncio.timeout(20):  # libp2p waits some seconds before it dials a dead address again
        while late.peer_id not in await early.peers():
            await asyncio.sleep(0.1)
            await early._keeper.tick(early._keeper.current)
    assert await late.call(early.peer_id, "echo", b"hi", timeout_seconds=5) == b"hi"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOCAL, 0))
        return int(probe.getsockname()[1])


async def test_peers_find_each_other_by_name(new_swarm: Callable[..., Any]) -> None:
    """Two peers that know only a third one reach each other by peer id alone, also when the third is gone."""
    first = await new_swarm()
    a, b = await new_swarm(first), await new_swarm(first)
    a.serve("echo", echo, max_request_bytes=10)
    assert await b.call(a.peer_id, "echo", b"hi", timeout_seconds=10) == b"hi"
    await b.announce("key", b"before", ttl_seconds=60)
    await first.close()
    assert await b.call(a.peer_id, "echo", b"hi", timeout_seconds=10) == b"hi"
    assert await a.lookup("key") == {b.peer_id: b"before"}
    await a.announce("key", b"after", ttl_seconds=60)
    assert await b.lookup("key") == {b.peer_id: b"before", a.peer_id: b"after"}


async def test_names_and_ipv6_are_addresses_too(new_swarm: Callable[..., Any]) -> None:
    """A peer is reached by host name (libp2p resolves it) and over IPv6, where the machine has it."""
    first = await new_swarm()
    port = first.addresses[0].rpartition("/")[2]
    b = await new_swarm()
    await b.connect(first.peer_id, [f"/dns4/localhost/tcp/{port}"], timeout_seconds=10)
    assert await b.peers() == [first.peer_id]
    if Path("/proc/net/if_inet6").exists() and Path("/proc/net/if_inet6").read_text():
        six = await new_swarm(listen_host="::1")
        assert six.addresses[0].startswith("/ip6/::1/tcp/")
        await b.connect(six.peer_id, six.addresses, timeout_seconds=10)


async def test_a_client_cannot_be_dialled_but_takes_part(new_swarm: Callable[..., Any]) -> None:
    """No address, and yet it calls, is called over its own connection, announces and looks up."""
    first = await new_swarm()
    client = await new_swarm(first, client_mode=True)
    client.serve("echo", echo, max_request_bytes=10)
    assert client.addresses == []
    assert await first.call(client.peer_id, "echo", b"hi", timeout_seconds=10) == b"hi"
    await client.announce("key", b"c", ttl_seconds=60)
    assert await first.lookup("key") == await client.lookup("key") == {client.peer_id: b"c"}


async def test_two_that_cannot_be_dialled_meet_over_a_relay(new_swarm: Callable[..., Any]) -> None:
    """Neither listens; the public bootstrap peer passes their conversation on, under the address they give."""
    first = await new_swarm(public=True)
    a = await new_swarm(first, client_mode=True, auto_relay=True)
    b = await new_swarm(first, client_mode=True, auto_relay=True)
    a.serve("echo", echo, max_request_bytes=5000)
    assert a.addresses == [f"{first.addresses[0]}/p2p/{first.peer_id}/p2p-circuit"]
    async with asyncio.timeout(40):  # for the reservation, and libp2p's pause after a dial that failed
        while True:
            with contextlib.suppress(UnreachableError):
                if await b.call(a.peer_id, "echo", bytes(5000), timeout_seconds=5) == bytes(5000):
                    break
            await asyncio.sleep(0.1)
    assert a.peer_id in await b.peers()


async def test_a_wrong_clock_is_said(new_swarm: Callable[..., Any], program: Callable[..., Program]) -> None:
    """Joining a swarm whose clock is 40 s ahead names the difference and the cure."""
    about = await program("asyncio", 40.0).ready()
    bootstrap = [(PeerId.parse(about["peer"]), about["addresses"])]
    with pytest.raises(UsageError, match=r"clock is 40 s behind the swarm's; .*set-ntp"):
        await new_swarm(bootstrap=bootstrap)


async def test_a_killed_daemon_is_replaced(new_swarm: Callable[..., Any]) -> None:
    """Calls under way fail at once, others wait; port, handlers, connections and DHT entries are there again."""
    a = await new_swarm()
    b = await new_swarm(a)
    a.serve("echo", echo, max_request_bytes=10)
    b.serve("echo", echo, max_request_bytes=10)
    await b.announce("key", b"b", ttl_seconds=60)
    addresses, before = b.addresses, daemon_of(b)
    await b._keeper.tick(b._keeper.current)
    before.kill()
    await before.wait()
    assert await b.call(a.peer_id, "echo", b"x", timeout_seconds=15) == b"x", "waits for the new daemon"
    assert daemon_of(b).pid != before.pid and b.addresses == addresses
    async with asyncio.timeout(15):
        while True:
            with contextlib.suppress(UnreachableError):
                if await a.call(b.peer_id, "echo", b"y", timeout_seconds=5) == b"y":
                    break
            await asyncio.sleep(0.05)
    assert await a.lookup("key") == await b.lookup("key") == {b.peer_id: b"b"}
    await b.announce("key", b"again", ttl_seconds=60)
    assert await a.lookup("key") == {b.peer_id: b"again"}


async def test_a_frozen_daemon_is_replaced(new_swarm: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls to a peer with a frozen daemon end in time; the peer itself notices and takes another daemon."""
    monkeypatch.setattr(keeper, "DIAL_SECONDS", 1.0)
    monkeypatch.setattr(keeper, "TICK_SECONDS", 0.2)
    a = await new_swarm()
    b = await new_swarm(a)
    a.serve("echo", echo, max_request_bytes=10)
    await b.call(a.peer_id, "echo", b"", timeout_seconds=10)
    frozen = daemon_of(a)
    frozen.send_signal(signal.SIGSTOP)
    await until(lambda: psutil.Process(frozen.pid).status() == psutil.STATUS_STOPPED)
    with pytest.raises(UnreachableError, match=r"no answer within 0\.5 s"):
        await b.call(a.peer_id, "echo", b"", timeout_seconds=0.5)
    await until(lambda: daemon_of(a).pid != frozen.pid and a._keeper._up.is_set())
    assert not is_running(frozen.pid)


async def test_garbage_from_strangers_costs_nothing(
    new_swarm: Callable[..., Any], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Raw bytes, huge lengths, half a request, no request, garbage to hivemind's own handlers: refused or ignored,
    nothing printed, and the next honest call is served."""
    a = await new_swarm()
    b = await new_swarm(a)
    a.serve("echo", echo, max_request_bytes=1000)
    method = bytes([0, 0, 0, 6, 0x0A, 4]) + b"echo"
    for garbage in [
        b"",
        b"\0",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" * 100_000,
        b"\0\0\0\0",
        b"\0\0\0\x05\xff\xff\xff\xff\xff",
        method,
        method + b"\xff\xff\xff\xff",
        method + b"\0\0\0\x04\xff\xff\xff\xff",
        method + b"\0\0\x01\0only a little of it",
        os.urandom(5000),
    ]:
        reader, writer = await b._keeper.current.open_stream(a.peer_id)
        writer.write(garbage)
        with contextlib.suppress(OSError):
            writer.write_eof()
        answer = await asyncio.wait_for(reader.read(1000), 10)
        assert len(answer) < 1000
        writer.close()
    target = PeerID(a.peer_id.to_multihash())
    for rpc in ("rpc_ping", "rpc_store", "rpc_find"):
        with contextlib.suppress(Exception):
            await asyncio.wait_for(
                b._keeper.current.control.call_unary_handler(target, f"DHTProtocol.{rpc}", b"\xff" * 50), 5
            )
    stranger = dht_pb2.NodeInfo(node_id=b"\xff" * 40)
    for rpc, request in [
        ("rpc_ping", dht_pb2.PingRequest(peer=stranger, validate=True)),
        ("rpc_store", dht_pb2.StoreRequest(peer=stranger, keys=[b"\xff" * 40], subkeys=[b""], values=[b"\xd4\x50\0"])),
        ("rpc_find", dht_pb2.FindRequest(peer=stranger, keys=[b"\xff" * 40])),
    ]:
        with contextlib.suppress(Exception):
            await asyncio.wait_for(
                b._keeper.current.control.call_unary_handler(target, f"DHTProtocol.{rpc}", request.SerializeToString()),
                5,
            )
    gc.collect()
    assert await b.call(a.peer_id, "echo", b"still here", timeout_seconds=10) == b"still here"
    await until(lambda: not a._services._talking)
    assert caplog.text == "" and capfd.readouterr().err == ""


async def test_forged_entries_are_refused(new_swarm: Callable[..., Any]) -> None:
    """Unsigned, signed by another, for another key, too long-lived, infinite: our nodes neither store nor return them,
    and the rightful entry stays, for its whole time."""
    a = await new_swarm()
    b = await new_swarm(a)
    mallory = Identity.new()
    await a.announce("key", b"true", ttl_seconds=600)
    key, now = DHTID.generate(source="key"), time.time()
    owner, subkey = a.peer_id.to_multihash(), subkey_of(a.peer_id)
    own = mallory.peer_id.to_multihash()

    def sealed(signer: Identity, signed_key: bytes, signed_subkey: bytes, expiration: float) -> bytes:
        packed: bytes = MSGPackSerializer.dumps(seal(signer, signed_key, signed_subkey, b"forged", expiration))
        return packed

    honest = (mallory, key.to_bytes(), subkey_of(mallory.peer_id))
    forgeries = [
        (owner, MSGPackSerializer.dumps(b"forged"), now + 700),
        (owner, sealed(mallory, key.to_bytes(), subkey, now + 700), now + 700),
        (owner, b"\xff\xfe not msgpack", now + 700),
        (None, MSGPackSerializer.dumps(b"a plain value in the way of all entries"), now + 1e6),
        ("a name", MSGPackSerializer.dumps(b"forged"), now + 700),
        (own, sealed(*honest, now + 300), now + 400),
        (own, sealed(mallory, DHTID.generate(source="other").to_bytes(), honest[2], now + 700), now + 700),
        *((own, sealed(*honest, at), at) for at in (now + 1e6, math.inf, math.nan, now - 10)),
    ]
    target = PeerID(a.peer_id.to_multihash())
    for name, value, expiration in forgeries:
        taken = await b._keeper.current.dht.call_store(target, [key], [value], expiration, subkeys=[name])
        assert not taken or taken == [False], (name, value, expiration)
    assert await b.lookup("key") == await a.lookup("key") == {a.peer_id: b"true"}

    earlier = (
        now + 60
    )  # a replayed older entry of the owner himself: hivemind alone would let the good one expire with it
    replay = MSGPackSerializer.dumps(seal(a._identity, key.to_bytes(), subkey, b"old", earlier))
    assert await b._keeper.current.dht.call_store(target, [key], [replay], earlier, subkeys=[owner]) == [False]
    held = a._keeper.current.dht.storage.get(key)
    assert held.value.key_to_heap[owner].expiration_time > now + 500


async def test_a_lying_node_hides_nothing(new_swarm: Callable[..., Any]) -> None:
    """A node that returns forged entries beside true ones: the true ones are still found."""
    a = await new_swarm()
    b = await new_swarm(a)
    await a.announce("key", b"true", ttl_seconds=600)
    held = a._keeper.current.dht.storage.get(DHTID.generate(source="key"))
    held.value.store(Identity.new().peer_id.to_multihash(), MSGPackSerializer.dumps(b"x" * 100), time.time() + 1e9)
    held.value.store("junk", b"\xff\xff", math.inf)
    assert await b.lookup("key") == {a.peer_id: b"true"}


async def test_ordinary_hivemind_nodes_share_the_dht(new_swarm: Callable[..., Any]) -> None:
    """One of them joins through us, passes entries on between peers of ours, reads them, and cannot plant its own."""
    from hivemind.dht import DHTNode

    a = await new_swarm()
    guest = await DHTNode.create(initial_peers=[f"{a.addresses[0]}/p2p/{a.peer_id}"])
    try:
        address = str((await guest.p2p.get_visible_maddrs())[0])
        b = await new_swarm(a)
        await b.connect(a.peer_id, a.addresses, timeout_seconds=10)
        await b.announce("key", b"of b", ttl_seconds=60)
        assert f"/p2p/{guest.peer_id}" in address
        found = await guest.get("key", latest=True)
        assert found.value[b.peer_id.to_multihash()].value.startswith(b"of b")
        await guest.store("key", b"planted", time.time() + 50, subkey="guest")
        await guest.store("other", b"planted", time.time() + 50)
        assert await a.lookup("key") == await b.lookup("key") == {b.peer_id: b"of b"}
        assert await a.lookup("other") == {}
    finally:
        await guest.shutdown()


async def test_a_stranger_of_another_protocol_is_refused(new_swarm: Callable[..., Any]) -> None:
    """Calling a libp2p peer that is none of ours says so."""
    from hivemind.p2p import P2P

    a = await new_swarm()
    stranger = await P2P.create(initial_peers=[f"{a.addresses[0]}/p2p/{a.peer_id}"])
    try:
        with pytest.raises(Refused, match="does not speak our protocol"):
            await a.call(PeerId.from_multihash(stranger.peer_id.to_bytes()), "echo", b"", timeout_seconds=10)
    finally:
        await stranger.shutdown()


@pytest.mark.parametrize("watch", ["", "yes"])
async def test_a_killed_owner_leaves_no_daemon(
    new_swarm: Callable[..., Any], program: Callable[..., Program], watch: str
) -> None:
    """SIGKILL: p2pd ends by itself, by the kernel's word or (where there is none) by its watcher; the folder that
    stays is swept by the next peer; a stream that was open ends with an error."""
    running = program("uvloop", **({"COMMONWEIGHTS_WATCH_DAEMON": watch} if watch else {}))
    about = await running.ready()
    swarm = await new_swarm()
    donor = PeerId.parse(about["peer"])
    await swarm.connect(donor, about["addresses"], timeout_seconds=10)
    with pytest.raises(UnreachableError):
        async for _ in swarm.stream(donor, "zeros", b"1000000", timeout_seconds=10, max_bytes=1 << 50):
            running.process.kill()
    await until(lambda: not is_running(about["p2pd"]))
    await asyncio.to_thread(running.process.wait)
    assert Path(about["folder"]).exists()
    PrivateFolder().remove()
    assert not Path(about["folder"]).exists()


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_a_whole_life_is_quiet(program: Callable[..., Program], loop: str) -> None:
    """Start, serve, stop under either event loop: nothing on stderr, no process, no folder, well under a second; and
    what importing hivemind changes for the whole process is put back."""
    running = program(loop)
    about = await running.ready()
    assert about["start_method"] is None and about["sharing"] == "file_descriptor"
    assert about["level_name"] == "WARNING" and about["log_handlers"] == 0
    out, err = await asyncio.to_thread(running.process.communicate, "")
    assert err == "" and running.process.returncode == 0
    assert json.loads(out)["stop_seconds"] < 1.0
    assert not is_running(about["p2pd"]) and not Path(about["folder"]).exists()


async def test_calls_hold_under_dht_load(new_swarm: Callable[..., Any]) -> None:
    """Announcing and looking up from all sides while streaming: nothing gets lost, nothing is left over."""
    first = await new_swarm()
    swarms = [first, *[await new_swarm(first) for _ in range(2)]]

    async def zeros(sender: PeerId, request: bytes) -> AsyncIterator[bytes]:
        for _ in range(40):
            yield bytes(PIECE_BYTES)

    first.serve_stream("zeros", zeros, max_request_bytes=10)

    async def chatter(swarm: HivemindSwarm) -> None:
        for number in range(10):
            await swarm.announce("load", str(number).encode(), ttl_seconds=60)
            await swarm.lookup("load")

    downloads = [
        swarm.stream(first.peer_id, "zeros", b"", timeout_seconds=20, max_bytes=1 << 30) for swarm in swarms[1:]
    ]
    chatting = asyncio.gather(*map(chatter, swarms))
    results = await asyncio.gather(*map(collect, downloads))
    await chatting
    assert [len(result) for result in results] == [40 * PIECE_BYTES] * 2
    assert await first.lookup("load") == {swarm.peer_id: b"9" for swarm in swarms}
