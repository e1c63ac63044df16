"""Keeps one session running and connected: starts the daemon, watches it, replaces it, dials, joins the DHT.

Everybody else asks `session()` for the session of the moment and may find it lost (`DaemonLost`); then asks again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable, Sequence

from peer.errors import CommonweightsError, UnreachableError, UsageError
from peer.identity import Identity, PeerId
from peer.swarm.daemon import Listening, PrivateFolder
from peer.swarm.session import Accept, DaemonLost, Session

logger = logging.getLogger(__name__)

DIAL_SECONDS = 10.0
MORE_SECONDS = 1.0  # to wait for more answers after one
TICK_SECONDS = 10.0  # between looks at the daemon's health, our addresses and our connections
MAX_TICKS_MISSED = 2  # a daemon that does not answer that often is replaced
RESTART_SECONDS = 30.0
REDIAL_SECONDS = 2.0  # that calls wait after a restart, so that they find their peers again
NEIGHBOURS_SECONDS = 5.0
MAX_KNOWN_PEERS = 512
MAX_REDIALLED = 32
MAX_GREETED = 8

Contact = tuple[PeerId, Sequence[str]]  # multiaddrs without /p2p


def circuit(address: str, relay: PeerId) -> str:
    """The multiaddr of whoever has a reservation at `relay`."""
    return f"{address}/p2p/{relay}/p2p-circuit"


class Keeper:
    def __init__(self, identity: Identity, listening: Listening, bootstrap: Sequence[Contact], accept: Accept) -> None:
        self.visible: list[str] = []  # our addresses, as libp2p sees them
        self.folder = PrivateFolder()
        self.current: Session | None = None
        self._identity, self._listening, self._bootstrap, self._accept = identity, listening, bootstrap, accept
        self._known: dict[PeerId, Sequence[str]] = dict(bootstrap)  # and by `connect`, oldest first
        self._seen: dict[PeerId, list[str]] = {}  # connected at the last look
        self._up = asyncio.Event()
        self._closed = False

    @property
    def listening_port(self) -> int:
        """0 if we listen nowhere."""
        return 0 if self._listening.client_mode else self._listening.port

    @property
    def bootstrap_peers(self) -> list[PeerId]:
        return [peer for peer, _ in self._bootstrap]

    async def session(self) -> Session:
        """Waits through a restart of the daemon; the caller sets the deadline."""
        await self._up.wait()
        if self.current is None or self._closed:
            raise UnreachableError("the swarm is closed")
        return self.current

    async def start(self, timeout_seconds: float) -> None:
        """Raises UsageError, UnreachableError."""
        await self._open(timeout_seconds)
        self._up.set()

    async def join(self, deadline: float, *, required: bool) -> None:
        """Reaches the first of the bootstrap peers, by `deadline` of the monotonic clock.

        Raises UnreachableError if nobody answers, UsageError if our clock is wrong.
        """
        tried = ", ".join(address for _, addresses in self._bootstrap for address in addresses)
        while True:
            session = await self.session()
            reached = await self._dial(session, self._bootstrap)
            if reached:
                await self.greet(reached, strict=True)
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

    async def connect(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """Raises UnreachableError; the caller sets the deadline."""
        while True:
            try:
                await (await self.session()).connect(peer, addresses)
                break
            except DaemonLost:
                await asyncio.sleep(0.05)
        self._known.pop(peer, None)
        self._known[peer] = addresses
        if len(self._known) > MAX_KNOWN_PEERS:
            del self._known[next(iter(self._known))]

    async def open_stream(self, peer: PeerId) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Raises UnreachableError, Refused; the caller sets the deadline."""
        dialled = False
        while True:
            session = await self.session()
            try:
                return await session.open_stream(peer)
            except DaemonLost:
                await asyncio.sleep(0.05)
            except UnreachableError:
                addresses = [*self._known.get(peer, ()), *self._seen.get(peer, ()), *self._circuits_to(peer)]
                if dialled or not addresses:
                    raise
                dialled = True
                with contextlib.suppress(DaemonLost):
                    await session.connect(peer, addresses)

    async def watch(self) -> None:
        """Runs as long as the swarm: notices a dead or frozen daemon, and that we are alone."""
        missed = 0
        while True:
            session = self.current
            assert session is not None
            reason = await session.broken(TICK_SECONDS)
            if reason is None:
                missed = 0 if await self.tick(session) else missed + 1
                reason = "does not answer" if missed >= MAX_TICKS_MISSED else None
            if reason is not None:
                missed = 0
                await self._replace(session, reason)

    async def tick(self, session: Session) -> bool:
        """One look at everything; False if the daemon does not answer."""
        try:
            async with asyncio.timeout(DIAL_SECONDS):
                self.visible = await session.identify()
                self._seen = await session.peers()
        except (UnreachableError, TimeoutError):
            return False
        session.prune()
        connected = list(self._seen) or await self._dial(session, self._contacts())
        if connected and session.is_lonely:
            await self.greet(connected[:MAX_GREETED])
        return True

    async def greet(self, peers: Sequence[PeerId], *, strict: bool = False) -> None:
        """Makes `peers` and us known to each other in the DHT. `strict`: raises UsageError if all clocks say that ours
        is wrong."""
        session = await self.session()
        results = await asyncio.gather(*(session.greet(peer) for peer in peers), return_exceptions=True)
        wrong = [result for result in results if isinstance(result, UsageError)]
        if wrong and len(wrong) == len(results):
            if strict:
                raise wrong[0]
            logger.warning("%s", wrong[0])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(NEIGHBOURS_SECONDS):
                await session.find_neighbours()

    async def close(self) -> None:
        """After `watch` was cancelled."""
        self._closed = True
        self._up.set()  # whoever waits for a restart has waited long enough
        session, self.current = self.current, None
        if session is not None:
            await session.close()
        self.folder.remove()

    async def _open(self, timeout_seconds: float) -> None:
        session = await Session.open(
            self._identity, self._listening, self.folder.path, self._accept, startup_timeout=timeout_seconds
        )
        try:
            self.visible = await session.identify()
        except BaseException:
            await session.close()
            raise
        self.current = session
        if not self._listening.port:
            self._listening = self._listening.at_port_of(self.visible)  # the same after a restart

    async def _replace(self, broken: Session, reason: str) -> None:
        logger.warning("the p2p daemon %s; starting another", reason)
        self._up.clear()
        await broken.close()
        wait_seconds = 0.0
        while True:
            await asyncio.sleep(wait_seconds)
            try:
                await self._open(RESTART_SECONDS)
                break
            except CommonweightsError as error:
                wait_seconds = min(30.0, 2 * wait_seconds + 0.5)
                logger.warning("%s; again in %g s", error, wait_seconds)
        assert self.current is not None
        self.current.take_over(broken)
        dialling = asyncio.create_task(self._dial(self.current, self._contacts()))
        try:
            await asyncio.wait({dialling}, timeout=REDIAL_SECONDS)
            self._up.set()
            await self.greet((await dialling)[:MAX_GREETED])
        finally:
            dialling.cancel()

    def _circuits_to(self, peer: PeerId) -> list[str]:
        """Ways to a peer that cannot be dialled, over bootstrap peers that may relay to it. libp2p tells only of those
        over public addresses."""
        return [
            circuit(address, relay) for relay, addresses in self._bootstrap if relay != peer for address in addresses
        ]

    def _contacts(self) -> list[Contact]:
        """Whom to dial when alone: the last ones connected and asked for, and the bootstrap peers in any case."""
        contacts = dict([*self._known.items(), *self._seen.items()][-MAX_REDIALLED:])
        return [*({**contacts, **dict(self._bootstrap)}).items()]

    async def _dial(self, session: Session, contacts: Iterable[Contact]) -> list[PeerId]:
        """Those that answered."""

        async def dial(peer: PeerId, addresses: Sequence[str]) -> PeerId | None:
            try:
                async with asyncio.timeout(DIAL_SECONDS):
                    await session.connect(peer, addresses)
                    return peer
            except (UnreachableError, TimeoutError) as error:
                logger.debug("cannot dial %s: %s", peer, error)
                return None

        dials = [asyncio.create_task(dial(peer, addresses)) for peer, addresses in contacts if addresses]
        reached: list[PeerId] = []
        try:
            while dials:
                ended, waiting = await asyncio.wait(
                    dials, timeout=MORE_SECONDS if reached else None, return_when=asyncio.FIRST_COMPLETED
                )
                reached += [peer for task in ended if (peer := task.result()) is not None]
                dials = list(waiting)
                if not ended:  # whoever is dead shows only after seconds; one who lives is enough to go on with
                    break
        finally:
            for task in dials:
                task.cancel()
            await asyncio.gather(*dials, return_exceptions=True)
        return reached
