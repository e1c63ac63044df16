"""The coordinator's gRPC API, over a real server and channel."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from coordinator.api.paging import token
from coordinator.api.server import MAX_REQUEST_BYTES, served
from coordinator.api.tls import own_certificate
from peer.checkpoints.download import download
from peer.checkpoints.manifest import MANIFEST_FILE
from peer.client import RunClient
from peer.errors import UnreachableError, UsageError, VerificationError
from peer.identity import Identity
from peer.log.chain import Log
from peer.log.receipts import check_receipt
from peer.ticket import Ticket
from protos import coordinator_pb2, coordinator_pb2_grpc
from protos.document import SOURCE, parse
from tests.in_memory import Swarm, tiny_spec

TOKEN = "a-token-for-tests-only"

pytestmark = pytest.mark.timeout(120)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def run(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Swarm]:
    """A finished run of two peers."""
    async with Swarm(tmp_path_factory.mktemp("service"), tiny_spec()) as swarm:
        swarm.start("ada", team="lovelace")
        swarm.start("grace")
        await swarm.begin(2)
        await swarm.finish()
        await swarm.coordinator.store.write(lambda connection: None)  # what was queued before is in the database now
        yield swarm


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def channel(run: Swarm) -> AsyncIterator[grpc.aio.Channel]:
    async with (
        served(run.coordinator, "127.0.0.1", 0, TOKEN) as port,
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
    service = coordinator_pb2.DESCRIPTOR.services_by_name["Coordinator"]
    for method in [*service.methods_by_name.values(), None]:
        path = f"/commonweights.v1.Coordinator/{method.name if method else 'NoSuchMethod'}"
        with pytest.raises(grpc.aio.AioRpcError):
            if method and method.server_streaming:
                streaming: Any = channel.unary_stream(path)
                async for _ in streaming(body, timeout=10):
                    pass
            else:
                call: Any = channel.unary_unary(path)
                await call(body, timeout=10)
    assert (await stub(channel).GetStatus(coordinator_pb2.GetStatusRequest(), timeout=10)).finished


@module_loop
@pytest.mark.parametrize(
    "request_",
    [
        {"page_size": 100_000},
        {"page_token": "next please"},
        {"page_token": "9" * 30},
        {"page_token": token("1", 2)},
        {"page_token": token(-1, 2)},
        {"page_token": token(1 << 63, 2)},
        {"page_token": "W" * 5000},
    ],
    ids=lambda it: str(it)[:40],
)
async def test_bad_paging_is_refused_with_the_field(channel: grpc.aio.Channel, request_: dict[str, object]) -> None:
    """INVALID_ARGUMENT names what is wrong."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub(channel).GetLedger(coordinator_pb2.GetLedgerRequest(**request_))  # type: ignore[arg-type]
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert next(iter(request_)) in str(refused.value.details())


