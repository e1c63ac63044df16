"""A node as its person sees it: for the terminal, the log file and Prometheus."""

from __future__ import annotations

import time
from typing import Any

from configs.rungs import payload_bytes
from peer.health import Facts
from peer.log.progress import eta_seconds
from peer.node import Node
from peer.terminal.pace import Pace
from peer.terminal.states import Doing, in_words
from peer.terminal.views import JoinView, PeerView


def join_view(node: Node, pace: Pace) -> JoinView:
    log, view, tally = node.replica.log, node.link.view, node.tally
    run, exchange = log.spec.run, node.replica.exchange
    own = node.contributor.identity.peer_id.public_key
    up, down = pace.look(time.monotonic(), exchange.bytes_sent, exchange.bytes_received)
    eta = eta_seconds(log)
    return JoinView(
        run_name=run.name,
        peer=PeerView(
            name=node.labels.name or node.contributor.identity.peer_id.short,
            phase=node.phase,
            round_tokens=node.contributor.backlog.tokens,
            tokens_per_second=tally.tokens_per_second or None,
            credit_tokens=log.accounts.credit_of(own),
            pending_tokens=log.accounts.pending_tokens(own),
            loss=tally.loss or None,
            bytes_sent=exchange.bytes_sent,
            bytes_received=exchange.bytes_received,
        ),
        state=in_words(doing(node)),
        device=node.labels.hardware,
        round=max(0, node.replica.state.round - log.head.record.final),
        target_rounds=run.rounds,
        tokens=tally.tokens,
        rounds_contributed=node.contributor.merged_rounds,
        swarm_tokens=log.accounts.tokens,
        target_tokens=run.tokens,
        round_tokens=view.round_tokens,
        round_target_tokens=log.spec.round.target_tokens,
        swarm_tokens_per_second=view.tokens_per_second or None,
        swarm_peers=view.peers or None,
        eta_seconds=eta if eta >= 0 else None,
        loss=log.accounts.loss,
        losses=log.accounts.losses,
        up_bytes_per_second=up,
        down_bytes_per_second=down,
        codec=node.contributor.rung.present,
        payload_bytes=payload_bytes(node.contributor.rung.present, log.origin.genesis.parameters),
        uplink_bytes_per_second=next(reversed(node.contributor.rung.uploads_bytes_per_second), None),
        compute_seconds=tally.compute_seconds,
    )


def doing(node: Node) -> Doing:
    view = node.link.view
    return Doing(
        phase=node.phase,
        round=node.replica.state.round,
        head_round=max(view.head_round, node.replica.log.head.round),
        reason=node.permission.verdict.reason,
        reachable=node.link.reachable,
        closing=view.closing,
        left_tokens=node.spec.round.target_tokens - view.round_tokens,
        tokens_per_second=view.tokens_per_second,
        swarm_words=view.state_words,
    )


def health_facts(node: Node, now: float) -> Facts:
    """For `commonweights health`; `now` in Unix seconds."""
    log, own = node.replica.log, node.contributor.identity.peer_id.public_key
    account = log.accounts.peers.get(own)
    last = max(account.last_round if account else 0, node.synced_round)
    return Facts(
        seen=now,
        phase=node.phase,
        round=max(0, node.replica.state.round),
        reachable=node.link.reachable,
        alone=node.leader.leading and not any(peer.public_key != own for peer in node.leader.guests),
        missed_rounds=max(0, node.replica.state.round - last),
        paused_for=node.permission.verdict.reason,
    )


def round_figures(view: JoinView) -> dict[str, Any]:
    """One round's line in the log file."""
    return {
        "round": view.round,
        "loss": view.loss,
        "own_loss": view.peer.loss,
        "tokens": view.tokens,
        "tokens_per_second": view.peer.tokens_per_second,
        "credit_tokens": view.peer.credit_tokens,
        "pending_tokens": view.peer.pending_tokens,
        "rounds_contributed": view.rounds_contributed,
        "codec": view.codec,
        "bytes_sent": view.peer.bytes_sent,
        "bytes_received": view.peer.bytes_received,
    }
