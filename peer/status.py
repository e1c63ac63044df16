"""`commonweights status`: where a run stands, asked of its coordinator."""

from __future__ import annotations

from typing import Any

from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.table import Table

from peer.client import RunClient
from peer.identity import PeerId
from peer.terminal.quantities import clean, count, duration
from peer.ticket import Ticket
from protos import coordinator_pb2


async def fetch(ticket: Ticket) -> coordinator_pb2.StatusReply:
    """Ask the coordinator. Raises what `RunClient` does."""
    async with RunClient(ticket) as run:
        return await run.status()


async def fetch_peer(ticket: Ticket, peer: PeerId) -> coordinator_pb2.GetPeerReply:
    """Ask the coordinator about one peer. Raises what `RunClient` does."""
    async with RunClient(ticket) as run:
        return await run.peer(peer)


def as_dict(status: coordinator_pb2.StatusReply) -> dict[str, Any]:
    """What `status --json` prints; unknown figures are null."""
    return {
        "run_id": status.run_id,
        "round": status.round,
        "tokens": status.tokens,
        "target_tokens": status.target_tokens or None,
        "target_rounds": status.target_rounds or None,
        "eta_seconds": _known(status.eta_seconds),
        "loss": _known(status.loss),
        "eval_loss": _known(status.eval_loss),
        "tokens_per_second": status.tokens_per_second,
        "peers": [
            {
                "peer_id": peer.peer_id,
                "name": peer.name,
                "team": peer.team,
                "phase": peer.phase,
                "tokens_per_second": peer.tokens_per_second,
                "credit_tokens": peer.credit_tokens,
                "head_round": peer.head_round,
            }
            for peer in status.peers
        ],
        "sequencer": status.sequencer,
        "coordinator_alive": True,
        "checkpoint": status.checkpoint,
        "state": status.state,
        "state_digest": status.state_digest,
        "finished": status.finished,
    }


def print_status(status: coordinator_pb2.StatusReply) -> None:
    """For people, on stdout."""
    console = Console(highlight=False, markup=False)
    rounds = f" of {status.target_rounds}" if status.target_rounds else ""
    tokens = f" of {count(status.target_tokens)}" if status.target_tokens else ""
    eta = _known(status.eta_seconds)
    console.print(f"{clean(status.name, 80)}  (run {status.run_id[:16]}): {clean(status.state, 200)}")
    console.print(
        f"round {status.round}{rounds}, {count(status.tokens)}{tokens} tokens, "
        f"{count(status.tokens_per_second)} tokens/s"
        + (f", {duration(eta)} left" if eta and not status.finished else "")
    )
    losses = [(label, _known(value)) for label, value in (("loss", status.loss), ("held-out loss", status.eval_loss))]
    console.print(", ".join(f"{label} {value:.4f}" for label, value in losses if value is not None) or "no loss yet")
    table = Table("peer", "name", "phase", "tokens/s", "credit (tokens)")
    for peer in status.peers:
        table.add_row(
            PeerId.parse(peer.peer_id).short,
            clean(peer.name, 40),
            clean(peer.phase, 20),
            count(peer.tokens_per_second),
            f"{peer.credit_tokens:,}",
        )
    console.print(table)


def peer_as_dict(peer: coordinator_pb2.GetPeerReply) -> dict[str, Any]:
    """What `status --peer --json` prints."""
    raw = MessageToDict(peer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    account = {key: int(value) if str(value).isdecimal() else value for key, value in raw.pop("account").items()}
    return {**account, "here": peer.HasField("status"), "hindrances": list(peer.hindrances), "revoked": peer.revoked}


def print_peer(peer: coordinator_pb2.GetPeerReply) -> None:
    """For people, on stdout: its credit, and why it is not more."""
    console = Console(highlight=False, markup=False)
    account = peer.account
    label = " of ".join(clean(it, 60) for it in (account.name, account.team) if it)
    console.print(f"{account.peer_id}  {label}".rstrip())
    words = f"{account.credit_tokens:,} tokens of credit in {account.contributions} contributions"
    extra = [(account.pending_tokens, "pending"), (account.voided_tokens, "voided")]
    console.print(", ".join([words, *(f"{amount:,} {what}" for amount, what in extra if amount)]))
    beside = (
        f"beside credit: {duration(account.uptime_seconds)} here, {account.rounds_sequenced} rounds sequenced, "
        f"{count(account.bytes_served)}B served"
    )
    console.print(beside)
    for sentence in peer.hindrances:
        console.print(f"- {clean(sentence, 300)}")
    if not peer.hindrances:
        console.print("nothing stands between it and credit")


def _known(value: float) -> float | None:
    return value if value >= 0 else None
