"""A ticket: one line of text that is all a stranger needs to find a run and to know whose word to take for it.

    cw1 + base32( length, content, crc32 )        content: protos Ticket

Base32 in lower case survives what happens to text on its way (chat programs, line breaks, a change of case, a double
click) at the price of a fifth more characters than base64. The length makes "cut off" a different finding from
"mistyped"; the checksum is against accidents only. A ticket is public: it holds no secret, and the run's id in it, a
hash, is what the coordinator's answers are checked against.
"""

from __future__ import annotations

import base64
import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

from google.protobuf.message import DecodeError

from peer.errors import UnreachableError, UsageError
from peer.identity import PeerId
from peer.swarm.multiaddr import split_peer
from protos import coordinator_pb2

FILE_NAME = "ticket.txt"

MAX_OTHERS = 4  # peers beside the coordinator: a ticket is still one line in a chat
MAX_ADDRESSES_EACH = 2

_VERSION = 1
_TOKEN = re.compile(r"cw(\d)([a-z2-7]*)", re.IGNORECASE)
_LOOKS_LIKE_A_TOKEN = re.compile(r"cw\d[^/\\.]*", re.IGNORECASE)
_LENGTH = struct.Struct(">H")
_CRC = struct.Struct(">I")
_QUOTES = "\"'`<>“”‘’"
_FETCH_SECONDS = 10.0
_MAX_BYTES = 4096  # of content; also of a file that may hold a ticket, times two


@dataclass(frozen=True)
class Ticket:
    """Where a run is found. `str(ticket)` is the line to hand around."""

    run_id: bytes  # 32 bytes: hash of the genesis record
    coordinator: PeerId
    grpc_addresses: tuple[str, ...]  # "host:port"
    swarm_addresses: tuple[str, ...]  # multiaddrs: the coordinator's without /p2p, other peers' with
    tls: bool = False  # the API speaks TLS
    certificate_hash: bytes = b""  # of the API's own certificate (peer/channel.py); empty: one that the system trusts

    def __post_init__(self) -> None:
        if len(self.run_id) != 32:
            raise UsageError(f"a ticket's run id has 32 bytes, not {len(self.run_id)}")
        if len(self.certificate_hash) not in (0, 32) or (self.certificate_hash and not self.tls):
            raise UsageError("a ticket names a certificate by 32 bytes, and only with TLS")
        if not self.grpc_addresses and not self.swarm_addresses:
            raise UsageError("a ticket without any address leads nowhere; give --host or an announced address")
        for address in self.grpc_addresses:
            split_address(address)
        for address in self.swarm_addresses:
            if not address.startswith("/"):
                raise UsageError(f"{address!r} is not a multiaddr; write /ip4/ADDRESS/tcp/PORT or /dns4/NAME/tcp/PORT")
            split_peer(address)

    def __str__(self) -> str:
        content = coordinator_pb2.Ticket(
            run_id=self.run_id,
            coordinator=self.coordinator.public_key,
            grpc_addresses=self.grpc_addresses,
            swarm_addresses=self.swarm_addresses,
            tls=self.tls,
            certificate_hash=self.certificate_hash,
        ).SerializeToString(deterministic=True)
        if len(content) > _MAX_BYTES:
            raise UsageError(f"a ticket holds {_MAX_BYTES} bytes at most, not {len(content)}; announce fewer addresses")
        data = _LENGTH.pack(len(content)) + content
        data += _CRC.pack(zlib.crc32(data))
        return f"cw{_VERSION}" + base64.b32encode(data).decode().rstrip("=").lower()

    @property
    def contacts(self) -> dict[PeerId, list[str]]:
        """Who lets a newcomer in, with addresses: the coordinator, and peers in case it is away."""
        found: dict[PeerId, list[str]] = {self.coordinator: []}
        for address in self.swarm_addresses:
            bare, peer = split_peer(address)
            found.setdefault(peer or self.coordinator, []).append(bare)
        return found

    def naming(self, peer: PeerId, addresses: Sequence[str]) -> Ticket:
        """The same run by way of one more peer. The one named longest ago makes room; the coordinator stays."""
        others = {other: known for other, known in self.contacts.items() if other not in (self.coordinator, peer)}
        others[peer] = list(addresses)[:MAX_ADDRESSES_EACH]
        named = list(others.items())[-MAX_OTHERS:]
        return replace(
            self,
            swarm_addresses=(
                *self.contacts[self.coordinator],
                *(f"{address}/p2p/{other}" for other, known in named for address in known),
            ),
        )

    @classmethod
    def parse(cls, text: str) -> Ticket:
        """From the line itself, from the path of a file (or of a run's folder) that holds it, or from a URL.

        The coordinator's page has it at PAGE/ticket; over plain http it deserves as much trust as the network between.

        White space, line breaks and quotation marks in and around the line do no harm.

        Raises:
            UsageError: what is wrong with it and what to do.
            UnreachableError: nobody answers at the URL.
        """
        token = re.sub(r"\s+", "", text).strip(_QUOTES)
        if not token:
            raise UsageError("no ticket given; ask the run's coordinator for the line in its ticket.txt")
        if _LOOKS_LIKE_A_TOKEN.fullmatch(token):
            return _decode(token)
        if re.match(r"https?://", token):
            return _find(_fetch(token), token)
        return _read(Path(text.strip()))

    def save(self, folder: Path) -> Path:
        """Write `ticket.txt` into `folder`; returns its path."""
        path = folder / FILE_NAME
        path.write_text(f"{self}\n", encoding="ascii")
        return path


