"""The coordinator's public API over gRPC: what it says is read from the log and the leader's last view of the swarm."""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from coordinator.ledger import rows
from peer.errors import UsageError
from peer.log.chain import Log
from protos import coordinator_pb2, coordinator_pb2_grpc

logger = logging.getLogger(__name__)

CLOCK_KEY = "time-seconds"
MAX_REQUEST_BYTES = 64 << 10
MAX_REPLY_BYTES = 4 << 20
MAX_RECORDS = 256
MAX_PAGE = 1000
WATCH_SECONDS = 0.5
MAX_WATCHERS = 500


class Run(Protocol):
    """What the service tells about."""

    log: Log

    @property
    def names(self) -> dict[str, str]: ...

    @property
    def swarm_addresses(self) -> list[str]: ...

    def status(self) -> coordinator_pb2.StatusReply: ...


class CoordinatorService(coordinator_pb2_grpc.CoordinatorServicer):
    def __init__(self, run: Run) -> None:
        self.run = run
        self._watchers = 0

    async def GetRun(self, request: coordinator_pb2.GetRunRequest, context: Any) -> coordinator_pb2.GetRunReply:
        await self._check(request.run_id, context)
        await context.send_initial_metadata(((CLOCK_KEY, f"{time.time():.3f}"),))  # for `commonweights doctor`
        log = self.run.log
        return coordinator_pb2.GetRunReply(
            run_id=log.run_id,
            genesis=log.entries[0].signed,
            swarm_addresses=self.run.swarm_addresses,
            version=importlib.metadata.version("commonweights"),
        )

    async def GetStatus(self, request: coordinator_pb2.GetStatusRequest, context: Any) -> coordinator_pb2.StatusReply:
        await self._check(request.run_id, context)
        return self.run.status()

    async def WatchStatus(
        self, request: coordinator_pb2.GetStatusRequest, context: Any
    ) -> AsyncIterator[coordinator_pb2.StatusReply]:
        await self._check(request.run_id, context)
        if self._watchers >= MAX_WATCHERS:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many watchers; poll GetStatus instead")
        self._watchers += 1
        try:
            last = None
            while True:
                status = self.run.status()
                if status != last:
                    yield status
                    last = status
                await asyncio.sleep(WATCH_SECONDS)
        finally:
            self._watchers -= 1

    async def ListRecords(
        self, request: coordinator_pb2.ListRecordsRequest, context: Any
    ) -> coordinator_pb2.ListRecordsReply:
        await self._check(request.run_id, context)
        count = min(request.count or MAX_RECORDS, MAX_RECORDS)
        records = self.run.log.records(request.first_round, count, MAX_REPLY_BYTES // 2)
        return coordinator_pb2.ListRecordsReply(records=records)

    async def GetLedger(
        self, request: coordinator_pb2.GetLedgerRequest, context: Any
    ) -> coordinator_pb2.GetLedgerReply:
        await self._check(request.run_id, context)
        start, size = 0, request.page_size or 100
        if request.page_token:
            if not (request.page_token.isascii() and request.page_token.isdecimal() and len(request.page_token) < 12):
                await context.abort(
                    grpc.StatusCode.INVALID_ARGUMENT, "page_token: use the next_page_token of the page before"
                )
            start = int(request.page_token)
        if size > MAX_PAGE:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"page_size: at most {MAX_PAGE}")
        accounts = self.run.log.accounts
        ledger = rows(accounts, self.run.names)
        page = ledger[start : start + size]
        return coordinator_pb2.GetLedgerReply(
            rows=[coordinator_pb2.LedgerRow(**vars(row)) for row in page],
            total_tokens=accounts.tokens,
            next_page_token=str(start + size) if start + size < len(ledger) else "",
        )

    async def _check(self, run_id: bytes, context: Any) -> None:
        """An empty run id means "whatever you serve"."""
        if run_id and run_id != self.run.log.run_id:
            await context.abort(grpc.StatusCode.NOT_FOUND, "this coordinator serves another run; check the ticket")


@asynccontextmanager
async def served(run: Run, host: str, port: int) -> AsyncIterator[int]:
    """The API at host:port (0: any free port) while the block runs; yields the port.

    Raises:
        UsageError: the port is in use.
    """
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
            ("grpc.max_send_message_length", MAX_REPLY_BYTES),
            ("grpc.so_reuseport", 0),
        ]
    )
    coordinator_pb2_grpc.add_CoordinatorServicer_to_server(CoordinatorService(run), server)
    checker = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checker, server)
    name = coordinator_pb2.DESCRIPTOR.services_by_name["Coordinator"].full_name
    reflection.enable_server_reflection((name, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError:
        raise UsageError(
            f"--grpc-port {port}: cannot listen there on {host}; it is in use, choose another port"
        ) from None
    await server.start()
    await checker.set("", health_pb2.HealthCheckResponse.SERVING)
    await checker.set(name, health_pb2.HealthCheckResponse.SERVING)
    try:
        yield bound
    finally:
        await server.stop(grace=1.0)
