"""The part of the API that is for everybody: it reads the log, the store and the leader's last view of the swarm."""

from __future__ import annotations

import asyncio
import importlib.metadata
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol

from coordinator.access import Doorkeeper
from coordinator.api import files, rows
from coordinator.api.advice import Facts, hindrances
from coordinator.api.files import NotFound
from coordinator.api.paging import after, page_size, token
from coordinator.archive import Archive
from coordinator.store import Store, queries
from peer.errors import Refused, UsageError
from peer.identity import PeerId
from peer.log.chain import Log
from peer.log.decisions import is_admitted
from peer.log.receipts import make_receipt
from peer.rounds.leader import Leader
from protos import coordinator_pb2, coordinator_pb2_grpc
from protos.signing import SignatureError, open_signed

CLOCK_KEY = "time-seconds"
MAX_REPLY_BYTES = 4 << 20
MAX_RECORDS = 256
WATCH_SECONDS = 0.5
MAX_WATCHERS = 500
MAX_DOWNLOADS = 8  # at once: the run's own traffic comes first


class Run(Protocol):
    """What the service tells about."""

    folder: Path
    log: Log
    store: Store
    leader: Leader
    doorkeeper: Doorkeeper
    archive: Archive

    @property
    def swarm_addresses(self) -> list[str]: ...

    def status(self) -> coordinator_pb2.StatusReply: ...


class TooMany(Refused):
    """Others are being served; later it may be this one's turn."""


