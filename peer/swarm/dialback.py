"""Whether somebody can be dialled: another node tries, and finds the right key at the other end.

An open port proves little (behind NAT, 192.168.1.2 is somebody else's machine too), so the dialler speaks libp2p as far
as its TLS handshake: the certificate carries the peer's key and its signature. libp2p's own AutoNAT wants several
public servers and minutes; and asking the daemon to connect proves nothing, since it is connected already.

Only the addresses that the asking peer is connected from are dialled: nobody can be made to knock at strangers' doors.

Formats: https://github.com/multiformats/multistream-select, https://github.com/libp2p/specs/blob/master/tls/tls.md
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Iterable, Sequence
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from peer.errors import Refused
from peer.identity import KEY_BYTES, SIGNATURE_BYTES, PeerId, verify

METHOD = "dial-back"
MAX_REQUEST_BYTES = 64
MAX_PORTS = 4
DIAL_SECONDS = 5.0
DIALS_AT_ONCE = 8  # for everybody together

_NEGOTIATE_TLS = b"\x13/multistream/1.0.0\n\x0b/tls/1.0.0\n"
_EXTENSION = x509.ObjectIdentifier("1.3.6.1.4.1.53594.1.1")
_SIGNED_KEY = b"\x30\x68\x04\x24\x08\x01\x12\x20"  # ASN.1: sequence of two octet strings, the first an Ed25519 key
_SIGNATURE = b"\x04\x40"  # the second, of 64 bytes


async def proves(host: str, port: int, peer: PeerId) -> bool:
    """Whether `peer` answers at this IP address, within `DIAL_SECONDS`."""
    try:
        async with asyncio.timeout(DIAL_SECONDS):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(_NEGOTIATE_TLS)
                if await reader.readexactly(len(_NEGOTIATE_TLS)) != _NEGOTIATE_TLS:
                    return False
                await writer.start_tls(_context())
                certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
                return owner_of(certificate) == peer
            finally:
                writer.transport.abort()
    except (OSError, EOFError, TimeoutError):  # ssl.SSLError is an OSError
        return False


def owner_of(certificate: bytes | None) -> PeerId | None:
    """The libp2p peer that a TLS certificate (DER) belongs to; None if it is not one of an Ed25519 peer."""
    with contextlib.suppress(ValueError, TypeError, x509.ExtensionNotFound):
        parsed = x509.load_der_x509_certificate(certificate or b"")
        value: bytes = parsed.extensions.get_extension_for_oid(_EXTENSION).value.public_bytes()
        start = len(_SIGNED_KEY)
        key, tag, signature = (
            value[start : start + KEY_BYTES],
            value[start + KEY_BYTES : start + KEY_BYTES + len(_SIGNATURE)],
            value[start + KEY_BYTES + len(_SIGNATURE) :],
        )
        signed = b"libp2p-tls-handshake:" + parsed.public_key().public_bytes(
            Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        )
        shaped = value.startswith(_SIGNED_KEY) and tag == _SIGNATURE and len(signature) == SIGNATURE_BYTES
        return PeerId(key) if shaped and verify(key, signature, signed) else None
    return None


class DialBack:
    """The answering side: dials whoever asks at the addresses that it is connected from."""

    def __init__(self) -> None:
        self._gate = asyncio.Semaphore(DIALS_AT_ONCE)

    async def answer(self, sender: PeerId, ports: bytes, connected_from: Sequence[str]) -> bytes:
        """The multiaddrs, one a line, at which `sender` could be dialled. `ports`: up to four numbers, with spaces."""
        wanted = parse_ports(ports)
        hosts = [host for host, _ in map(host_and_port, connected_from) if host][:2]
        found = []
        for host in dict.fromkeys(hosts):
            for port in wanted:
                async with self._gate:
                    if await proves(host, port, sender):
                        found.append(f"/ip{ip_address(host).version}/{host}/tcp/{port}")
        return "\n".join(found).encode()


def parse_ports(text: bytes) -> list[int]:
    """Raises Refused."""
    words = text.split()
    if not 0 < len(words) <= MAX_PORTS or not all(word.isdigit() and 0 < int(word) < 65536 for word in words):
        raise Refused(f"say 1 to {MAX_PORTS} port numbers")
    return [int(word) for word in words]


def host_and_port(address: str) -> tuple[str, int]:
    """Of a plain `/ip4/.../tcp/...`; ("", 0) for anything else, relayed addresses included."""
    parts = address.split("/")
    if len(parts) != 5 or parts[1] not in ("ip4", "ip6") or parts[3] != "tcp":
        return "", 0
    return parts[2], int(parts[4])


def ports_of(visible: Iterable[str], listening: int) -> list[int]:
    """Ports that others might reach us at: the one we listen on, and those that a router opened for it."""
    seen = [port for _, port in map(host_and_port, visible) if port]
    return list(dict.fromkeys([listening, *seen] if listening else seen))[:MAX_PORTS]


def agreed(answers: Sequence[Sequence[str]]) -> list[str]:
    """What may be told to others after several nodes have tried: nothing, unless most of them got through. A mate in
    the same home network gets through where the world does not."""
    reached = [answer for answer in answers if answer]
    if 2 * len(reached) <= len(answers):
        return []
    return list(dict.fromkeys(address for answer in reached for address in answer))


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # self-signed: `owner_of` checks it
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["libp2p"])
    return context
