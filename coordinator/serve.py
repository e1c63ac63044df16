"""The start of a coordinator, from its folder and options, and its orderly end.

It may be killed at any moment. Everything it needs again is in its folder: identity, data, log, blobs, snapshots;
leases are presented again by the peers that hold them.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from configs import RunSpec
from coordinator.api.server import served
from coordinator.api.tls import ServerCertificate, given_certificate, own_certificate
from coordinator.api.token import admin_token
from coordinator.genesis import create
from coordinator.names import Names
from coordinator.observer import observer_of
from coordinator.rebuild import rebuild
from coordinator.recover import recover_snapshots
from coordinator.run import Coordinator
from coordinator.settings import Settings
from coordinator.store import Store, open_store
from coordinator.store.database import default_url
from coordinator.web.publisher import published
from peer.errors import CommonweightsError, UnreachableError, UsageError
from peer.exchange.blobs import BlobStore
from peer.exchange.exchange import Exchange
from peer.exchange.measure import Measuring
from peer.identity import Identity, PeerId
from peer.log.chain import Log
from peer.log.replica import Replica
from peer.log.state import State
from peer.pulse import Pulse
from peer.rounds.leader import Leader
from peer.rounds.link import Link
from peer.swarm import HivemindSwarm, Swarm
from peer.swarm.multiaddr import split_peer
from peer.ticket import Ticket


@dataclass(frozen=True)
class ServeOptions:
    folder: Path
    host: str = ""  # the name or address that others reach this machine at; empty: what it sees itself
    grpc_port: int = 0
    swarm_port: int = 0
    web_ports: tuple[int, ...] = ()  # for the page, the first that is free (0: any); none: no page
    database: str = ""  # URL; empty: FOLDER/database.sqlite
    tls: bool = False  # with a certificate made for the run, unless one is given
    tls_certificate: Path | None = None  # PEM files
    tls_key: Path | None = None
    paused: bool = False
    recover: bool = False  # the folder is lost: begin it again from the peers
    identity: Path | None = None  # a backup of the run's key, for a folder that has none
    peers: tuple[str, ...] = ()  # multiaddrs with /p2p, where some of them are
    settings: Settings = field(default_factory=Settings)


@contextlib.asynccontextmanager
async def coordinating(
    spec: RunSpec, options: ServeOptions, on_event: Callable[[str], None] = lambda text: None
) -> AsyncIterator[Coordinator]:
    """The run in `options.folder`, made if it is not there yet, with its API up and its ticket written.

    Raises:
        UsageError: a port is in use, or the folder holds a run of another spec.
        CommonweightsError: the data cannot be prepared, the folder not be written or not be read again.
    """
    folder = options.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--dir {folder}: cannot be made: {error.strerror}") from None
    identity = own_identity(options, on_event)
    lost = options.recover and not any((folder / "log").glob("*.record"))
    log = None if lost else await asyncio.to_thread(open_run, spec, folder, identity)
    loopback = options.host in ("localhost", "127.0.0.1")
    announce = [f"{_ip(options.host)}/tcp/{options.swarm_port}"] if options.host and options.swarm_port else []
    async with await HivemindSwarm.create(
        identity,
        listen_host=bind_address(options.host),
        port=options.swarm_port,
        announce_addresses=announce,
        bootstrap=[_contact(address) for address in options.peers],
        bootstrap_required=False,
        map_port=False,
        public=not loopback,
    ) as swarm:
        log = log or await rebuild(spec, folder, identity, swarm, on_event)
        async with leading(log, swarm, identity, options, on_event) as coordinator:
            yield coordinator


@contextlib.asynccontextmanager
async def leading(
    log: Log, swarm: Swarm, identity: Identity, options: ServeOptions, on_event: Callable[[str], None]
) -> AsyncIterator[Coordinator]:
    """The parts of a coordinator put together on a swarm that is up."""
    database = options.database or default_url(options.folder)
    with await asyncio.to_thread(open_store, database, log.run_id) as store:
        async with _leading(log, swarm, identity, options, on_event, store) as coordinator:
            yield coordinator


@contextlib.asynccontextmanager
async def _leading(
    log: Log,
    swarm: Swarm,
    identity: Identity,
    options: ServeOptions,
    on_event: Callable[[str], None],
    store: Store,
) -> AsyncIterator[Coordinator]:
    folder = options.folder
    state = State.empty(log.origin.genesis.parameters, log.spec.outer.momentum > 0)
    state.round = -1  # none yet
    link = Link(swarm, log.run_id, identity.peer_id, [], Pulse(), on_event)
    replica = Replica(folder, log, state, Exchange(swarm, BlobStore(folder / "blobs")), lambda: link.sources)
    try:
        if not await replica.restore():
            await asyncio.to_thread(recover_snapshots, folder, log, replica.snapshots, on_event)
        if not (replica.state.round >= 0 or await replica.restore()):
            raise CommonweightsError(f"{folder}/snapshots holds no usable state; restore the folder from a backup")
        with contextlib.suppress(UnreachableError):  # payloads that only peers have, of rounds that one of them led
            await replica.catch_up()
        names = Names(folder / "names.json")
        leader = Leader(replica, swarm, identity, paused=options.paused)
        observer = observer_of(folder, replica, identity, names, options.settings)
        coordinator = Coordinator(folder, store, observer, link, leader, names)
        coordinator.on_event = on_event
        replica.serve(swarm)
        coordinator.helm.serve()
        Measuring(swarm, replica.exchange.upload)
        await coordinator.remember()
        await coordinator.doorkeeper.restore()
        coordinator.doorkeeper.serve(swarm)
        certificate, token = server_certificate(options), admin_token(folder, create=True)
        bind, host = bind_address(options.host), options.host or _first_host(swarm.addresses)
        async with (
            observer,
            served(coordinator, bind, options.grpc_port, token, certificate) as grpc_port,
            published(coordinator, bind, options.web_ports, host) as coordinator.page_address,
        ):
            ticket = Ticket(
                log.run_id, identity.peer_id, (f"{host}:{grpc_port}",), tuple(swarm.addresses),
                tls=certificate is not None, certificate_hash=certificate.hash if certificate else b"",
            )  # fmt: skip
            ticket.save(folder)
            coordinator.ticket = ticket
            try:
                yield coordinator
            finally:
                names.save()
    finally:
        await replica.exchange.close()
        replica.close()


def own_identity(options: ServeOptions, on_event: Callable[[str], None]) -> Identity:
    """The key in the folder, or the backup that is named, or for a new run a new one.

    Raises:
        UsageError: to recover a run, its key is needed.
    """
    path = options.folder / "identity.key"
    if options.identity is not None and not path.exists():
        Identity.load(options.identity).save(path)
    if not path.exists():
        if options.recover:
            raise UsageError(f"--recover: {path} is missing; give the backup of the run's key with --identity FILE")
        on_event(f"keep a copy of {path} somewhere safe: with it the run can be recovered from its peers (--recover)")
    return Identity.load_or_create(path)


def _contact(address: str) -> tuple[PeerId, list[str]]:
    bare, peer = split_peer(address)
    if peer is None:
        raise UsageError(f"--peer {address}: the peer's id is missing; write /ip4/ADDRESS/tcp/PORT/p2p/ID")
    return peer, [bare]


def server_certificate(options: ServeOptions) -> ServerCertificate | None:
    """What the API shows; None: it speaks in the clear. Raises UsageError."""
    if (options.tls_certificate is None) != (options.tls_key is None):
        raise UsageError("--tls-certificate and --tls-key go together")
    if options.tls_certificate is not None and options.tls_key is not None:
        return given_certificate(options.tls_certificate, options.tls_key)
    return own_certificate(options.folder) if options.tls else None


def bind_address(host: str) -> str:
    """Loopback when that is where others are told to come, else every interface."""
    return "127.0.0.1" if host in ("localhost", "127.0.0.1") else "0.0.0.0"


def open_run(spec: RunSpec, folder: Path, identity: Identity) -> Log:
    """The run in `folder`; made from `spec` when there is none.

    Raises:
        UsageError: it was made from another spec.
    """
    if not any((folder / "log").glob("*.record")):
        return create(spec, folder, identity)
    log = Log.load(folder / "log", cut_damage=True)  # peers may have what is damaged here
    if log.spec != spec:
        changed = ", ".join(differences(log.spec, spec))
        raise UsageError(
            f"{folder} holds a run with other settings ({changed}); a run's settings are fixed by its first record: "
            "use another --dir, or the config it was made from"
        )
    if log.origin.coordinator != identity.peer_id:
        raise UsageError(f"{folder}/identity.key is not the key that signed this run; put the right one back")
    return log


def differences(old: RunSpec, new: RunSpec) -> list[str]:
    """Keys whose values differ, as section.key."""
    before, after = old.model_dump(), new.model_dump()
    return [
        f"{section}.{key}"
        for section, values in before.items()
        for key in values
        if values[key] != after[section].get(key)
    ]


def _ip(host: str) -> str:
    try:
        socket.inet_pton(socket.AF_INET, host)
    except OSError:
        return f"/dns4/{host}"
    return f"/ip4/{host}"


def _first_host(addresses: list[str]) -> str:
    parts = addresses[0].split("/") if addresses else []
    return parts[2] if len(parts) > 2 else "127.0.0.1"
