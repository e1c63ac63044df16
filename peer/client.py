"""A typed client of the coordinator's API, from a ticket.

    async with RunClient(ticket) as run:
        status = await run.status()
        async for row in run.ledger():
            print(row.name, row.credit_tokens)

Every call has a deadline. The ticket's addresses are tried one after the other; errors are those of `peer.errors`.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import grpc

from peer.channel import opened
from peer.errors import CommonweightsError, Refused, UnreachableError, UsageError
from peer.identity import Identity, PeerId
from peer.ticket import Ticket
from protos import coordinator_pb2, coordinator_pb2_grpc, log_pb2
from protos.signing import sign

CALL_SECONDS = 15.0
PAGE_ROWS = 1000
AUTHORIZATION = "authorization"

T = TypeVar("T")

_ABSENT = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
_WRONG = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAUTHENTICATED)
_REFUSED = (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.ABORTED)


class RunClient:
    """Use as an async context manager; one connection, made at the first call.

    Args:
        admin_token: the organiser's; needed for `admin` alone.

    Every method may raise:
        UnreachableError: nobody answers at the ticket's addresses.
        UsageError: the ticket is another run's, or there is no such thing there.
        Refused: not now, or not at all; the text is the reason.
    """

    def __init__(self, ticket: Ticket, admin_token: str = "", call_seconds: float = CALL_SECONDS) -> None:
        self.ticket = ticket
        self.call_seconds = call_seconds
        self._metadata = ((AUTHORIZATION, f"Bearer {admin_token}"),) if admin_token else ()
        self._stack = contextlib.AsyncExitStack()
        self._channel: grpc.aio.Channel | None = None

    async def __aenter__(self) -> RunClient:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    # --- the run ----------------------------------------------------------------------------------------------------

    async def run(self) -> coordinator_pb2.GetRunReply:
        """What the run is."""
        request = coordinator_pb2.GetRunRequest(run_id=self.ticket.run_id)
        reply: coordinator_pb2.GetRunReply = await self.call("GetRun", request)
        return reply

    async def status(self) -> coordinator_pb2.StatusReply:
        """Where it stands."""
        request = coordinator_pb2.GetStatusRequest(run_id=self.ticket.run_id)
        reply: coordinator_pb2.StatusReply = await self.call("GetStatus", request)
        return reply

    async def watch(self) -> AsyncIterator[coordinator_pb2.StatusReply]:
        """The status now, and whenever it changes, for as long as the coordinator is there."""
        request = coordinator_pb2.GetStatusRequest(run_id=self.ticket.run_id)
        async for status in self._stream("WatchStatus", request):
            yield status

    async def peer(self, peer: PeerId) -> coordinator_pb2.GetPeerReply:
        """A peer's account, and what stands between it and credit."""
        request = coordinator_pb2.GetPeerRequest(run_id=self.ticket.run_id, peer_id=str(peer))
        reply: coordinator_pb2.GetPeerReply = await self.call("GetPeer", request)
        return reply

    async def receipt(self, peer: PeerId, round_: int = 0) -> log_pb2.Receipt:
        """Of the peer's contribution to that round, or of its newest; see `peer.log.receipts`."""
        request = coordinator_pb2.GetReceiptRequest(run_id=self.ticket.run_id, peer_id=str(peer), round=round_)
        reply: coordinator_pb2.GetReceiptReply = await self.call("GetReceipt", request)
        return reply.receipt

    async def redeem(self, identity: Identity, token: str) -> log_pb2.Signed:
        """An Admission of the identity's key in exchange for an invitation."""
        redemption = coordinator_pb2.Redemption(run_id=self.ticket.run_id, token=token)
        request = coordinator_pb2.RedeemInviteRequest(redemption=sign(redemption, identity.private_key))
        reply: coordinator_pb2.RedeemInviteReply = await self.call("RedeemInvite", request)
        return reply.admission

    # --- lists ------------------------------------------------------------------------------------------------------

    async def records(self, first_round: int = 0) -> AsyncIterator[log_pb2.Signed]:
        """The log from `first_round` on, up to the head; to be checked by `peer.log.chain`."""
        while True:
            request = coordinator_pb2.ListRecordsRequest(run_id=self.ticket.run_id, first_round=first_round)
            reply: coordinator_pb2.ListRecordsReply = await self.call("ListRecords", request)
            for record in reply.records:
                yield record
            if not reply.records:
                return
            first_round += len(reply.records)

    async def ledger(self) -> AsyncIterator[coordinator_pb2.LedgerRow]:
        """Largest credit first."""
        async for page in self._pages("GetLedger", coordinator_pb2.GetLedgerRequest(run_id=self.ticket.run_id)):
            for row in page.rows:
                yield row

    async def teams(self) -> AsyncIterator[coordinator_pb2.Team]:
        """Largest credit first."""
        async for page in self._pages("GetTeams", coordinator_pb2.GetTeamsRequest(run_id=self.ticket.run_id)):
            for team in page.teams:
                yield team

    async def rounds(self) -> AsyncIterator[coordinator_pb2.Round]:
        """Newest first."""
        async for page in self._pages("ListRounds", coordinator_pb2.ListRoundsRequest(run_id=self.ticket.run_id)):
            for round_ in page.rounds:
                yield round_

    async def contributions(self, peer: PeerId) -> AsyncIterator[coordinator_pb2.ContributionRow]:
        """Of one peer, newest first."""
        request = coordinator_pb2.ListContributionsRequest(run_id=self.ticket.run_id, peer_id=str(peer))
        async for page in self._pages("ListContributions", request):
            for row in page.contributions:
                yield row

    async def checkpoints(self) -> AsyncIterator[coordinator_pb2.Checkpoint]:
        """Newest first."""
        request = coordinator_pb2.ListCheckpointsRequest(run_id=self.ticket.run_id)
        async for page in self._pages("ListCheckpoints", request):
            for checkpoint in page.checkpoints:
                yield checkpoint

    # --- checkpoints ------------------------------------------------------------------------------------------------

    async def checkpoint(self, round_: int = 0) -> coordinator_pb2.GetCheckpointReply:
        """A checkpoint (0: the newest) and its files; `peer.checkpoints.download` fetches and checks them."""
        request = coordinator_pb2.GetCheckpointRequest(run_id=self.ticket.run_id, round=round_)
        reply: coordinator_pb2.GetCheckpointReply = await self.call("GetCheckpoint", request)
        return reply

    async def read(self, round_: int, name: str, offset: int = 0) -> AsyncIterator[bytes]:
        """The bytes of a file of the checkpoint of `round_`, from `offset` on, in pieces. A server that goes away ends
        them with an error, never early."""
        request = coordinator_pb2.DownloadCheckpointRequest(
            run_id=self.ticket.run_id, round=round_, name=name, offset=offset
        )
        async for part in self._stream("DownloadCheckpoint", request):
            yield part.data

    # --- the organiser ----------------------------------------------------------------------------------------------

    async def admin(self, method: str, request: Any) -> Any:
        """Call a method of the Admin service."""
        return await self.call(method, request, coordinator_pb2_grpc.AdminStub)

    # --- calls ------------------------------------------------------------------------------------------------------

    async def call(self, method: str, request: Any, stub: Any = coordinator_pb2_grpc.CoordinatorStub) -> Any:
        """Any method of the API that is answered once, as the proto has it."""

        async def ask(channel: grpc.aio.Channel) -> Any:
            return await getattr(stub(channel), method)(request, timeout=self.call_seconds, metadata=self._metadata)

        return await self._somewhere(ask)

    async def _pages(self, method: str, request: Any) -> AsyncIterator[Any]:
        request.page_size = PAGE_ROWS
        while True:
            page = await self.call(method, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def _stream(self, method: str, request: Any) -> AsyncIterator[Any]:
        """Without a deadline: keepalive notices a dead line."""
        await self.call("GetStatus", coordinator_pb2.GetStatusRequest(run_id=self.ticket.run_id))  # finds who answers
        assert self._channel is not None
        try:
            async for reply in getattr(coordinator_pb2_grpc.CoordinatorStub(self._channel), method)(request):
                yield reply
        except grpc.aio.AioRpcError as error:
            raise _as_ours(error) from None

    async def _somewhere(self, call: Callable[[grpc.aio.Channel], Awaitable[T]]) -> T:
        """On the channel that worked before, or on the first one that does."""
        if self._channel is not None:
            try:
                return await call(self._channel)
            except grpc.aio.AioRpcError as error:
                raise _as_ours(error) from None
        tried = []
        for address in self.ticket.grpc_addresses:
            stack = contextlib.AsyncExitStack()
            try:
                channel = await stack.enter_async_context(opened(self.ticket, address))
                answer = await call(channel)
            except (grpc.aio.AioRpcError, CommonweightsError) as error:
                await stack.aclose()
                ours = _as_ours(error) if isinstance(error, grpc.aio.AioRpcError) else error
                if not isinstance(ours, UnreachableError):
                    raise ours from None
                tried.append(f"{address}")
            else:
                self._channel = channel
                self._stack.push_async_callback(stack.aclose)
                return answer
        raise UnreachableError(
            f"the coordinator does not answer at {', '.join(tried) or 'any address of the ticket'}; "
            "is it running, and does a firewall let its port through?"
        )


def _as_ours(error: grpc.aio.AioRpcError) -> CommonweightsError:
    code, words = error.code(), error.details() or "no reason given"
    if code in _ABSENT:
        return UnreachableError(f"the coordinator does not answer: {words}")
    if code in _WRONG:
        return UsageError(words)
    return Refused(words) if code in _REFUSED else CommonweightsError(words)
