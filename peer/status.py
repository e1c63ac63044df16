"""`commonweights status`: where a run stands, asked of its coordinator."""

from __future__ import annotations

from typing import Any

import grpc
from rich.console import Console
from rich.table import Table

from peer.errors import CommonweightsError, UnreachableError, UsageError
from peer.identity import PeerId
from peer.terminal.quantities import clean, count, duration
from peer.ticket import Ticket
from protos import coordinator_pb2, coordinator_pb2_grpc

TIMEOUT_SECONDS = 10.0


async def fetch(ticket: Ticket) -> coordinator_pb2.StatusReply:
    """Ask the addresses of the ticket, one after the other.

    Raises:
        UnreachableError: none answers.
        UsageError: one does, but it serves another run.
    """
    reasons = []
    for address in ticket.grpc_addresses:
        async with grpc.aio.insecure_channel(address) as channel:
            stub: Any = coordinator_pb2_grpc.CoordinatorStub(channel)  # the generated types know only the blocking one
            request = coordinator_pb2.GetStatusRequest(run_id=ticket.run_id)
            try:
                reply: coordinator_pb2.StatusReply = await stub.GetStatus(request, timeout=TIMEOUT_SECONDS)
                return reply
            except grpc.aio.AioRpcError as error:
                if error.code() == grpc.StatusCode.NOT_FOUND:
                    raise UsageError(f"{address}: {error.details()}") from None
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    raise CommonweightsError(f"{address}: {error.details()}") from None
                reasons.append(address)
    raise UnreachableError(
        f"the coordinator does not answer at {', '.join(reasons) or 'any address of the ticket'}; "
        "is it running, and does a firewall let its port through?"
    )


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


def _known(value: float) -> float | None:
    return value if value >= 0 else None