def split_address(address: str) -> tuple[str, int]:
    """'host:port' -> (host, port); an IPv6 host stands in brackets. Raises UsageError."""
    host, _, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not host or (":" in host and not bracketed) or not port.isascii() or not port.isdigit():
        raise UsageError(f"{address!r} is not an address; write HOST:PORT, or [HOST]:PORT for IPv6")
    if not 0 < int(port) < 65536:
        raise UsageError(f"{address!r}: the port must be between 1 and 65535")
    return host.strip("[]"), int(port)


def _read(path: Path) -> Ticket:
    try:
        path = path.expanduser()
        if path.is_dir():
            path /= FILE_NAME
        with path.open("rb") as file:
            content = file.read(2 * _MAX_BYTES)
    except FileNotFoundError:
        raise UsageError(f"{str(path)[:80]!r} is neither a ticket (they begin with cw{_VERSION}) nor a file") from None
    except (OSError, ValueError, RuntimeError) as error:  # a null byte; ~nobody
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{str(path)[:80]!r} is not a ticket, and cannot be read as a file: {reason}") from None
    return _find(content, str(path))


def _fetch(url: str) -> bytes:
    try:
        with urlopen(url, timeout=_FETCH_SECONDS) as answer:
            return bytes(answer.read(2 * _MAX_BYTES))
    except HTTPError as error:
        raise UsageError(
            f"{url}: no ticket there ({error.code} {error.reason}); the page's is at PAGE/ticket"
        ) from None
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise UnreachableError(f"{url}: no ticket could be fetched: {reason}; is the coordinator up?") from None


def _find(content: bytes, where: str) -> Ticket:
    token = re.sub(r"\s+", "", content.decode("utf-8", "replace")).strip(_QUOTES)
    if not _LOOKS_LIKE_A_TOKEN.fullmatch(token):
        raise UsageError(f"{where}: no ticket in it; a ticket is one line that begins with cw{_VERSION}")
    return _decode(token)


def _decode(token: str) -> Ticket:
    match = _TOKEN.fullmatch(token)
    if not match:
        if re.search(r"cw\d", token[3:], re.IGNORECASE):
            raise _damaged("there are two of them in one")
        wrong = next(character for character in token[3:] if not re.match(r"[a-z2-7]", character, re.IGNORECASE))
        raise _damaged(f"{wrong!r} cannot occur in it")
    if int(match[1]) != _VERSION:
        raise UsageError(
            f"this ticket is of version {match[1]}, and this program reads version {_VERSION}: "
            "update commonweights, or ask for a new ticket"
        )
    digits = match[2].upper()
    # A cut-off ticket may end in the middle of a byte: decode the whole bytes that are there.
    whole = digits[: len(digits) - len(digits) % 8] + digits[len(digits) - len(digits) % 8 :].ljust(8, "A")
    data = base64.b32decode(whole if len(digits) % 8 else digits)[: len(digits) * 5 // 8]
    if len(data) < _LENGTH.size:
        raise _damaged("it is cut off after the beginning")
    size = _LENGTH.size + _LENGTH.unpack_from(data)[0] + _CRC.size
    characters = -(-size * 8 // 5)
    if len(digits) < characters:
        raise _damaged(f"it is cut off after {len(token)} of {characters + 3} characters")
    if len(digits) > characters:
        raise _damaged(f"it has {len(token)} characters instead of {characters + 3}")
    content, checksum = data[_LENGTH.size : -_CRC.size], data[-_CRC.size :]
    canonical = base64.b32encode(data).decode().rstrip("=")
    if _CRC.pack(zlib.crc32(data[: -_CRC.size])) != checksum or canonical != digits:
        raise _damaged("its checksum does not fit, so at least one character is wrong")
    try:
        message = coordinator_pb2.Ticket.FromString(content)
    except DecodeError:
        raise _damaged("its content cannot be read") from None
    return Ticket(
        run_id=message.run_id,
        coordinator=PeerId.from_public_key(message.coordinator),
        grpc_addresses=tuple(message.grpc_addresses),
        swarm_addresses=tuple(message.swarm_addresses),
        tls=message.tls,
        certificate_hash=message.certificate_hash,
    )


def _damaged(how: str) -> UsageError:
    return UsageError(f"the ticket is damaged: {how}; copy it again, whole")
