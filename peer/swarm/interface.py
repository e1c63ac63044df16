"""What the rest of the project knows of the swarm: peers that call each other, stream to each other and leave notes.

Two swarms keep this promise: `HivemindSwarm` (the real one) and `MemorySwarm` (peer/swarm/memory.py, for
tests and simulations with injected faults). One contract suite runs against both. This module imports neither.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeAlias

from peer.identity import PeerId

PIECE_BYTES = 256 * 1024  # of a stream: measured best on the wire, and one token-bucket step at home uplinks
MAX_REPLY_BYTES = 4 * 1024 * 1024 - 64 * 1024  # of a call; what is larger belongs into a stream
MAX_ENTRY_BYTES = 2048  # of a DHT entry: the DHT is for pointers, not for data
MAX_ENTRY_SECONDS = 3600.0  # longest life of a DHT entry; nodes of ours refuse longer ones

Handler: TypeAlias = Callable[[PeerId, bytes], Awaitable[bytes]]
"""(sender, request) -> reply. The sender is authenticated by the transport. Raise `Refused(reason)` to refuse."""

StreamHandler: TypeAlias = Callable[[PeerId, bytes], AsyncIterator[bytes]]
"""(sender, request) -> pieces of at most PIECE_BYTES. Closed early when the caller hangs up."""


class Swarm(AbstractAsyncContextManager["Swarm"], Protocol):
    """A peer's place in the swarm. All methods belong to the event loop that made it."""

    @property
    def peer_id(self) -> PeerId: ...

    @property
    def addresses(self) -> list[str]:
        """Own multiaddrs, without /p2p, best first. Empty for a peer that cannot be dialled."""
        ...

    def serve(self, method: str, handler: Handler, *, max_request_bytes: int) -> None:
        """Answers `call`s of `method` from now on. Larger requests are refused unread."""
        ...

    def serve_stream(self, method: str, handler: StreamHandler, *, max_request_bytes: int) -> None:
        """Answers `stream`s of `method` from now on."""
        ...

    async def call(
        self,
        peer: PeerId,
        method: str,
        request: bytes,
        *,
        timeout_seconds: float,
        max_reply_bytes: int = MAX_REPLY_BYTES,
    ) -> bytes:
        """The handler's reply.

        Raises Refused(reason) when the other side refused (or its reply is too large), UnreachableError when there is
        no complete reply within `timeout_seconds`: unknown, dead, frozen, cut off in the middle.
        """
        ...

    def stream(
        self, peer: PeerId, method: str, request: bytes, *, timeout_seconds: float, max_bytes: int
    ) -> AsyncGenerator[bytes, None]:
        """The handler's pieces; `timeout_seconds` may pass between two of them.

        Raises Refused and UnreachableError as `call` does, in the middle too; a normal end means that the handler
        came to its end. Callers check length and hash nevertheless: the other side need not be honest. Close it
        (`contextlib.aclosing`) when leaving before the end.
        """
        ...

    async def connect(self, peer: PeerId, addresses: list[str], *, timeout_seconds: float) -> None:
        """Dials `peer` at its multiaddrs, /p2p suffix or not, and remembers them. Raises UnreachableError."""
        ...

    async def announce(self, key: str, value: bytes, *, ttl_seconds: float) -> None:
        """Leaves `value` in the DHT under (key, own peer id), signed, for `ttl_seconds`; replaces the one before.

        Raises UnreachableError when no node took it.
        """
        ...

    async def lookup(self, key: str) -> dict[PeerId, bytes]:
        """What peers announced under `key`; only entries signed by the peer they are filed under. Never raises."""
        ...

    async def peers(self) -> list[PeerId]:
        """Peers that are connected now."""
        ...

    async def close(self) -> None: ...
