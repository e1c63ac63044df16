"""Multiaddrs as text and as the bytes that libp2p wants, for the handful of protocols a peer can be reached by.

Written by hand because the one that ships with hivemind encodes `/p2p/...` in a form that libp2p refuses, and because
addresses come from strangers: what is not understood is a UsageError, never a surprise.

Format: https://github.com/multiformats/multiaddr (protocol table: protocols.csv).
"""

from __future__ import annotations

from ipaddress import ip_address

from peer.errors import UsageError
from peer.identity import PeerId

_CODES = {"ip4": 4, "tcp": 6, "ip6": 41, "dns": 53, "dns4": 54, "dns6": 55, "p2p-circuit": 290, "p2p": 421}
_NAMES = {code: name for name, code in _CODES.items()}
_MAX_BYTES = 512


def encode(address: str) -> bytes:
    """`/ip4/10.0.0.1/tcp/4000` -> bytes. Raises UsageError for anything but TCP addresses, relayed ones included."""
    parts = address.strip().rstrip("/").split("/")
    if len(parts) < 3 or parts[0] or len(address) > _MAX_BYTES:
        raise _not_an_address(address)
    data, rest = b"", parts[1:]
    try:
        while rest:
            name = "p2p" if rest[0] == "ipfs" else rest[0]
            rest = rest[1:]
            data += _varint(_CODES[name])
            if name != "p2p-circuit":
                data += _encode_value(name, rest[0])
                rest = rest[1:]
    except (KeyError, IndexError, ValueError, UsageError):
        raise _not_an_address(address) from None
    return data


def decode(data: bytes) -> str | None:
    """Bytes -> text; None for protocols that are not ours (QUIC, WebSocket ...)."""
    text, offset = "", 0
    try:
        while offset < len(data):
            code, offset = _read_varint(data, offset)
            name = _NAMES.get(code)
            if name is None:
                return None
            text += f"/{name}"
            if name == "p2p-circuit":
                continue
            if name in ("ip4", "ip6", "tcp"):
                size = {"ip4": 4, "ip6": 16, "tcp": 2}[name]
            else:
                size, offset = _read_varint(data, offset)
            value = data[offset : offset + size]
            if len(value) != size:
                return None
            offset += size
            text += "/" + _decode_value(name, value)
    except (IndexError, ValueError, UsageError):
        return None
    return text or None


def split_peer(address: str) -> tuple[str, PeerId | None]:
    """`/ip4/.../tcp/4000/p2p/12D3...` -> (`/ip4/.../tcp/4000`, the peer). A relay's own /p2p stays in the address."""
    head, separator, tail = address.strip().rpartition("/p2p/")
    if not separator or "/" in tail:
        return address.strip(), None
    return head, PeerId.parse(tail)


def distance(address: str) -> int:
    """How far from everybody: 0 public (names count as that), 1 private network, 2 this machine, 3 through a relay."""
    parts = address.split("/")
    if "p2p-circuit" in parts:
        return 3
    try:
        ip = ip_address(parts[2])
    except (IndexError, ValueError):
        return 2 if parts[2:3] == ["localhost"] else 0
    return 2 if ip.is_loopback else 1 if not ip.is_global else 0


def _encode_value(name: str, value: str) -> bytes:
    if name in ("ip4", "ip6"):
        packed = ip_address(value).packed
        if len(packed) != (4 if name == "ip4" else 16):
            raise ValueError(value)
        return packed
    if name == "tcp":
        port = int(value)
        if not 0 < port < 65536:
            raise ValueError(value)
        return port.to_bytes(2, "big")
    raw = PeerId.parse(value).to_multihash() if name == "p2p" else value.encode("ascii")
    if not raw or not value.isprintable():
        raise ValueError(value)
    return _varint(len(raw)) + raw


def _decode_value(name: str, value: bytes) -> str:
    if name in ("ip4", "ip6"):
        return str(ip_address(value))
    if name == "tcp":
        return str(int.from_bytes(value, "big"))
    return str(PeerId.from_multihash(value)) if name == "p2p" else value.decode("ascii")


def _varint(number: int) -> bytes:
    data = b""
    while number > 0x7F:
        data += bytes([number & 0x7F | 0x80])
        number >>= 7
    return data + bytes([number])


def _read_varint(data: bytes, offset: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[offset]
        number |= (byte & 0x7F) << shift
        offset += 1
        shift += 7
        if byte < 0x80:
            return number, offset
        if shift > 28:
            raise ValueError("varint too long")


def _not_an_address(address: str) -> UsageError:
    return UsageError(f"{address[:100]!r} is not a TCP multiaddr; they look like /ip4/203.0.113.7/tcp/4000")
