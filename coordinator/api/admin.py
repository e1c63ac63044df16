"""The organiser's part of the API. Whoever calls it has shown the token (see `server`)."""

from __future__ import annotations

from typing import Any, Protocol

from coordinator.access import Doorkeeper
from coordinator.api.paging import after, page_size, token
from coordinator.recorder import Recorder
from coordinator.store import Store, access
from peer.errors import Refused, UsageError
from peer.identity import PeerId
from peer.log.chain import Log
from peer.rounds.leader import Leader
from protos import coordinator_pb2, coordinator_pb2_grpc

ELSEWHERE = "another node leads at the moment"


class Governed(Protocol):
    """What the organiser governs."""

    log: Log
    store: Store
    leader: Leader
    doorkeeper: Doorkeeper
    recorder: Recorder

    async def checkpoint_now(self) -> str:
        """Where it lies. Raises CommonweightsError."""
        ...


class AdminService(coordinator_pb2_grpc.AdminServicer):
    def __init__(self, run: Governed) -> None:
        self.run = run

    async def Pause(self, request: coordinator_pb2.PauseRequest, context: Any) -> coordinator_pb2.AdminReply:
        self._check_running()
        self.run.leader.pause(True)  # the recorder notes it
        if not self.run.leader.leading:
            return coordinator_pb2.AdminReply(
                message=f"{ELSEWHERE}; the run pauses as soon as the coordinator does again"
            )
        return coordinator_pb2.AdminReply(message="paused: no round closes until it is resumed")

    async def Resume(self, request: coordinator_pb2.ResumeRequest, context: Any) -> coordinator_pb2.AdminReply:
        self._check_running()
        self.run.leader.pause(False)
        return coordinator_pb2.AdminReply(message="resumed")

    async def Invite(self, request: coordinator_pb2.InviteRequest, context: Any) -> coordinator_pb2.InviteReply:
        invitation = await self.run.doorkeeper.invite(request.uses or 1, request.valid_seconds, request.note)
        self.run.recorder.note("admin", f"an invitation for {request.uses or 1} was made")
        return coordinator_pb2.InviteReply(token=invitation)

    async def ListInvites(
        self, request: coordinator_pb2.ListInvitesRequest, context: Any
    ) -> coordinator_pb2.ListInvitesReply:
        size = page_size(request.page_size)
        found = await self.run.store.read(access.invites_page, after(request.page_token, int, int), size)
        return coordinator_pb2.ListInvitesReply(
            invites=[
                coordinator_pb2.InviteRow(
                    number=it.number, note=it.note, uses=it.uses, admitted=it.admitted, created_seconds=it.created,
                    expires_seconds=it.expires or 0.0, revoked=it.revoked,
                )
                for it in found
            ],
            next_page_token=token(found[-1].number) if len(found) == size else "",
        )  # fmt: skip

    async def Revoke(self, request: coordinator_pb2.RevokeRequest, context: Any) -> coordinator_pb2.AdminReply:
        if bool(request.invite) == bool(request.peer_id):
            raise UsageError("peer_id, invite: give one of them")
        if request.invite:
            await self.run.store.write(access.revoke_invite, min(request.invite, (1 << 63) - 1))
            return self._done(f"invitation {request.invite} admits nobody any more")
        peer = PeerId.parse(request.peer_id)
        if request.round:
            return self._done(await self.run.doorkeeper.void(peer, request.round, request.reason), peer)
        return self._done(await self.run.doorkeeper.bar(peer, request.reason), peer)

    async def Checkpoint(self, request: coordinator_pb2.CheckpointRequest, context: Any) -> coordinator_pb2.AdminReply:
        return self._done(f"checkpoint: {await self.run.checkpoint_now()}")

    async def Finish(self, request: coordinator_pb2.FinishRequest, context: Any) -> coordinator_pb2.AdminReply:
        self._check_running()
        self.run.leader.finish()
        if not self.run.leader.leading:
            return self._done(f"{ELSEWHERE}; the run ends as soon as the coordinator does again")
        return self._done("the open round is the last one; the run ends with it")

    def _check_running(self) -> None:
        if self.run.log.finished:
            raise Refused("the run is finished")

    def _done(self, message: str, peer: PeerId | None = None) -> coordinator_pb2.AdminReply:
        self.run.recorder.note("admin", message, peer.public_key if peer else None)
        return coordinator_pb2.AdminReply(message=message)
