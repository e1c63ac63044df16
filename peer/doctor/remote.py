"""Facts about the way to the swarm: names, the coordinator's API, the swarm itself."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import ipaddress
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc

from peer.channel import opened
from peer.doctor.facts import Api, Bootstrap, Model, Names, Speed
from peer.errors import CommonweightsError, Refused, UnreachableError, UsageError
from peer.identity import Identity
from peer.log.chain import Log
from peer.pulse import Pulse
from peer.swarm import Swarm
from peer.ticket import Ticket, split_address
from protos import coordinator_pb2, coordinator_pb2_grpc

if TYPE_CHECKING:
    from peer.swarm import HivemindSwarm

API_SECONDS = 8.0
CLOCK_KEY = "time-seconds"  # of the answer's metadata: the coordinator's Unix clock


@dataclass(frozen=True)
class Answer:
    """What the coordinator said over gRPC; `log` holds the run's genesis, checked against the ticket."""

    api: Api
    log: Log | None = None


async def ask_coordinator(ticket: Ticket) -> Answer:
    """Ask the ticket's addresses for the run, one after the other."""
    problem = "the ticket has no gRPC address"
    for address in ticket.grpc_addresses:
        try:
            async with opened(ticket, address) as channel:
                stub: Any = coordinator_pb2_grpc.CoordinatorStub(channel)
                sent = time.time()
                call = stub.GetRun(coordinator_pb2.GetRunRequest(run_id=ticket.run_id), timeout=API_SECONDS)
                reply: coordinator_pb2.GetRunReply = await call
                metadata = {str(key): value for key, value in await call.initial_metadata()}
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.NOT_FOUND:
                return Answer(Api(address=address, other_run=True))
            problem = str(error.details() or error.code().name)[:120]
            continue
        except CommonweightsError as error:
            problem = str(error)[:120]
            continue
        ahead = _ahead(metadata.get(CLOCK_KEY), (sent + time.time()) / 2)
        try:
            log = Log.start(reply.genesis, None, ticket.run_id)
        except CommonweightsError:
            return Answer(Api(address=address, other_run=True, clock_ahead_seconds=ahead))
        return Answer(Api(address=address, version=reply.version[:40], clock_ahead_seconds=ahead), log)
    return Answer(Api(tried=ticket.grpc_addresses, problem=problem))


def _ahead(told: object, now: float) -> float | None:
    try:
        return now - float(str(told))
    except ValueError:
        return None


def model_of(log: Log) -> Model:
    """What a run asks of a machine; loads transformers."""
    from peer.codecs import largest_payload_bytes
    from peer.training.tasks.language_model import model_config

    spec = log.spec
    vocabulary = 257 if spec.data.tokenizer.kind == "bytes" else getattr(spec.data.tokenizer, "vocab_size", 50_000)
    config = model_config(spec, vocabulary)
    parameters = log.origin.genesis.parameters
    return Model(
        parameters=parameters,
        sequence_length=spec.data.sequence_length,
        batch_sequences=spec.train.batch_sequences,
        layers=int(config.num_hidden_layers),
        width=int(config.hidden_size),
        vocabulary=vocabulary,
        momentum=spec.outer.momentum > 0,
        kept_states=spec.snapshots.keep + 1,  # an old one goes when the new one is there
        payload_bytes=largest_payload_bytes(spec.codec.name, parameters),
        round_seconds=spec.round.max_seconds,
        ladder=spec.codec.ladder,
    )


async def look_up(ticket: Ticket) -> Names:
    """Every host name of the ticket, at the name server."""
    hosts = {split_address(address)[0] for address in ticket.grpc_addresses}
    hosts |= {parts[2] for address in ticket.swarm_addresses if (parts := address.split("/"))[1].startswith("dns")}
    names = sorted(host for host in hosts if not _is_address(host))
    loop = asyncio.get_running_loop()
    found = await asyncio.gather(
        *(loop.getaddrinfo(name, None, type=socket.SOCK_STREAM) for name in names), return_exceptions=True
    )
    resolved: dict[str, list[str]] = {}
    failed: dict[str, str] = {}
    for name, answer in zip(names, found, strict=True):
        if isinstance(answer, BaseException):
            failed[name] = str(getattr(answer, "strerror", None) or answer)
        else:
            resolved[name] = sorted({str(entry[4][0]) for entry in answer})
    return Names(resolved, failed)


@dataclass(frozen=True)
class Visit:
    """A visit to the swarm under a passing identity. `swarm` is None when nobody was met."""

    found: Bootstrap
    swarm: HivemindSwarm | None = None


@contextlib.asynccontextmanager
async def visiting(ticket: Ticket, port: int, deadline_seconds: float) -> AsyncIterator[Visit]:
    """In the swarm while the block runs, as far as that succeeds; listening on `port`, or on any (0)."""
    tried = ticket.swarm_addresses
    async with contextlib.AsyncExitStack() as stack:
        try:
            async with asyncio.timeout(deadline_seconds):
                swarm = await stack.enter_async_context(await _swarm(ticket, port, deadline_seconds - 2.0))
                found = await _greet(swarm, ticket)
        except Refused as error:
            yield Visit(Bootstrap(tried, other_run=f"the node at {tried[0]} says no: {error}"))
        except (UnreachableError, UsageError, TimeoutError) as error:
            yield Visit(Bootstrap(tried, problem=str(error) or f"not within {deadline_seconds:.0f} s"))
        else:
            yield Visit(found, swarm)


async def _swarm(ticket: Ticket, port: int, seconds: float) -> HivemindSwarm:
    module = await asyncio.to_thread(importlib.import_module, "peer.swarm.hivemind_swarm")  # hivemind and torch
    swarm: HivemindSwarm = await module.HivemindSwarm.create(
        Identity.new(),
        bootstrap=list(ticket.contacts.items()),
        port=port,
        startup_timeout=seconds,
    )
    return swarm


async def _greet(swarm: Swarm, ticket: Ticket) -> Bootstrap:
    from peer.rounds.link import Link

    coordinator = ticket.contacts[ticket.coordinator]
    link = Link(swarm, ticket.run_id, ticket.coordinator, coordinator, Pulse(), lambda text: None)
    await link.connect()
    started = time.monotonic()
    await link.connect()
    trip = time.monotonic() - started
    return Bootstrap(ticket.swarm_addresses, round_trip_seconds=trip, peers=link.view.peers)


async def speed(swarm: Swarm, ticket: Ticket) -> Speed:
    """Both directions, one after the other. Raises UnreachableError, Refused."""
    from peer.exchange.measure import Measuring
    from peer.exchange.ratelimit import RateLimiter

    measuring = Measuring(swarm, RateLimiter(None))
    down = await measuring.down(ticket.coordinator)
    return Speed(await measuring.up(ticket.coordinator), down)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
        return True
    except ValueError:
        return False
