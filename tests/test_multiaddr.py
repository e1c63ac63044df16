"""Addresses of strangers: understood, or refused in words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.errors import UsageError
from peer.identity import Identity
from peer.swarm.multiaddr import decode, distance, encode, split_peer

PEER = Identity.from_seed(bytes(32)).peer_id


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("/ip4/127.0.0.1/tcp/4000", "047f000001060fa0"),
        ("/ip6/::1/tcp/80", "2900000000000000000000000000000001060050"),
        ("/dns4/ab/tcp/1", "36026162060001"),
        (f"/ip4/1.2.3.4/tcp/5/p2p/{PEER}", "0401020304060005a50326" + PEER.to_multihash().hex()),
        (
            f"/ip4/1.2.3.4/tcp/5/p2p/{PEER}/p2p-circuit",
            "0401020304060005a50326" + PEER.to_multihash().hex() + "a202",
        ),
    ],
)
def test_addresses_have_libp2ps_bytes(text: str, code: str) -> None:
    """As in the multiaddr table; the text comes back."""
    assert encode(text).hex() == code
    assert decode(bytes.fromhex(code)) == text


@pytest.mark.parametrize(
    "text",
    ["", "/", "localhost:4000", "/ip4/1.2.3/tcp/4", "/ip4/::1/tcp/4", "/ip4/1.2.3.4/tcp/0", "/ip4/1.2.3.4/tcp/70000",
     "/ip4/1.2.3.4/tcp", "/ip4/1.2.3.4/udp/4/quic-v1", "/dns4//tcp/4", "/ip4/1.2.3.4/tcp/4/p2p/Qm", "/dns/\n/tcp/1",
     "/dns/" + "x" * 600 + "/tcp/1", "/dns/ä/tcp/1"],
)  # fmt: skip
def test_what_is_no_tcp_address_is_refused(text: str) -> None:
    """With an example of what one looks like."""
    with pytest.raises(UsageError, match="they look like"):
        encode(text)


@given(st.binary(max_size=60))
def test_bytes_of_strangers_never_crash(data: bytes) -> None:
    """Garbage is None, or something that encodes again."""
    text = decode(data)
    assert text is None or text.startswith("/")


def test_the_peer_at_the_end_is_split_off() -> None:
    """A relay's own peer id stays where it is."""
    assert split_peer(f"/ip4/1.2.3.4/tcp/5/p2p/{PEER}") == ("/ip4/1.2.3.4/tcp/5", PEER)
    assert split_peer("/ip4/1.2.3.4/tcp/5") == ("/ip4/1.2.3.4/tcp/5", None)
    circuit = f"/ip4/1.2.3.4/tcp/5/p2p/{PEER}/p2p-circuit"
    assert split_peer(circuit) == (circuit, None)
    assert split_peer(f"{circuit}/p2p/{PEER}") == (circuit, PEER)
    with pytest.raises(UsageError, match="not a peer id"):
        split_peer("/ip4/1.2.3.4/tcp/5/p2p/nobody")


def test_nearer_to_everybody_comes_first() -> None:
    """Public, private, loopback, relayed."""
    ordered = [
        "/ip4/8.8.8.8/tcp/1",
        "/ip4/192.168.1.2/tcp/1",
        "/ip4/127.0.0.1/tcp/1",
        f"/ip4/8.8.8.8/tcp/1/p2p/{PEER}/p2p-circuit",
    ]
    assert [distance(address) for address in ordered] == [0, 1, 2, 3]
    assert distance("/dns4/example.org/tcp/1") == 0 and distance("/dns4/localhost/tcp/1") == 2
