"""A swarm within one process, for tests and simulations: the same promises as the real one, and faults at a call.

Everything that can go wrong on a network is a method of `MemoryNetwork`: `kill`, `freeze`, `cut`, `heal`, `delay`,
`limit`, `corrupt`, `hide`. Sizes, refusals and admission run through the real swarm's own code (peer/swarm/wire.py);
what is missing is the wire. Delays pass in real time of the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from types import TracebackType

from peer.errors import Refused, UnreachableError
from peer.identity import Identity, PeerId
from peer.swarm.interface import MAX_ENTRY_BYTES, MAX_ENTRY_SECONDS, MAX_REPLY_BYTES, Handler, StreamHandler
from peer.swarm.wire import Service, Services, counted, first_piece, timed

Corruption = Callable[[bytes], bytes]


class MemoryNetwork:
    """The air between `MemorySwarm`s. Faults hold until `heal`; a killed peer stays dead (make a new node for it)."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._nodes: dict[PeerId, MemorySwarm] = {}
        self._frozen: set[PeerId] = set()
        self._cuts: set[frozenset[PeerId]] = set()
        self._delays: dict[PeerId | None, float] = {}
        self._rates: dict[PeerId, float] = {}
        self._corruptions: dict[PeerId, Corruption] = {}
        self._hidden: set[PeerId] = set()
        self._open: set[frozenset[PeerId]] = set()  # pairs of which one dialled the other
        self._lines: set[_Line] = set()

    def node(self, identity: Identity | PeerId | None = None) -> MemorySwarm:
        """A new peer of this network, with a new identity unless one is given."""
        identity = identity or Identity.new()
        peer_id = identity.peer_id if isinstance(identity, Identity) else identity
        assert peer_id not in self._nodes, f"{peer_id} is alive already"
        node = self._nodes[peer_id] = MemorySwarm(self, peer_id)
        return node

    def kill(self, peer: PeerId) -> None:
        """As SIGKILL: what it was saying ends in the middle, what it served is gone."""
        node = self._nodes.pop(peer, None)
        if node is not None:
            node.alive = False
        self._break_lines()

    def freeze(self, peer: PeerId) -> None:
        """As SIGSTOP: connections stay, nothing is asked or answered."""
        self._frozen.add(peer)

    def cut(self, a: PeerId, b: PeerId) -> None:
        """No connection between the two, in either direction."""
        self._cuts.add(frozenset((a, b)))
        self._break_lines()

    def heal(self, *peers: PeerId) -> None:
        """Ends cuts, freezes, delays, limits and corruption: of these peers only, if any are named."""
        troubled: list[PeerId | None] = [*self._frozen, *self._delays, *self._rates, *self._corruptions]
        chosen = set(peers or troubled)
        self._frozen = {peer for peer in self._frozen if peer not in chosen}
        self._cuts = {pair for pair in self._cuts if peers and not pair & chosen}
        self._delays = {peer: seconds for peer, seconds in self._delays.items() if peer not in chosen}
        self._rates = {peer: rate for peer, rate in self._rates.items() if peer not in chosen}
        self._corruptions = {peer: change for peer, change in self._corruptions.items() if peer not in chosen}

    def delay(self, seconds: float, peer: PeerId | None = None) -> None:
        """Every reply and piece of `peer`, or of everybody, arrives so much later."""
        self._delays[peer] = seconds

    def limit(self, bytes_per_second: float, peer: PeerId) -> None:
        """Every reply and piece that `peer` sends takes its time on a link of this rate."""
        self._rates[peer] = bytes_per_second

    def hide(self, peer: PeerId) -> None:
        """As behind NAT: nobody can dial it; whom it dials itself can talk to it."""
        self._hidden.add(peer)
        self._open = {pair for pair in self._open if peer not in pair}

    def is_hidden(self, peer: PeerId) -> bool:
        return peer in self._hidden

    def corrupt(self, peer: PeerId, corruption: Corruption | None = None) -> None:
        """Every non-empty reply and piece that `peer` sends is changed; by default its last byte."""
        self._corruptions[peer] = corruption or (lambda data: data[:-1] + bytes([data[-1] ^ 0xFF]))

    def reachable(self, a: PeerId, b: PeerId) -> bool:
        return a in self._nodes and b in self._nodes and frozenset((a, b)) not in self._cuts

    def find(self, caller: PeerId, peer: PeerId) -> MemorySwarm:
        pair = frozenset((caller, peer))
        if not self.reachable(caller, peer) or (peer in self._hidden and pair not in self._open and caller != peer):
            raise UnreachableError(f"peer {peer.short}: cannot be reached")
        self._open.add(pair)
        return self._nodes[peer]

    def nodes_seen_by(self, peer: PeerId) -> list[MemorySwarm]:
        return [
            node for other, node in self._nodes.items() if self.reachable(peer, other) and other not in self._frozen
        ]

    async def carry(self, sender: PeerId, piece: bytes) -> bytes:
        """What becomes of one reply or piece on its way."""
        await self.thawed(sender)
        seconds = self._delays.get(sender, self._delays.get(None, 0.0)) + len(piece) / self._rates.get(sender, math.inf)
        if seconds:
            await asyncio.sleep(seconds)
        corruption = self._corruptions.get(sender)
        return corruption(piece) if corruption and piece else piece

    async def thawed(self, peer: PeerId) -> None:
        while peer in self._frozen:
            await asyncio.sleep(0.005)

    @contextlib.contextmanager
    def line(self, caller: PeerId, peer: PeerId) -> Iterator[_Line]:
        line = _Line(caller, peer)
        self._lines.add(line)
        try:
            yield line
        finally:
            self._lines.discard(line)

    def _break_lines(self) -> None:
        for line in self._lines:
            if not self.reachable(line.caller, line.peer):
                line.hang_up()


