"""Opening the coordinator's API: in the clear, or over TLS with a certificate that the ticket or the system vouches
for.

A ticket names the run's own certificate by its hash (see coordinator/api/tls.py). It is fetched from the server first,
compared with the hash, and then nothing else is trusted: no authority, and no host name.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ssl
from collections.abc import AsyncIterator

import grpc

from peer.errors import UnreachableError, VerificationError
from peer.ticket import Ticket, split_address

CERTIFICATE_NAME = "commonweights"  # in a run's own certificate, whatever host shows it
CONNECT_SECONDS = 10.0
MAX_REPLY_BYTES = 8 << 20
OPTIONS = [
    ("grpc.max_receive_message_length", MAX_REPLY_BYTES),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.enable_retries", 0),
]


@contextlib.asynccontextmanager
async def opened(ticket: Ticket, address: str) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to one of the ticket's addresses ("host:port").

    Raises:
        UnreachableError: nobody listens there, or no TLS is spoken there.
        VerificationError: the certificate there is not the ticket's.
    """
    if not ticket.tls:
        channel = grpc.aio.insecure_channel(address, options=OPTIONS)
    elif ticket.certificate_hash:
        certificate = await asyncio.to_thread(_fetch, address, ticket.certificate_hash)
        options = [*OPTIONS, ("grpc.ssl_target_name_override", CERTIFICATE_NAME)]
        channel = grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(certificate), options=options)
    else:
        channel = grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(), options=OPTIONS)
    async with channel:
        yield channel


def _fetch(address: str, expected: bytes) -> bytes:
    """The certificate (PEM) that is shown at `address`, if it is the expected one (SHA-256 of its DER)."""
    try:
        pem = ssl.get_server_certificate(split_address(address), timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise UnreachableError(f"{address}: no TLS connection: {error}") from None
    if hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).digest() != expected:
        raise VerificationError(
            f"{address} shows another certificate than the ticket names: somebody is in between, or the coordinator "
            "lost its folder; ask the organiser for the ticket once more"
        )
    return pem.encode()
