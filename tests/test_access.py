"""Who may take part, and what the organiser may do: over the real API, in a swarm in one process."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from coordinator.api.server import served
from coordinator.api.tls import given_certificate, own_certificate
from coordinator.api.token import ENVIRONMENT, admin_token, is_token
from peer.client import RunClient
from peer.errors import Refused, UsageError
from peer.identity import Identity, PeerId
from peer.log.decisions import admission_fault
from peer.ticket import Ticket
from protos import coordinator_pb2
from tests.in_memory import Swarm, tiny_spec

TOKEN = "a-token-for-tests-only"


@asynccontextmanager
async def organiser(swarm: Swarm) -> AsyncIterator[RunClient]:
    log = swarm.coordinator.log
    async with served(swarm.coordinator, "127.0.0.1", 0, TOKEN) as port:
        ticket = Ticket(log.run_id, log.origin.coordinator, (f"127.0.0.1:{port}",), ())
        async with RunClient(ticket, TOKEN) as client:
            yield client


async def test_an_invite_only_run_from_invitation_to_credit(tmp_path: Path) -> None:
    """Without an invitation a peer is told what it needs; with one it trains; the log says who was admitted; one
    invitation is one key, and its token is in no file and no event."""
    spec = tiny_spec(run={"access": "invite", "rounds": 2})
    async with Swarm(tmp_path, spec) as swarm, organiser(swarm) as client:
        with pytest.raises(UsageError, match="--invite"):
            async with swarm.joined("ada"):
                pass
        with pytest.raises(Refused, match="no such invitation"):
            async with swarm.joined("ada", invite="cwi1aaaa"):
                pass
        reply = await client.admin("Invite", coordinator_pb2.InviteRequest(note="for ada"))
        other = await client.admin("Invite", coordinator_pb2.InviteRequest())
        signed = await client.redeem(Identity.load(tmp_path / "ada" / "identity.key"), other.token)
        assert not admission_fault(signed, swarm.peer_id("ada").public_key, swarm.coordinator.log)
        swarm.start("ada", invite=reply.token)
        await swarm.begin(1)
        with pytest.raises(Refused, match="used up"):
            async with swarm.joined("grace", invite=other.token):
                pass
        await swarm.finish()
        ada = swarm.peer_id("ada").public_key
        accounts = swarm.coordinator.log.accounts
        assert accounts.admitted == {ada} and accounts.credit[ada] == accounts.tokens > 0
        listed = await client.admin("ListInvites", coordinator_pb2.ListInvitesRequest())
        assert {row.note: len(row.admitted) for row in listed.invites} == {"": 1, "for ada": 0}
        assert not [event for event in swarm.events if reply.token in event or other.token in event]
    assert not holding(tmp_path, reply.token, other.token)


async def test_the_organiser_pauses_voids_bars_and_ends_the_run(tmp_path: Path) -> None:
    """Nothing closes while paused; a voided contribution loses its credit in everybody's log; a barred peer is gone;
    finish ends the run long before its rounds are over, with a checkpoint."""
    spec = tiny_spec(run={"rounds": 500}, evaluation={"every_rounds": 100, "sequences": 8, "sample_tokens": 0})
    async with Swarm(tmp_path, spec) as swarm, organiser(swarm) as client:
        swarm.start("ada", "grace")
        log = swarm.coordinator.log
        await swarm.until(lambda: len(swarm.coordinator.leader.state.members) == 2, "peers are there")
        await client.admin("Resume", coordinator_pb2.ResumeRequest())
        await swarm.until(lambda: log.head.round >= 2, "rounds are published")
        await client.admin("Pause", coordinator_pb2.PauseRequest())
        assert (await client.status()).state.startswith("paused")
        ada = swarm.peer_id("ada")
        round_ = max(r for r, works in log.accounts.pending.items() if ada.public_key in works)
        request = coordinator_pb2.RevokeRequest(peer_id=str(ada), round=round_, reason="its loss cannot be true")
        assert "void" in (await client.admin("Revoke", request)).message
        with pytest.raises(UsageError, match="reason"):
            await client.admin("Revoke", coordinator_pb2.RevokeRequest(peer_id=str(ada)))
        await client.admin("Resume", coordinator_pb2.ResumeRequest())
        await swarm.until(lambda: log.accounts.peers[ada.public_key].voided_tokens > 0, "the log holds the verdict")
        await client.admin("Revoke", coordinator_pb2.RevokeRequest(peer_id=str(ada), reason="again and again"))
        await swarm.until(lambda: ada.public_key in log.accounts.barred, "the log bars the peer")
        last = log.accounts.peers[ada.public_key].last_round
        reply = await client.peer(ada)
        assert reply.revoked and "again and again" in reply.hindrances[0]
        head = log.head.round
        await swarm.until(lambda: log.head.round >= head + 2, "rounds go on without it")
        assert log.accounts.peers[ada.public_key].last_round == last
        assert "round-" in (await client.admin("Checkpoint", coordinator_pb2.CheckpointRequest())).message
        await client.admin("Finish", coordinator_pb2.FinishRequest())
        await swarm.until(lambda: log.finished and swarm.lead.done(), "the run has ended")
        assert log.head.round < 100
        with pytest.raises(Refused, match="finished"):
            await client.admin("Pause", coordinator_pb2.PauseRequest())
        grace = swarm.nodes["grace"].replica.log
        await swarm.until(lambda: grace.finished, "the peer has the last record")
        assert grace.accounts.peers[ada.public_key].voided_tokens == log.accounts.peers[ada.public_key].voided_tokens


async def test_an_open_run_needs_no_invitations(tmp_path: Path) -> None:
    """The organiser is told that a ticket is enough; nobody can redeem anything."""
    async with Swarm(tmp_path, tiny_spec()) as swarm, organiser(swarm) as client:
        with pytest.raises(UsageError, match="open to everybody"):
            await client.admin("Invite", coordinator_pb2.InviteRequest())
        with pytest.raises(Refused, match="open to everybody"):
            await client.redeem(Identity.new(), "cwi1aaaa")
        with pytest.raises(Refused, match="no pending contribution"):
            request = coordinator_pb2.RevokeRequest(peer_id=str(Identity.new().peer_id), round=1, reason="why not")
            await client.admin("Revoke", request)
        with pytest.raises(UsageError):
            await client.admin("Revoke", coordinator_pb2.RevokeRequest())


def holding(folder: Path, *secrets: str) -> list[Path]:
    """Files below `folder` in which one of these can be read."""
    wanted = [secret.encode() for secret in secrets]
    files = (path for path in folder.rglob("*") if path.is_file())
    return [path for path in files if any(secret in path.read_bytes() for secret in wanted)]


def test_the_admin_token_is_made_once_and_for_its_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mode 0600, the same at the next start, overruled by the environment; a bad one is refused without being shown."""
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    with pytest.raises(UsageError, match="--dir"):
        admin_token(tmp_path, create=False)
    token = admin_token(tmp_path, create=True)
    assert token == admin_token(tmp_path, create=True) and is_token(token, f"Bearer {token}")
    assert stat.S_IMODE((tmp_path / "admin-token").stat().st_mode) == 0o600
    monkeypatch.setenv(ENVIRONMENT, "hunter2")
    with pytest.raises(UsageError) as refused:
        admin_token(tmp_path, create=True)
    assert "hunter2" not in str(refused.value)


def test_certificate_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """A missing file, something else, and a key of another certificate: one line each."""
    own_certificate(tmp_path / "a")
    own_certificate(tmp_path / "b")
    chain, key = tmp_path / "a" / "tls" / "certificate.pem", tmp_path / "b" / "tls" / "key.pem"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    with pytest.raises(UsageError, match="does not belong"):
        given_certificate(chain, key)
    with pytest.raises(UsageError, match="No such file"):
        given_certificate(tmp_path / "none", key)
    with pytest.raises(UsageError, match="not a certificate"):
        given_certificate(key, chain)


def test_peer_ids_of_the_token_prefix_are_still_peer_ids() -> None:
    """An invitation is never taken for a ticket or a peer id."""
    with pytest.raises(UsageError):
        PeerId.parse("cwi1" + "a" * 32)
    with pytest.raises(UsageError):
        Ticket.parse("cwi1" + "a" * 32)
