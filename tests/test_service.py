"""The coordinator's gRPC API, over a real server and channel."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from coordinator.service import MAX_REQUEST_BYTES, served
from peer.errors import UsageError
from peer.log.chain import Log
from protos import coordinator_pb2, coordinator_pb2_grpc
from tests.in_memory import Swarm, tiny_spec

pytestmark = pytest.mark.timeout(120)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def run(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Swarm]:
    """A finished run of two peers."""
    async with Swarm(tmp_path_factory.mktemp("service"), tiny_spec()) as swarm:
        swarm.start("ada", "grace")
        await swarm.begin(2)
        await swarm.finish()
        yield swarm


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def channel(run: Swarm) -> AsyncIterator[grpc.aio.Channel]:
    async with (
        served(run.coordinator, "127.0.0.1", 0) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        yield channel


def stub(channel: grpc.aio.Channel) -> coordinator_pb2_grpc.CoordinatorAsyncStub:
    return coordinator_pb2_grpc.CoordinatorStub(channel)  # type: ignore[return-value]


module_loop = pytest.mark.asyncio(loop_scope="module")


@module_loop
async def test_the_run_can_be_rebuilt_from_the_api_alone(run: Swarm, channel: grpc.aio.Channel) -> None:
    """GetRun gives the genesis, ListRecords the rest; the fold of both is the ledger that GetLedger pages through."""
    log = run.coordinator.log
    found = await stub(channel).GetRun(coordinator_pb2.GetRunRequest(run_id=log.run_id))
    copy = Log.start(found.genesis, run_id=log.run_id)
    while not copy.finished:
        request = coordinator_pb2.ListRecordsRequest(first_round=copy.head.round + 1, count=1)
        for signed in (await stub(channel).ListRecords(request)).records:
            copy.append(signed)
    assert copy.head.hash == log.head.hash and copy.accounts.credit == log.accounts.credit
    rows: list[coordinator_pb2.LedgerRow] = []
    token = ""
    while True:
        page = await stub(channel).GetLedger(coordinator_pb2.GetLedgerRequest(page_size=1, page_token=token))
        rows += page.rows
        token = page.next_page_token
        if not token:
            break
    assert sum(row.credit_tokens for row in rows) == page.total_tokens == log.accounts.tokens
    assert {row.name for row in rows} == {"ada", "grace"}


@module_loop
async def test_status_is_what_the_log_says(run: Swarm, channel: grpc.aio.Channel) -> None:
    """Round, tokens and losses of the head; a watcher gets the same at once."""
    log = run.coordinator.log
    request = coordinator_pb2.GetStatusRequest(run_id=log.run_id)
    status = await stub(channel).GetStatus(request)
    assert status.finished and status.round == run.spec.run.rounds and status.tokens == log.accounts.tokens
    assert status.loss == log.accounts.loss and status.eval_loss > 0
    assert status.state_digest == run.coordinator.replica.digest.hex()
    watching = stub(channel).WatchStatus(request)
    async for first in watching:
        assert first.round == status.round
        break
    watching.cancel()


@module_loop
async def test_another_runs_ticket_is_told_so(channel: grpc.aio.Channel) -> None:
    """NOT_FOUND, with a word about the ticket."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub(channel).GetStatus(coordinator_pb2.GetStatusRequest(run_id=bytes(32)))
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND and "ticket" in str(refused.value.details())


@module_loop
@pytest.mark.parametrize("body", [b"\xff" * 50, b"\x0a\xff\xff\xff\xff\x0f", bytes(MAX_REQUEST_BYTES + 100)])
async def test_garbage_and_oversized_requests_are_refused_and_service_goes_on(
    channel: grpc.aio.Channel, body: bytes
) -> None:
    """Every method, raw bytes: an error status, never a hang; the next proper call is answered."""
    for method in ("GetRun", "GetStatus", "ListRecords", "GetLedger", "NoSuchMethod"):
        call: Any = channel.unary_unary(f"/commonweights.v1.Coordinator/{method}")
        with pytest.raises(grpc.aio.AioRpcError):
            await call(body, timeout=10)
    assert (await stub(channel).GetStatus(coordinator_pb2.GetStatusRequest(), timeout=10)).finished


@module_loop
@pytest.mark.parametrize(
    "request_", [{"page_size": 100_000}, {"page_token": "next please"}, {"page_token": "9" * 30}], ids=str
)
async def test_bad_paging_is_refused_with_the_field(channel: grpc.aio.Channel, request_: dict[str, object]) -> None:
    """INVALID_ARGUMENT names what is wrong."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub(channel).GetLedger(coordinator_pb2.GetLedgerRequest(**request_))  # type: ignore[arg-type]
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert next(iter(request_)) in str(refused.value.details())


@module_loop
async def test_health_and_reflection_answer(channel: grpc.aio.Channel) -> None:
    """The standard health service says SERVING; reflection lists the API with its methods."""
    health = health_pb2_grpc.HealthStub(channel)
    reply = await health.Check(health_pb2.HealthCheckRequest(service="commonweights.v1.Coordinator"))
    assert reply.status == health_pb2.HealthCheckResponse.SERVING
    reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(file_containing_symbol="commonweights.v1.Coordinator")
    async for answer in reflection.ServerReflectionInfo(iter([request])):
        file = FileDescriptorProto.FromString(answer.file_descriptor_response.file_descriptor_proto[0])
        assert {method.name for method in file.service[0].method} >= {"GetRun", "GetStatus", "WatchStatus"}
        break


@module_loop
async def test_a_port_in_use_names_the_option(run: Swarm) -> None:
    """One line with the cure."""
    async with served(run.coordinator, "127.0.0.1", 0) as port:
        with pytest.raises(UsageError, match="--grpc-port"):
            async with served(run.coordinator, "127.0.0.1", port):
                pass


def test_folder_is_left_whole(run: Swarm) -> None:
    """The log on disk is the one that was served."""
    assert Log.load(Path(run.folder) / "coordinator" / "log").head.hash == run.coordinator.log.head.hash
