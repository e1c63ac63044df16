"""The swarm over hivemind: libp2p connections from its p2p daemon, its Kademlia DHT, all in the caller's event loop.

Used of hivemind: the daemon and the DHT's protocol. Ours, because the originals hang, trust or forget: the life of the
daemon's process, calls and streams (over libp2p streams rather than hivemind's unary calls, which share one connection,
read before they refuse, and wait for ever when the daemon dies), the rules for DHT entries, and a search of the DHT
that merges what several nodes know and can be cut off at any time.

A daemon that dies or freezes is replaced; calls meanwhile wait or fail with UnreachableError, nothing else notices.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Coroutine, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from peer.errors import CommonweightsError, Refused, UnreachableError
from peer.identity import Identity, PeerId
from peer.swarm import dialback
from peer.swarm.daemon import Listening
from peer.swarm.interface import MAX_ENTRY_BYTES, MAX_ENTRY_SECONDS, MAX_REPLY_BYTES, Handler, StreamHandler
from peer.swarm.keeper import Contact, Keeper, circuit
from peer.swarm.multiaddr import distance, encode, split_peer
from peer.swarm.session import read_stream_info
from peer.swarm.wire import (
    Service,
    Services,
    ask,
    counted,
    first_piece,
    listen,
    serve_conversation,
    timed,
)

logger = logging.getLogger(__name__)

ANNOUNCE_SECONDS = 10.0
LOOKUP_SECONDS = 5.0  # what was found until then is the answer
ASKED = 3  # nodes that try to dial us
CHECK_SECONDS = 300.0  # between two times that they do: routers forget, and change their minds
RECHECK_SECONDS = 30.0  # while nobody could: a router may open a port some seconds after it was asked to
ASK_SECONDS = 30.0


class HivemindSwarm:
    """See `peer.swarm.interface.Swarm`. Made with `create`, ended with `close` or as a context manager."""

    def __init__(self, identity: Identity, listening: Listening, bootstrap: Sequence[Contact]) -> None:
        self.peer_id = identity.peer_id
        self._identity = identity
        self._announced = list(listening.announce)
        circuits = [circuit(address, relay) for relay, addresses in bootstrap for address in addresses]
        self._circuits = dict.fromkeys(circuits if listening.auto_relay else ())
        self._proven: list[str] = []  # where other nodes have dialled us
        self._listening = listening
        self._services = Services()
        self._dial_back = dialback.DialBack()
        self.serve(dialback.METHOD, self._on_dial_back, max_request_bytes=dialback.MAX_REQUEST_BYTES)
        self._expirations: dict[str, float] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._keeper = Keeper(identity, listening, bootstrap, self._accept)

    @classmethod
    async def create(
        cls,
        identity: Identity | Path | str,
        *,
        listen_host: str = "0.0.0.0",
        port: int = 0,
        announce_addresses: Sequence[str] = (),
        bootstrap: Sequence[Contact] = (),
        bootstrap_required: bool = True,
        client_mode: bool = False,
        auto_relay: bool = False,
        public: bool = False,
        map_port: bool = True,
        startup_timeout: float = 30.0,
    ) -> HivemindSwarm:
        """Starts a daemon and joins the swarm that `bootstrap` (peer, multiaddrs) belongs to.

        One of `bootstrap` has to answer, unless not `bootstrap_required`: then joining goes on in the background.
        `announce_addresses` are told to others instead of what we see ourselves (behind a port forward). `client_mode`
        is for peers that cannot be dialled; `auto_relay` asks the bootstrap peers to relay to us, which they do if they
        are `public`; enough for calls and for punching a hole, not for blobs: libp2p's daemon ends a relayed connection
        after 128 KiB or two minutes, most times whatever it was told. `map_port` asks a home router for a port (UPnP).

        Raises UsageError (port in use, bad address, clock wrong), UnreachableError (nobody answered).
        """
        if not isinstance(identity, Identity):
            identity = Identity.load_or_create(identity)
        contacts = [(p, [split_peer(a)[0] for a in addresses]) for p, addresses in bootstrap if p != identity.peer_id]
        announce = [split_peer(address)[0] for address in announce_addresses]
        for address in (*announce, *(address for _, addresses in contacts for address in addresses)):
            encode(address)
        listening = Listening(
            host=listen_host,
            port=port,
            announce=tuple(announce),
            client_mode=client_mode,
            auto_relay=auto_relay,
            relays=tuple(f"{address}/p2p/{peer}" for peer, addresses in contacts for address in addresses),
            public=public,
            map_port=map_port,
        )
        swarm = cls(identity, listening, contacts)
        try:
            deadline = time.monotonic() + startup_timeout
            await swarm._keeper.start(startup_timeout)
            if contacts:
                await swarm._keeper.join(deadline, required=bootstrap_required)
        except BaseException:
            await swarm.close()
            raise
        swarm._spawn(swarm._keeper.watch())
        swarm._spawn(swarm._keep_checking())
        return swarm

    @property
    def addresses(self) -> list[str]:
        """Where others can dial us: as announced, or as they proved it. Public before private before loopback, and
        relayed ones last."""
        own = self._announced or (self._proven if self._must_prove else self._keeper.visible)
        return sorted({**dict.fromkeys(own), **self._circuits}, key=distance)

    def serve(self, method: str, handler: Handler, *, max_request_bytes: int) -> None:
        self._services.add(Service(method, handler, max_request_bytes, is_stream=False))

    def serve_stream(self, method: str, handler: StreamHandler, *, max_request_bytes: int) -> None:
        self._services.add(Service(method, handler, max_request_bytes, is_stream=True))

    async def call(
        self,
        peer: PeerId,
        method: str,
        request: bytes,
        *,
        timeout_seconds: float,
        max_reply_bytes: int = MAX_REPLY_BYTES,
    ) -> bytes:
        with _naming(peer):
            try:
                async with asyncio.timeout(timeout_seconds):
                    if peer == self.peer_id:
                        return await first_piece(self._services.answer(method, peer, request), max_reply_bytes)
                    reader, writer = await self._keeper.open_stream(peer)
                    return await ask(reader, writer, method, request, limit=max_reply_bytes)
            except TimeoutError:
                raise UnreachableError(f"no answer within {timeout_seconds:g} s") from None

    async def stream(
        self, peer: PeerId, method: str, request: bytes, *, timeout_seconds: float, max_bytes: int
    ) -> AsyncGenerator[bytes, None]:
        with _naming(peer):
            pieces = counted(timed(self._pieces(peer, method, request), timeout_seconds), max_bytes)
            async with contextlib.aclosing(pieces):
                async for piece in pieces:
                    yield piece

    async def _pieces(self, peer: PeerId, method: str, request: bytes) -> AsyncGenerator[bytes, None]:
        if peer == self.peer_id:
            pieces = self._services.answer(method, peer, request)
        else:
            reader, writer = await self._keeper.open_stream(peer)
            pieces = listen(reader, writer, method, request)
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                yield piece

    async def connect(self, peer: PeerId, addresses: list[str], *, timeout_seconds: float) -> None:
        if peer == self.peer_id:
            return
        bare = [split_peer(address)[0] for address in addresses]
        for address in bare:
            encode(address)
        with _naming(peer):
            try:
                async with asyncio.timeout(timeout_seconds):
                    await self._keeper.connect(peer, bare)
            except TimeoutError:
                raise UnreachableError(f"no connection within {timeout_seconds:g} s") from None
        self._spawn(self._greet(peer))

    async def announce(self, key: str, value: bytes, *, ttl_seconds: float) -> None:
        if len(value) > MAX_ENTRY_BYTES:
            raise Refused(
                f"a DHT entry may have {MAX_ENTRY_BYTES} bytes, not {len(value)}; serve it, announce its hash"
            )
        # Never an earlier expiration than before: hivemind's nodes would lose both.
        expiration = max(time.time() + min(ttl_seconds, MAX_ENTRY_SECONDS), self._expirations.get(key, 0.0) + 0.001)
        self._expirations[key] = expiration
        try:
            async with asyncio.timeout(ANNOUNCE_SECONDS):
                session = await self._keeper.session()
                if await session.store(key, self._identity, value, expiration):
                    return
        except TimeoutError:
            pass
        raise UnreachableError("no node of the DHT took the entry")

    async def lookup(self, key: str) -> dict[PeerId, bytes]:
        found: dict[PeerId, tuple[float, bytes]] = {}

        def visit(owner: PeerId, value: bytes, expiration: float) -> None:
            if owner not in found or found[owner][0] < expiration:
                found[owner] = expiration, value

        with contextlib.suppress(TimeoutError, UnreachableError):
            async with asyncio.timeout(LOOKUP_SECONDS):
                await (await self._keeper.session()).find(key, visit)
        return {owner: value for owner, (_, value) in found.items()}

    async def peers(self) -> list[PeerId]:
        session = self._keeper.current
        with contextlib.suppress(UnreachableError, TimeoutError):
            async with asyncio.timeout(LOOKUP_SECONDS):
                return sorted(await session.peers()) if session else []
        return []

    async def refresh_addresses(self) -> list[str]:
        """Asks libp2p now under which addresses we can be seen; `addresses` is otherwise some seconds old."""
        with contextlib.suppress(UnreachableError, TimeoutError):
            async with asyncio.timeout(LOOKUP_SECONDS):
                self._keeper.visible = await (await self._keeper.session()).identify()
        return self.addresses

    @property
    def _must_prove(self) -> bool:
        it = self._listening
        return not (it.announce or it.public or it.is_private)

    async def check_reachability(self) -> list[str]:
        """Has other nodes dial us now: `addresses` is what they say. Nothing changes when none of them answers."""
        ports = dialback.ports_of(self._keeper.visible, self._keeper.listening_port)
        request = " ".join(map(str, ports)).encode()
        answers = await asyncio.gather(*(self._ask_to_dial(peer, request) for peer in await self._dialers()))
        told = [answer for answer in answers if answer is not None]
        if ports and told:
            self._proven = dialback.agreed(told)
        return self.addresses

    async def _dialers(self) -> list[PeerId]:
        """Whom to ask: those we were told of first, then whoever is connected."""
        connected = await self.peers()
        first = [peer for peer in self._keeper.bootstrap_peers if peer in connected]
        return list(dict.fromkeys([*first, *connected]))[:ASKED]

    async def _ask_to_dial(self, peer: PeerId, request: bytes) -> list[str] | None:
        try:
            reply = await self.call(peer, dialback.METHOD, request, timeout_seconds=ASK_SECONDS, max_reply_bytes=1000)
            addresses = reply.decode("ascii").split()
            for address in addresses:
                encode(address)
        except (CommonweightsError, UnicodeDecodeError) as error:
            logger.debug("%s did not try to dial: %s", peer.short, error)
            return None
        return addresses

    async def _keep_checking(self) -> None:
        while self._must_prove:
            before = self._proven
            await self.check_reachability()
            if self._proven != before:
                logger.info("others can dial this peer at: %s", ", ".join(self._proven) or "no address")
            await asyncio.sleep(CHECK_SECONDS if self._proven else RECHECK_SECONDS)

    async def _on_dial_back(self, sender: PeerId, ports: bytes) -> bytes:
        session = self._keeper.current
        connected = await session.peers() if session else {}
        return await self._dial_back.answer(sender, ports, connected.get(sender, []))

    async def close(self) -> None:
        """Quiet, in milliseconds; conversations under way end with it. Twice is fine."""
        current = asyncio.current_task()
        tasks = [task for task in self._tasks if task is not current]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._keeper.close()

    async def __aenter__(self) -> HivemindSwarm:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.suppress(asyncio.CancelledError):  # by `close`; asyncio would log it as an error
            sender = await read_stream_info(reader)
            if sender is None:
                writer.close()
            else:
                await serve_conversation(self._services, sender, reader, writer)

    async def _greet(self, peer: PeerId) -> None:
        with contextlib.suppress(UnreachableError):
            await self._keeper.greet([peer])

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@contextlib.contextmanager
def _naming(peer: PeerId) -> Iterator[None]:
    """Puts the peer's name in front of what went wrong with it."""
    try:
        yield
    except UnreachableError as error:
        raise UnreachableError(f"peer {peer.short}: {error}") from error.__cause__
