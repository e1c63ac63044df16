"""Who can be dialled is found out, not assumed; over real NAT where the machine has network namespaces."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from peer.errors import Refused
from peer.identity import Identity
from peer.swarm import HivemindSwarm
from peer.swarm.dialback import agreed, host_and_port, parse_ports, ports_of, proves
from tests import netns
from tests.remote_swarm import Remote

LOCAL = "127.0.0.1"
WHY_NOT = netns.missing()
needs_namespaces = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "")


async def test_the_key_at_the_other_end_is_looked_at() -> None:
    """An address proves nothing unless the peer itself answers there: not another peer, not another program."""
    identity = Identity.new()
    async with await HivemindSwarm.create(identity, listen_host=LOCAL) as swarm:
        port = int(swarm.addresses[0].rpartition("/")[2])
        assert await proves(LOCAL, port, identity.peer_id)
        assert not await proves(LOCAL, port, Identity.new().peer_id)

    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10)
        writer.close()

    async with await asyncio.start_server(shout, LOCAL, 0) as server:
        assert not await proves(LOCAL, server.sockets[0].getsockname()[1], identity.peer_id)


async def test_a_peer_that_others_can_dial_says_where() -> None:
    """Listening everywhere, it names the address that another node dialled; alone, it names none."""
    async with await HivemindSwarm.create(Identity.new(), listen_host=LOCAL) as first:
        async with await HivemindSwarm.create(Identity.new(), map_port=False) as alone:
            assert await alone.check_reachability() == []
        bootstrap = [(first.peer_id, first.addresses)]
        async with await HivemindSwarm.create(Identity.new(), bootstrap=bootstrap, map_port=False) as peer:
            (address,) = await peer.check_reachability()
            host, port = host_and_port(address)
            assert host == LOCAL and await proves(host, port, peer.peer_id)
            for nonsense in (b"", b"0", b"1 2 3 4 5", b"http", b"99999"):
                with pytest.raises(Refused, match="port numbers"):
                    await peer.call(first.peer_id, "dial-back", nonsense, timeout_seconds=5)


def test_most_of_those_asked_decide() -> None:
    """One of several who got through may sit in the same home; nobody asked is no answer."""
    assert agreed([]) == [] and agreed([[]]) == []
    assert agreed([["a"]]) == ["a"]
    assert agreed([["lan"], []]) == [] and agreed([["lan"], [], []]) == []
    assert agreed([["a"], ["b"], []]) == ["a", "b"]


def test_ports_and_addresses_are_read_strictly() -> None:
    """Relayed and other addresses are nothing to dial; our own port comes first."""
    assert host_and_port("/ip4/1.2.3.4/tcp/5") == ("1.2.3.4", 5)
    assert host_and_port("/ip4/1.2.3.4/tcp/5/p2p/x/p2p-circuit") == host_and_port("/dns4/a/tcp/5") == ("", 0)
    assert ports_of(["/ip4/1.2.3.4/tcp/5", "/ip4/1.2.3.4/tcp/7"], 7) == [7, 5]
    assert ports_of([], 0) == []
    assert parse_ports(b"1 65535") == [1, 65535]


@pytest.fixture
def internet() -> Iterator[netns.Internet]:
    with netns.Internet() as net:
        yield net


@needs_namespaces
def test_behind_nat_nothing_is_announced_that_nobody_can_dial(internet: netns.Internet) -> None:
    """Peers behind routers name no address, not even in company of a mate in the same home network; a peer with a
    public address does. Who was dialled by them calls them over their own connections; others get no further than an
    error."""
    server = Remote(internet.host("server"))
    bootstrap = [f"{server.listens[0]}/p2p/{server.peer_id}"]
    first, second = internet.home("first"), internet.home("second")
    alice, mate = Remote(first.host("alice"), *bootstrap), Remote(first.host("mate"), *bootstrap)
    bob, carol = Remote(second.host("bob"), *bootstrap), Remote(internet.host("carol"), *bootstrap)
    assert carol.ask("reach") == carol.listens
    assert alice.ask("connect", mate.peer_id, *mate.listens) is None
    assert alice.ask("reach") == mate.ask("reach") == bob.ask("reach") == []
    assert alice.ask("connect", carol.peer_id, *carol.listens) is None
    assert server.ask("echo", alice.peer_id, "hello") == carol.ask("echo", alice.peer_id, "hello") == "hello"
    assert bob.ask("echo", alice.peer_id, "hello").startswith(f"peer {alice.peer_id.short}: ")