@module_loop
async def test_health_and_reflection_answer(channel: grpc.aio.Channel) -> None:
    """The standard health service says SERVING; reflection lists the services, and of ours each method and each field
    that docs/api.md has."""
    health = health_pb2_grpc.HealthStub(channel)
    for name in ("", "commonweights.v1.Coordinator", "commonweights.v1.Admin"):
        reply = await health.Check(health_pb2.HealthCheckRequest(service=name))
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
    reflection = reflection_pb2_grpc.ServerReflectionStub(channel)

    async def ask(**request: str) -> Any:
        asked = iter([reflection_pb2.ServerReflectionRequest(**request)])
        return await anext(aiter(reflection.ServerReflectionInfo(asked)))

    services = {it.name for it in (await ask(list_services="")).list_services_response.service}
    assert services == {
        "commonweights.v1.Coordinator", "commonweights.v1.Admin", "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }  # fmt: skip
    answer = await ask(file_containing_symbol="commonweights.v1.Admin")
    file = FileDescriptorProto.FromString(answer.file_descriptor_response.file_descriptor_proto[0])
    reflected = {it.name: {method.name for method in it.method} for it in file.service}
    reflected |= {it.name: {field.name for field in it.field} for it in file.message_type}
    _, documented = parse(SOURCE.read_text())
    assert reflected == {it.name: {name for name, _, _ in it.lines} for it in documented}


@module_loop
async def test_a_port_in_use_names_the_option(run: Swarm) -> None:
    """One line with the cure."""
    async with served(run.coordinator, "127.0.0.1", 0, TOKEN) as port:
        with pytest.raises(UsageError, match="--grpc-port"):
            async with served(run.coordinator, "127.0.0.1", port, TOKEN):
                pass


@module_loop
@pytest.mark.parametrize("given", ["", "Bearer ", "Bearer wrong", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x"])
async def test_the_organisers_part_is_for_whoever_has_the_token(channel: grpc.aio.Channel, given: str) -> None:
    """Every Admin method answers UNAUTHENTICATED to any other authorization, before it reads the request."""
    service = coordinator_pb2.DESCRIPTOR.services_by_name["Admin"]
    metadata = [("authorization", given)] if given else []
    for method in service.methods:
        call: Any = channel.unary_unary(f"/commonweights.v1.Admin/{method.name}")
        for body in (b"", b"\xff" * 50):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call(body, timeout=10, metadata=metadata)
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


@module_loop
async def test_a_client_reads_everything_over_tls_and_trusts_nobody_else(run: Swarm, tmp_path: Path) -> None:
    """With the certificate that the ticket names: every list and the files of a checkpoint; with another: refused."""
    log, certificate = run.coordinator.log, own_certificate(tmp_path)
    assert own_certificate(tmp_path).hash == certificate.hash  # the next start shows the same
    async with served(run.coordinator, "127.0.0.1", 0, TOKEN, certificate) as port:
        ticket = Ticket(
            log.run_id, log.origin.coordinator, (f"127.0.0.1:{port}",), (), tls=True, certificate_hash=certificate.hash
        )
        async with RunClient(Ticket.parse(str(ticket))) as client:
            assert json.loads((await client.run()).spec)["run"]["name"] == "tiny"
            assert [item.round async for item in client.rounds()] == list(range(log.head.round, -1, -1))
            assert {team.team: team.credit_tokens async for team in client.teams()} == {
                name: team.credit_tokens for name, team in log.accounts.teams.items()
            }
            assert len([record async for record in client.records()]) == log.head.round + 1
            (newest, *_) = [item async for item in client.checkpoints()]
            copied = await download(client, tmp_path / "copy")
            assert copied.name == f"round-{newest.round:06d}"
            assert same_files(copied, Path(newest.location))
        for wrong, error in ((bytes(32), VerificationError), (b"", UnreachableError)):
            async with RunClient(replace(ticket, certificate_hash=wrong)) as client:
                with pytest.raises(error):
                    await client.status()
        async with RunClient(replace(ticket, tls=False, certificate_hash=b"")) as client:
            with pytest.raises(UnreachableError):
                await client.status()


@module_loop
async def test_a_checkpoint_is_fetched_with_the_sizes_and_hashes_that_were_signed(run: Swarm, tmp_path: Path) -> None:
    """What the API lists is what the signed manifest says; a half file is completed; a changed one is named and leaves
    no manifest."""
    log, archive = run.coordinator.log, run.coordinator.archive
    async with served(run.coordinator, "127.0.0.1", 0, TOKEN) as port:
        ticket = Ticket(log.run_id, log.origin.coordinator, (f"127.0.0.1:{port}",), ())
        async with RunClient(ticket) as client:
            found = await client.checkpoint()
            newest = archive.newest
            assert newest is not None
            signed = {it.name: (it.bytes, it.sha256, it.blake3, it.resuming) for it in newest.manifest.files}
            listed = {it.name: (it.size_bytes, it.sha256, it.blake3, it.resuming) for it in found.files}
            assert listed == signed | {MANIFEST_FILE: (len(newest.content), b"", b"", False)}
            about = found.checkpoint
            assert (about.round, about.tokens, about.eval_loss, about.size_bytes) == (
                newest.round, newest.manifest.tokens, newest.manifest.eval_loss, newest.size_bytes,
            )  # fmt: skip
            assert (about.record_hash, about.state_digest) == (newest.manifest.record_hash, newest.state_digest)
            here = tmp_path / f"round-{newest.round:06d}"
            here.mkdir()
            weights = (archive.folder_of(newest.round) / "model.safetensors").read_bytes()
            (here / "model.safetensors").write_bytes(weights[: len(weights) // 2])
            assert await download(client, tmp_path) == here and same_files(here, archive.folder_of(newest.round))
            (here / "model.safetensors").write_bytes(bytes(len(weights)))
            with pytest.raises(VerificationError, match=r"model\.safetensors: changed; delete it"):
                await download(client, tmp_path)
            assert not (here / MANIFEST_FILE).exists()
            (here / "model.safetensors").unlink()
            assert same_files(await download(client, tmp_path), archive.folder_of(newest.round))


def same_files(one: Path, other: Path) -> bool:
    files = [{it.relative_to(at): it.read_bytes() for it in at.rglob("*") if it.is_file()} for at in (one, other)]
    return files[0] == files[1]


@module_loop
async def test_a_file_outside_of_the_checkpoint_is_never_read(run: Swarm, channel: grpc.aio.Channel) -> None:
    """Only names that GetCheckpoint lists are served, and only from an offset inside of the file."""
    for name, code in (("../../identity.key", "NOT_FOUND"), ("/etc/passwd", "NOT_FOUND"), ("", "NOT_FOUND")):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            request = coordinator_pb2.DownloadCheckpointRequest(name=name)
            async for _ in stub(channel).DownloadCheckpoint(request):
                pass
        assert refused.value.code().name == code
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        async for _ in stub(channel).DownloadCheckpoint(
            coordinator_pb2.DownloadCheckpointRequest(name="config.json", offset=1 << 40)
        ):
            pass
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@module_loop
async def test_a_receipt_proves_one_contribution_and_nothing_else(run: Swarm, channel: grpc.aio.Channel) -> None:
    """Checked with the run's id alone; another run's id, another peer, or any changed byte proves nothing."""
    log, ada = run.coordinator.log, run.peer_id("ada")
    request = coordinator_pb2.GetReceiptRequest(peer_id=str(ada))
    receipt = (await stub(channel).GetReceipt(request)).receipt
    content = receipt.SerializeToString(deterministic=True)
    statement = check_receipt(content, log.run_id)
    line = dict(log.entries[statement.round].contributions)[ada.public_key]
    assert (statement.peer_id, statement.tokens, statement.name, statement.team) == (
        str(ada), line.tokens, "ada", "lovelace",
    )  # fmt: skip
    with pytest.raises(VerificationError, match="is of run"):
        check_receipt(content, bytes(32))
    for place in range(0, len(content), 7):
        with pytest.raises(VerificationError):
            check_receipt(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :], log.run_id)
    with pytest.raises(VerificationError):
        check_receipt(content[: len(content) // 2], log.run_id)


@module_loop
async def test_a_peer_is_told_what_stands_between_it_and_credit(run: Swarm, channel: grpc.aio.Channel) -> None:
    """Somebody never heard of, and somebody who was here and left, read why in words."""
    stranger = Identity.new().peer_id
    reply = await stub(channel).GetPeer(coordinator_pb2.GetPeerRequest(peer_id=str(stranger)))
    assert reply.account.credit_tokens == 0 and "never heard" in reply.hindrances[0]
    reply = await stub(channel).GetPeer(coordinator_pb2.GetPeerRequest(peer_id=str(run.peer_id("ada"))))
    assert reply.account.credit_tokens == run.coordinator.log.accounts.credit[run.peer_id("ada").public_key]
    assert reply.account.name == "ada" and reply.account.team == "lovelace" and not reply.HasField("status")
    assert any("not here" in sentence for sentence in reply.hindrances)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub(channel).GetPeer(coordinator_pb2.GetPeerRequest(peer_id="nobody"))
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_folder_is_left_whole(run: Swarm) -> None:
    """The log on disk is the one that was served."""
    assert Log.load(Path(run.folder) / "coordinator" / "log").head.hash == run.coordinator.log.head.hash
