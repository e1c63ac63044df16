"""What lives and dies with one p2pd: the control socket, our socket for incoming streams, our DHT node.

Ordinary hivemind nodes can share the DHT; nodes of ours hold and believe nothing but entries signed by their owners.
"""

from __future__ import annotations

import asyncio
import importlib.resources
import re
import time
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any

from peer.errors import Refused, UnreachableError, UsageError
from peer.identity import Identity, PeerId
from peer.swarm import quietly as hivemind
from peer.swarm.daemon import Daemon, Listening
from peer.swarm.entries import is_valid, owner_of, seal, subkey_of, unseal
from peer.swarm.interface import PIECE_BYTES
from peer.swarm.multiaddr import decode, encode
from peer.swarm.quietly import (
    DHTID,
    P2P,
    ControlClient,
    DictionaryDHTValue,
    MSGPackSerializer,
    Multiaddr,
    P2PContext,
    P2PDaemonError,
    PeerID,
    dht_pb2,
    p2pd_pb2,
    read_pbmsg_safe,
    write_pbmsg,
)
from peer.swarm.wire import clean, hang_up

PROTOCOL = "/commonweights/swarm/1"
DHT_CALL_SECONDS = 3.0
DHT_REPLICAS = 5
DHT_BEAM = 6  # a search ends when this many nearest nodes have answered: one more than hold an entry
DHT_PARALLEL = 4
DHT_MAX_ASKED = 64  # a liar may name nodes without end
NODE_ID_BYTES = 20
MAX_KEYS = 256  # that this node stores for others
MAX_ENTRIES_PER_KEY = 1500  # with MAX_ENTRY_BYTES: a whole key fits the 4 MiB of one hivemind reply


Accept = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]
"""Takes over an incoming stream; `read_stream_info` comes first on it."""


class DaemonLost(UnreachableError):
    """Our own daemon does not answer: the fault is here, and being mended."""


class DHTProtocol(hivemind.DHTProtocol):  # type: ignore[misc]  # its name is part of its address
    """hivemind's DHT node, which from now on holds and believes owners' entries only."""

    async def rpc_ping(self, request: dht_pb2.PingRequest, context: P2PContext) -> dht_pb2.PingResponse:
        if len(request.peer.node_id) > NODE_ID_BYTES:  # would fail in a task of its own, and fill our log
            request.peer.ClearField("node_id")
        return await super().rpc_ping(request, context)

    def _validate_record(self, key: bytes, subkey: bytes, value: bytes, expiration: float) -> bool:
        sealed = _unpack(value)
        if sealed is None or not is_valid(key, subkey, sealed, expiration, time.time()):
            return False
        held = self.storage.get(DHTID.from_bytes(key))
        if held is None:
            return len(self.storage) < MAX_KEYS
        if not isinstance(held.value, DictionaryDHTValue):
            return False
        own = held.value.get(_unpack(subkey))
        if own is None:
            return len(held.value) < MAX_ENTRIES_PER_KEY
        # An entry that is not newer must not reach hivemind's storage: it would be refused there, and yet make the
        # one it lost against expire at the earlier time.
        return bool(expiration > own.expiration_time)

    def _validate_dictionary(self, key: bytes, dictionary: DictionaryDHTValue) -> bool:
        """Drops what is invalid and keeps the rest; the original lets one forged entry hide all others."""
        with dictionary.freeze():
            for subkey, (value, expiration) in list(dictionary.items()):
                if not self._validate_record(key, MSGPackSerializer.dumps(subkey), value, expiration):
                    del dictionary[subkey]
        return True


class _PendingCalls(dict[Any, Any]):
    """hivemind's open unary calls. A reply that meets a call just cancelled would end hivemind's only reader."""

    def __contains__(self, call: object) -> bool:
        return super().__contains__(call) and not self[call].done()


