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
from collections.abc import AsyncGenerator, Coroutine, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from peer.errors import CommonweightsError, Refused, UnreachableError, UsageError
from peer.identity import Identity, PeerId
from peer.multiaddr import encode, is_loopback, split_peer
from peer.swarm.daemon import Listening, PrivateFolder
from peer.swarm.interface import MAX_ENTRY_BYTES, MAX_ENTRY_SECONDS, MAX_REPLY_BYTES, Handler, StreamHandler
from peer.swarm.quietly import P2PDaemonError
from peer.swarm.session import Session, read_stream_info
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

DIAL_SECONDS = 10.0
TICK_SECONDS = 10.0  # between looks at the daemon's health, our addresses and our connections
MAX_TICKS_MISSED = 2  # a daemon that does not answer that often is replaced
ANNOUNCE_SECONDS = 10.0
LOOKUP_SECONDS = 5.0  # what was found until then is the answer
MAX_KNOWN_PEERS = 512
MAX_REDIALLED = 32

Contact = tuple[PeerId, Sequence[str]]


class HivemindSwarm:
    """See `peer.swarm.interface.Swarm`. Made with `create`, ended with `close` or as a context manager."""

    def __init__(self, identity: Identity, listening: Listening, bootstrap: Sequence[Contact]) -> None:
        self.peer_id = identity.peer_id
        self._identity = identity
        self._listening = listening
        self._bootstrap = [
            (p, [split_peer(a)[0] for a in addresses]) for p, addresses in bootstrap if p != self.peer_id
        ]
        self._known: dict[PeerId, list[str]] = {}  # by `connect`, oldest first: whom to dial when alone
        self._seen: dict[PeerId, list[str]] = {}  # connected at the last look
        self._services = Services()
        self._folder = PrivateFolder()
        self._session: Session | None = None
        self._up = asyncio.Event()
        self._closed = False
        self._visible: list[str] = []
        self._expirations: dict[str, float] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

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
        are `public`. `map_port` asks a home router for a port (UPnP).

        Raises UsageError (port in use, bad address, clock wrong), UnreachableError (nobody answered).
        """
        if not isinstance(identity, Identity):
            identity = Identity.load_or_create(identity)
        announce = tuple(split_peer(address)[0] for address in announce_addresses)
        for address in (*announce, *(split_peer(a)[0] for _, addresses in bootstrap for a in addresses)):
            encode(address)
        listening = Listening(
            host=listen_host,
            port=port,
            announce=announce,
            client_mode=client_mode,
            auto_relay=auto_relay,
            relays=tuple(f"{split_peer(a)[0]}/p2p/{peer}" for peer, addresses in bootstrap for a in addresses),
            public=public,
            map_port=map_port,
        )
        swarm = cls(identity, listening, bootstrap)
        try:
            began = time.monotonic()
            await swarm._start_session(startup_timeout)
            if swarm._bootstrap:
                await swarm._join_first(began + startup_timeout, required=bootstrap_required)
        except BaseException:
            await swarm.close()
            raise
        swarm._spawn(swarm._watch())
        return swarm

    @property
    def addresses(self) -> list[str]:
        """Announced ones, or those libp2p saw: public before private, loopback last, relayed ones after direct ones."""
        if self._listening.announce:
            return list(self._listening.announce)
        return sorted(self._visible, key=lambda address: ("p2p-circuit" in address, is_loopback(address)))

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
                    reader, writer = await (await self._running()).open_stream(peer)
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
            reader, writer = await (await self._running()).open_stream(peer)
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
                    await (await self._running()).connect(peer, bare)
            except TimeoutError:
                raise UnreachableError(f"no connection within {timeout_seconds:g} s") from None
            except (P2PDaemonError, OSError, EOFError) as error:
                raise UnreachableError(f"no connection to {', '.join(bare)}: {error}") from None
        self._known.pop(peer, None)
        self._known[peer] = bare
        if len(self._known) > MAX_KNOWN_PEERS:
            del self._known[next(iter(self._known))]
        self._spawn(self._greet([peer]))

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
                session = await self._running()
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
                await (await self._running()).find(key, visit)
        return {owner: value for owner, (_, value) in found.items()}

    async def peers(self) -> list[PeerId]:
        if self._session is None or not self._up.is_set():
            return []
        try:
            async with asyncio.timeout(DIAL_SECONDS):
                return sorted(await self._session.peers())
        except (P2PDaemonError, OSError, EOFError, TimeoutError):
            return []

    async def refresh_addresses(self) -> list[str]:
        """Asks libp2p now under which addresses we can be seen; `addresses` is otherwise some seconds old."""
        with contextlib.suppress(P2PDaemonError, OSError, EOFError, TimeoutError):
            async with asyncio.timeout(DIAL_SECONDS):
                self._visible = await (await self._running()).identify()
        return self.addresses

    async def close(self) -> None:
        """Quiet, in milliseconds; conversations under way end with it. Twice is fine."""
        self._closed = True
        self._up.set()  # whoever waits for a restart has waited long enough
        current = asyncio.current_task()
        tasks = [task for task in self._tasks if task is not current]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        session, self._session = self._session, None
        if session is not None:
            await session.close()
        self._folder.remove()

    async def __aenter__(self) -> HivemindSwarm:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # -- the life of the daemon

    async def _running(self) -> Session:
        """Waits through a restart of the daemon; the caller sets the deadline."""
        await self._up.wait()
        if self._session is None or self._closed:
            raise UnreachableError("the swarm is closed")
        return self._session

    async def _start_session(self, timeout_seconds: float) -> None:
        self._session = await Session.open(
            self._identity, self._listening, self._folder.path, self._accept, startup_timeout=timeout_seconds
        )
        self._visible = await self._session.identify()
        if not self._listening.port:
            self._listening = self._listening.at_port_of(self._visible)  # the same after a restart
        self._up.set()

    async def _join_first(self, deadline: float, *, required: bool) -> None:
        tried = ", ".join(address for _, addresses in self._bootstrap for address in addresses)
        while True:
            reached = await self._dial(self._bootstrap)
            if reached:
                await self._greet(reached, strict=True)
                return
            if not required:
                logger.warning("no peer of the swarm answers yet (%s); going on trying", tried)
                return
            if time.monotonic() > deadline:
                raise UnreachableError(
                    f"nobody of the swarm answers at {tried}; check that the coordinator runs, that its port is open, "
                    "and the network here"
                )
            await asyncio.sleep(0.5)

    async def _watch(self) -> None:
        """Runs as long as the swarm: notices a dead or frozen daemon, and that we are alone."""
        missed = 0
        while True:
            session = self._session
            assert session is not None
            reason = await session.broken(TICK_SECONDS)
            if reason is None:
                missed = 0 if await self._tick(session) else missed + 1
                reason = "does not answer" if missed >= MAX_TICKS_MISSED else None
            if reason is not None:
                missed = 0
                await self._replace(session, reason)

    async def _tick(self, session: Session) -> bool:
        try:
            async with asyncio.timeout(DIAL_SECONDS):
                self._visible = await session.identify()
                self._seen = await session.peers()
            session.prune()
        except (P2PDaemonError, OSError, EOFError, TimeoutError):
            return False
        connected = list(self._seen) or await self._dial(self._contacts())
        if connected and session.is_lonely:
            await self._greet(connected[:8])
        return True

    async def _replace(self, broken: Session, reason: str) -> None:
        logger.warning("the p2p daemon %s; starting another", reason)
        self._up.clear()
        await broken.close()
        wait_seconds = 0.0
        while True:
            await asyncio.sleep(wait_seconds)
            try:
                await self._start_session(30.0)
                break
            except CommonweightsError as error:
                wait_seconds = min(30.0, 2 * wait_seconds + 0.5)
                logger.warning("%s; again in %g s", error, wait_seconds)
        assert self._session is not None
        self._session.take_over(broken)
        self._spawn(self._rejoin())

    async def _rejoin(self) -> None:
        await self._greet(await self._dial(self._contacts()))

    def _contacts(self) -> list[Contact]:
        recent = [*self._seen.items(), *self._known.items()][-MAX_REDIALLED:]
        return [*self._bootstrap, *recent]

    async def _dial(self, contacts: Iterable[Contact]) -> list[PeerId]:
        """Those that answered."""

        async def dial(peer: PeerId, addresses: Sequence[str]) -> PeerId | None:
            try:
                async with asyncio.timeout(DIAL_SECONDS):
                    await (await self._running()).connect(peer, addresses)
                    return peer
            except (CommonweightsError, P2PDaemonError, OSError, EOFError, TimeoutError) as error:
                logger.debug("cannot dial %s: %s", peer, error)
                return None

        results = await asyncio.gather(*(dial(peer, addresses) for peer, addresses in contacts))
        return [peer for peer in results if peer is not None]

    async def _greet(self, peers: Sequence[PeerId], *, strict: bool = False) -> None:
        """Makes `peers` and us known to each other in the DHT. `strict`: raises UsageError if all clocks say that ours
        is wrong."""
        session = await self._running()
        results = await asyncio.gather(*(session.greet(peer) for peer in peers), return_exceptions=True)
        wrong = [result for result in results if isinstance(result, UsageError)]
        if wrong and len(wrong) == len(results):
            if strict:
                raise wrong[0]
            logger.warning("%s", wrong[0])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOKUP_SECONDS):
                await session.find_neighbours()

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