class _Line:
    """An open conversation, so that a fault can end it in the middle."""

    def __init__(self, caller: PeerId, peer: PeerId) -> None:
        self.caller, self.peer = caller, peer
        self._broken = False
        self._waiting: asyncio.Timeout | None = None  # for the next piece

    def hang_up(self) -> None:
        if self._broken:  # told already; a timeout that is just ending does not take another time
            return
        self._broken = True
        if self._waiting is not None:
            self._waiting.reschedule(asyncio.get_running_loop().time())

    async def next(self, pieces: AsyncGenerator[bytes, None], network: MemoryNetwork) -> bytes | None:
        """The next piece, as it arrives; None at the end."""
        piece = None
        try:
            async with asyncio.timeout(None) as self._waiting:  # ends when the line breaks; cheaper than a task
                piece = await anext(pieces, None)
                if piece is not None:
                    piece = await network.carry(self.peer, piece)
        except TimeoutError:
            if not self._broken:
                raise
        finally:
            self._waiting = None
        if self._broken:
            raise UnreachableError(f"peer {self.peer.short}: hung up before the end")
        return piece


class MemorySwarm:
    """See `peer.swarm.interface.Swarm`. Made by `MemoryNetwork.node`."""

    def __init__(self, network: MemoryNetwork, peer_id: PeerId) -> None:
        self.peer_id = peer_id
        self.alive = True
        self.services = Services()
        self.entries: dict[str, dict[PeerId, tuple[float, bytes]]] = {}  # of the DHT: (expiration, value)
        self._network = network
        self._expirations: dict[str, float] = {}

    @property
    def addresses(self) -> list[str]:
        port = 1024 + int.from_bytes(self.peer_id.public_key[:2], "big") % 60000
        return [] if self._network.is_hidden(self.peer_id) else [f"/ip4/127.0.0.1/tcp/{port}"]

    def serve(self, method: str, handler: Handler, *, max_request_bytes: int) -> None:
        self.services.add(Service(method, handler, max_request_bytes, is_stream=False))

    def serve_stream(self, method: str, handler: StreamHandler, *, max_request_bytes: int) -> None:
        self.services.add(Service(method, handler, max_request_bytes, is_stream=True))

    async def call(
        self,
        peer: PeerId,
        method: str,
        request: bytes,
        *,
        timeout_seconds: float,
        max_reply_bytes: int = MAX_REPLY_BYTES,
    ) -> bytes:
        try:
            async with asyncio.timeout(timeout_seconds):
                return await first_piece(self._pieces(peer, method, request), max_reply_bytes)
        except TimeoutError:
            raise UnreachableError(f"peer {peer.short}: no answer within {timeout_seconds:g} s") from None

    async def stream(
        self, peer: PeerId, method: str, request: bytes, *, timeout_seconds: float, max_bytes: int
    ) -> AsyncGenerator[bytes, None]:
        pieces = counted(timed(self._pieces(peer, method, request), timeout_seconds), max_bytes)
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                if piece:
                    yield piece

    async def _pieces(self, peer: PeerId, method: str, request: bytes) -> AsyncGenerator[bytes, None]:
        if not self.alive:
            raise UnreachableError("the swarm is closed")
        await self._network.thawed(self.peer_id)
        answer = self._network.find(self.peer_id, peer).services.answer(method, self.peer_id, request)
        async with contextlib.aclosing(answer):
            with self._network.line(self.peer_id, peer) as line:
                while (piece := await line.next(answer, self._network)) is not None:
                    yield piece

    async def connect(self, peer: PeerId, addresses: list[str], *, timeout_seconds: float) -> None:
        self._network.find(self.peer_id, peer)

    async def announce(self, key: str, value: bytes, *, ttl_seconds: float) -> None:
        if len(value) > MAX_ENTRY_BYTES:
            raise Refused(
                f"a DHT entry may have {MAX_ENTRY_BYTES} bytes, not {len(value)}; serve it, announce its hash"
            )
        now = self._network.clock()
        expiration = max(now + min(ttl_seconds, MAX_ENTRY_SECONDS), self._expirations.get(key, 0.0))
        self._expirations[key] = expiration
        nodes = self._network.nodes_seen_by(self.peer_id) if self.alive else []
        for node in nodes:
            node.entries.setdefault(key, {})[self.peer_id] = expiration, value
        if not nodes:
            raise UnreachableError("no node of the DHT took the entry")

    async def lookup(self, key: str) -> dict[PeerId, bytes]:
        now = self._network.clock()
        found: dict[PeerId, tuple[float, bytes]] = {}
        for node in self._network.nodes_seen_by(self.peer_id) if self.alive else []:
            for owner, entry in node.entries.get(key, {}).items():
                if entry[0] > now and (owner not in found or found[owner][0] < entry[0]):
                    found[owner] = entry
        return {owner: value for owner, (_, value) in found.items()}

    async def peers(self) -> list[PeerId]:
        seen = self._network.nodes_seen_by(self.peer_id) if self.alive else []
        return sorted(node.peer_id for node in seen if node is not self)

    async def close(self) -> None:
        if self.alive:
            self._network.kill(self.peer_id)

    async def __aenter__(self) -> MemorySwarm:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