class CoordinatorService(coordinator_pb2_grpc.CoordinatorServicer):
    """Errors of `peer.errors` become the call's status (see `server`)."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._watchers = 0
        self._downloads = 0

    def _check(self, run_id: bytes) -> None:
        """An empty run id means "whatever you serve"."""
        if run_id and run_id != self.run.log.run_id:
            raise NotFound("this coordinator serves another run; check the ticket")

    # --- the run ----------------------------------------------------------------------------------------------------

    async def GetRun(self, request: coordinator_pb2.GetRunRequest, context: Any) -> coordinator_pb2.GetRunReply:
        self._check(request.run_id)
        await context.send_initial_metadata(((CLOCK_KEY, f"{time.time():.3f}"),))  # for `commonweights doctor`
        log = self.run.log
        return coordinator_pb2.GetRunReply(
            run_id=log.run_id,
            genesis=log.entries[0].signed,
            swarm_addresses=self.run.swarm_addresses,
            version=importlib.metadata.version("commonweights"),
            spec=log.origin.genesis.spec.decode(),
            coordinator=log.origin.coordinator.public_key,
        )

    async def GetStatus(self, request: coordinator_pb2.GetStatusRequest, context: Any) -> coordinator_pb2.StatusReply:
        self._check(request.run_id)
        return self.run.status()

    async def WatchStatus(
        self, request: coordinator_pb2.GetStatusRequest, context: Any
    ) -> AsyncIterator[coordinator_pb2.StatusReply]:
        self._check(request.run_id)
        if self._watchers >= MAX_WATCHERS:
            raise TooMany("too many watchers; poll GetStatus instead")
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
        self._check(request.run_id)
        count = min(request.count or MAX_RECORDS, MAX_RECORDS)
        records = self.run.log.records(request.first_round, count, MAX_REPLY_BYTES // 2)
        return coordinator_pb2.ListRecordsReply(records=records)

    # --- the ledger -------------------------------------------------------------------------------------------------

    async def ListRounds(
        self, request: coordinator_pb2.ListRoundsRequest, context: Any
    ) -> coordinator_pb2.ListRoundsReply:
        self._check(request.run_id)
        size = page_size(request.page_size)
        found = await self.run.store.read(queries.rounds_page, after(request.page_token, int, int), size)
        return coordinator_pb2.ListRoundsReply(
            rounds=map(rows.round_row, found), next_page_token=token(found[-1].round) if len(found) == size else ""
        )

    async def GetLedger(
        self, request: coordinator_pb2.GetLedgerRequest, context: Any
    ) -> coordinator_pb2.GetLedgerReply:
        self._check(request.run_id)
        size = page_size(request.page_size)
        page = await self.run.store.read(queries.ledger_page, after(request.page_token, queries.Rank, int, int), size)
        last = page.accounts[-1] if len(page.accounts) == size else None
        return coordinator_pb2.GetLedgerReply(
            rows=[
                rows.ledger_row(it, page.pending.get(it.number, 0), page.last_refusals.get(it.number, ""))
                for it in page.accounts
            ],
            total_tokens=page.total_tokens,
            next_page_token=token(last.credit_tokens, last.number) if last else "",
        )

    async def GetTeams(self, request: coordinator_pb2.GetTeamsRequest, context: Any) -> coordinator_pb2.GetTeamsReply:
        self._check(request.run_id)
        size = page_size(request.page_size)
        rank = after(request.page_token, queries.TeamRank, int, str)
        found = await self.run.store.read(queries.teams_page, rank, size)
        return coordinator_pb2.GetTeamsReply(
            teams=[coordinator_pb2.Team(**vars(team)) for team in found],
            next_page_token=token(found[-1].credit_tokens, found[-1].team) if len(found) == size else "",
        )

    async def GetPeer(self, request: coordinator_pb2.GetPeerRequest, context: Any) -> coordinator_pb2.GetPeerReply:
        self._check(request.run_id)
        peer, log = PeerId.parse(request.peer_id), self.run.log
        page = await self.run.store.read(queries.ledger_of, str(peer))
        refusals = await self.run.store.read(queries.refusals_of, str(peer))
        account = page.accounts[0] if page.accounts else None
        status = next((it for it in self.run.status().peers if it.peer_id == str(peer)), None)
        facts = Facts(
            peer.public_key, account, status, refusals,
            self.run.leader.gate.has_shown(peer.public_key), self.run.leader.state.paused, time.time(),
        )  # fmt: skip
        reply = coordinator_pb2.GetPeerReply(
            account=rows.ledger_row(
                account, page.pending.get(account.number, 0), page.last_refusals.get(account.number, "")
            )
            if account
            else coordinator_pb2.LedgerRow(peer_id=str(peer)),
            hindrances=hindrances(facts, log),
            refusals=[
                coordinator_pb2.Refusal(
                    round=it.round, time_seconds=it.time_seconds, tokens=it.tokens, reason=it.reason
                )
                for it in refusals
            ],
            revoked=peer.public_key in log.accounts.barred,
        )
        if status is not None:
            reply.status.CopyFrom(status)
        return reply

    async def ListContributions(
        self, request: coordinator_pb2.ListContributionsRequest, context: Any
    ) -> coordinator_pb2.ListContributionsReply:
        self._check(request.run_id)
        size, store = page_size(request.page_size), self.run.store
        if bool(request.peer_id) == bool(request.round):
            raise UsageError("peer_id, round: give one of them")
        if request.round:
            found = await store.read(queries.contributions_to, _bounded(request.round))
            return coordinator_pb2.ListContributionsReply(contributions=map(rows.contribution_row, found))
        before = after(request.page_token, int, int)
        found = await store.read(queries.contributions_of, str(PeerId.parse(request.peer_id)), before, size)
        return coordinator_pb2.ListContributionsReply(
            contributions=map(rows.contribution_row, found),
            next_page_token=token(found[-1].round) if len(found) == size else "",
        )

    async def GetReceipt(
        self, request: coordinator_pb2.GetReceiptRequest, context: Any
    ) -> coordinator_pb2.GetReceiptReply:
        self._check(request.run_id)
        try:
            receipt = make_receipt(self.run.log, PeerId.parse(request.peer_id), request.round)
        except Refused as error:
            raise NotFound(str(error)) from None
        return coordinator_pb2.GetReceiptReply(receipt=receipt)

    # --- checkpoints ------------------------------------------------------------------------------------------------

    async def ListCheckpoints(
        self, request: coordinator_pb2.ListCheckpointsRequest, context: Any
    ) -> coordinator_pb2.ListCheckpointsReply:
        self._check(request.run_id)
        size, before = page_size(request.page_size), after(request.page_token, int, int)
        found = files.newest_first(self.run.archive)
        page = [item for item in found if before is None or item.round < before][:size]
        return coordinator_pb2.ListCheckpointsReply(
            checkpoints=[rows.checkpoint(item) for item in page],
            next_page_token=token(page[-1].round) if len(page) == size else "",
        )

    async def GetCheckpoint(
        self, request: coordinator_pb2.GetCheckpointRequest, context: Any
    ) -> coordinator_pb2.GetCheckpointReply:
        self._check(request.run_id)
        found = files.checkpoint_in(self.run.archive, request.round)
        return coordinator_pb2.GetCheckpointReply(checkpoint=rows.checkpoint(found), files=rows.checkpoint_files(found))

    async def DownloadCheckpoint(
        self, request: coordinator_pb2.DownloadCheckpointRequest, context: Any
    ) -> AsyncIterator[coordinator_pb2.DownloadCheckpointReply]:
        self._check(request.run_id)
        if self._downloads >= MAX_DOWNLOADS:
            raise TooMany(f"{MAX_DOWNLOADS} downloads are under way; try again in a while")
        self._downloads += 1
        try:
            found = files.checkpoint_in(self.run.archive, request.round)
            size = found.files.get(request.name, 0)
            content = files.chunks(found, request.name, request.offset)
            while (chunk := await asyncio.to_thread(next, content, None)) is not None:
                yield coordinator_pb2.DownloadCheckpointReply(data=chunk, size_bytes=size)
        finally:
            self._downloads -= 1

    # --- access -----------------------------------------------------------------------------------------------------

    async def RedeemInvite(
        self, request: coordinator_pb2.RedeemInviteRequest, context: Any
    ) -> coordinator_pb2.RedeemInviteReply:
        try:
            redemption = open_signed(request.redemption, coordinator_pb2.Redemption)
        except SignatureError as error:
            raise UsageError(f"redemption: {error}") from None
        self._check(redemption.run_id)
        peer = request.redemption.signer
        if is_admitted(peer, self.run.log) and peer not in self.run.log.accounts.admitted:
            raise Refused('this run is open to everybody (run.access = "open"): a ticket is enough')
        admission = await self.run.doorkeeper.redeem(peer, redemption.token)
        return coordinator_pb2.RedeemInviteReply(admission=admission)


def _bounded(round_: int) -> int:
    if round_ >= 1 << 63:
        raise UsageError("round: there is no such round")
    return round_