class Session:
    """What lives and dies with one p2pd: its control socket, our socket for incoming streams, our DHT node."""

    def __init__(self, daemon: Daemon, control: ControlClient, dht: DHTProtocol, server: asyncio.Server) -> None:
        self.daemon, self.control, self.dht, self.server = daemon, control, dht, server

    @classmethod
    async def open(
        cls,
        identity: Identity,
        listening: Listening,
        folder: Path,
        accept: Accept,
        *,
        startup_timeout: float,
    ) -> Session:
        program = Path(str(importlib.resources.files("hivemind") / "hivemind_cli" / "p2pd"))
        daemon = await Daemon.start(program, identity, listening, folder, startup_timeout=startup_timeout)
        server = None
        try:
            async with asyncio.timeout(startup_timeout):
                own_p2p: Any = type("OwnP2P", (P2P,), {"_UNIX_SOCKET_PREFIX": f"/unix{folder}/"})
                p2p = await own_p2p.replicate(Multiaddr(f"/unix{daemon.control_socket}"))
                p2p._client.control._pending_calls = _PendingCalls()
                dht = await DHTProtocol.create(
                    p2p,
                    node_id=DHTID.generate(source=str(identity.peer_id)),
                    bucket_size=20,
                    depth_modulo=5,
                    num_replicas=DHT_REPLICAS,
                    wait_timeout=DHT_CALL_SECONDS,
                    cache_size=1,  # unused
                    client_mode=listening.client_mode,
                )
                incoming = str(folder / "incoming.sock")
                Path(incoming).unlink(missing_ok=True)
                server = await asyncio.start_unix_server(accept, incoming, limit=2 * PIECE_BYTES, backlog=1024)
                session = cls(daemon, p2p._client.control, dht, server)
                handler = p2pd_pb2.StreamHandlerRequest(
                    addr=Multiaddr(f"/unix{incoming}").to_bytes(), proto=[PROTOCOL], balanced=False
                )
                await session.request(p2pd_pb2.Request(type=p2pd_pb2.Request.STREAM_HANDLER, streamHandler=handler))
                return session
        except BaseException as error:
            if server is not None:
                server.close()
            await daemon.stop()
            if isinstance(error, TimeoutError | OSError | EOFError | P2PDaemonError):
                raise UnreachableError(f"the p2p daemon does not answer: {error}") from error
            raise

    async def close(self) -> None:
        """Everything that waits for the daemon fails now, instead of never."""

        async def gone(*_: object) -> bytes:
            raise P2PDaemonError("the daemon is gone")

        self.server.close()
        self.control.call_unary_handler = gone
        for call in self.control._pending_calls.values():
            if not call.done():
                call.set_exception(P2PDaemonError("the daemon is gone"))
        self.control.close()
        tasks = [self.control._read_task, self.control._write_task, *self.control._handler_tasks.values()]
        for task in tasks:
            task.cancel()
        await self.daemon.stop()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def broken(self, seconds: float) -> str | None:
        """Waits for `seconds`, or until the session is of no use any more: then says why."""
        process = asyncio.ensure_future(self.daemon.process.wait())
        ends = {process, self.control._read_task, self.control._write_task}
        try:
            done, _ = await asyncio.wait(ends, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                return None
            return "died" if process in done else "hung up"
        finally:
            process.cancel()
            await asyncio.gather(process, return_exceptions=True)

    def take_over(self, before: Session) -> None:
        """What our DHT node held for others outlives the daemon."""
        self.dht.storage = before.dht.storage

    def prune(self) -> None:
        """hivemind keeps handler tasks that were cancelled by their caller for ever."""
        tasks = self.control._handler_tasks
        for call in [call for call, task in tasks.items() if task.done()]:
            del tasks[call]

    @property
    def is_lonely(self) -> bool:
        """Whether our DHT node knows no other."""
        return not self.dht.routing_table.uid_to_peer_id

    async def _exchange(self, request: p2pd_pb2.Request) -> tuple[Any, asyncio.StreamReader, asyncio.StreamWriter]:
        """Raises UnreachableError with libp2p's words if it says no, DaemonLost if it says nothing."""
        writer = None
        try:
            reader, writer = await asyncio.open_unix_connection(self.daemon.control_socket, limit=2 * PIECE_BYTES)
            await write_pbmsg(writer, request)
            response = p2pd_pb2.Response()
            await read_pbmsg_safe(reader, response)
            if response.type == p2pd_pb2.Response.ERROR:
                reason = response.error.msg.rpartition("] ")[2]  # libp2p lists every address it tried
                raise UnreachableError(f"cannot be reached: {clean(reason)}")
            return response, reader, writer
        except BaseException as error:
            if writer is not None:
                hang_up(writer)
            if isinstance(error, OSError | EOFError):
                raise DaemonLost(f"the p2p daemon here does not answer: {error}") from None
            raise

    async def request(self, request: p2pd_pb2.Request) -> Any:
        response, _, writer = await self._exchange(request)
        hang_up(writer)
        return response

    async def identify(self) -> list[str]:
        """The addresses we can be seen under, as far as libp2p knows."""
        response = await self.request(p2pd_pb2.Request(type=p2pd_pb2.Request.IDENTIFY))
        return [text for text in map(decode, response.identify.addrs) if text is not None]

    async def peers(self) -> dict[PeerId, list[str]]:
        """Who is connected, and at which addresses."""
        response = await self.request(p2pd_pb2.Request(type=p2pd_pb2.Request.LIST_PEERS))
        connected = {_peer(info.id): [a for a in map(decode, info.addrs) if a is not None] for info in response.peers}
        return {peer: addresses for peer, addresses in connected.items() if peer is not None}

    async def connect(self, peer: PeerId, addresses: Iterable[str]) -> None:
        request = p2pd_pb2.ConnectRequest(peer=peer.to_multihash(), addrs=[encode(a) for a in addresses])
        await self.request(p2pd_pb2.Request(type=p2pd_pb2.Request.CONNECT, connect=request))

    async def open_stream(self, peer: PeerId) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Raises Refused if the peer does not know our protocol, UnreachableError if it cannot be reached."""
        request = p2pd_pb2.StreamOpenRequest(peer=peer.to_multihash(), proto=[PROTOCOL])
        try:
            _, reader, writer = await self._exchange(
                p2pd_pb2.Request(type=p2pd_pb2.Request.STREAM_OPEN, streamOpen=request)
            )
        except UnreachableError as error:
            if "protocols not supported" in str(error):
                raise Refused("is no peer of ours: it does not speak our protocol") from None
            raise
        return reader, writer

    async def greet(self, peer: PeerId) -> bool:
        """Makes each other known in the DHT. False if there is no answer. Raises UsageError if the clocks differ."""
        target = PeerID(peer.to_multihash())
        try:
            return await self.dht.call_ping(target, validate=True, strict=True) is not None
        except hivemind.ValidationError as error:
            clocks = re.findall(r"(?:local|peer): ([0-9.]+[0-9])", str(error))
            if len(clocks) == 2:
                raise UsageError(_about_clocks(float(clocks[0]) - float(clocks[1]))) from None
            return await self.dht.call_ping(target) is not None

    async def store(self, key: str, owner: Identity, value: bytes, expiration: float) -> bool:
        """Files `value` under (key, owner) at the nodes nearest to the key, and here. False if nobody took it."""
        target, subkey = DHTID.generate(source=key), owner.peer_id.to_multihash()
        sealed = seal(owner, target.to_bytes(), subkey_of(owner.peer_id), value, expiration)
        packed = MSGPackSerializer.dumps(sealed)
        taken = not self.dht.client_mode and self.dht.storage.store(target, packed, expiration, subkey=subkey)
        nearest = await self._search(target, lambda _: None)
        calls = (
            self.dht.call_store(node, [target], [packed], expiration, subkeys=[subkey])
            for _, node in nearest[:DHT_REPLICAS]
        )
        return any(answer and answer[0] for answer in await asyncio.gather(*calls)) or taken

    async def find(self, key: str, visit: Callable[[PeerId, bytes, float], None]) -> None:
        """`visit(owner, value, expiration)` sees every entry that any node near the key holds, as they come in."""
        target = DHTID.generate(source=key)

        def visit_all(entries: DictionaryDHTValue) -> None:
            now = time.time()
            for subkey, (packed, expiration) in entries.items():
                owner, sealed = owner_of(MSGPackSerializer.dumps(subkey)), _unpack(packed)
                if owner is not None and sealed is not None and expiration > now:
                    visit(owner, unseal(sealed), expiration)

        held = self.dht.storage.get(target)
        if held is not None and isinstance(held.value, DictionaryDHTValue):
            visit_all(held.value)
        await self._search(target, visit_all)

    async def find_neighbours(self) -> None:
        """Fills the routing table with the nodes near our own."""
        await self._search(self.dht.node_id, lambda _: None)

    async def _search(self, target: DHTID, visit: Callable[[DictionaryDHTValue], None]) -> list[tuple[DHTID, PeerID]]:
        """Asks the nodes nearest to `target`, nearer and nearer; `visit` sees every dictionary found under it.

        Returns the nodes that answered, nearest first. May be cancelled at any time.
        """
        table = self.dht.routing_table
        known = dict(table.get_nearest_neighbors(target, self.dht.bucket_size, exclude=self.dht.node_id))
        asked: set[DHTID] = set()
        asking: dict[asyncio.Task[Any], DHTID] = {}
        try:
            while True:
                nearest = sorted(known, key=target.xor_distance)[:DHT_BEAM]
                for node in (n for n in nearest if n not in asked):
                    if len(asking) < DHT_PARALLEL and len(asked) < DHT_MAX_ASKED:
                        asked.add(node)
                        asking[asyncio.create_task(self.dht.call_find(known[node], [target]))] = node
                if not asking:
                    return [(node, known[node]) for node in nearest if node in asked]
                done, _ = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    node, answer = asking.pop(task), task.result()
                    if answer is None:
                        del known[node]
                        continue
                    found, neighbours = answer[target]
                    if found is not None and isinstance(found.value, DictionaryDHTValue):
                        visit(found.value)
                    known.update((n, p) for n, p in neighbours.items() if n not in asked and n != self.dht.node_id)
        finally:
            for task in asking:
                task.cancel()


async def read_stream_info(reader: asyncio.StreamReader) -> PeerId | None:
    """Who opened the stream that p2pd passes to us; None for ids that are no Ed25519 keys."""
    info = p2pd_pb2.StreamInfo()
    try:
        async with asyncio.timeout(DHT_CALL_SECONDS):
            await read_pbmsg_safe(reader, info)
    except (EOFError, OSError, TimeoutError, ValueError):
        return None
    return _peer(info.peer)


def _unpack(data: bytes) -> bytes | None:
    """The content of one msgpack `bin`, or None for everything else; nothing else of a stranger's is unpacked."""
    if not data or data[0] not in (0xC4, 0xC5, 0xC6):
        return None
    try:
        value = MSGPackSerializer.loads(data)
    except Exception:  # of msgpack, in as many kinds as there is garbage
        return None
    return value if isinstance(value, bytes) else None


def _peer(multihash: bytes) -> PeerId | None:
    try:
        return PeerId.from_multihash(multihash)
    except UsageError:
        return None


def _about_clocks(seconds: float) -> str:
    side = "ahead of" if seconds > 0 else "behind"
    return (
        f"this machine's clock is {abs(seconds):.0f} s {side} the swarm's; set it right (timedatectl set-ntp true) and "
        "start again"
    )
