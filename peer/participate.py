"""`commonweights join`: a node, the terminal view of it, and the signals that end it."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from peer.join import JoinOptions, Report, joined, report
from peer.node import Node
from peer.runner import Stop
from peer.terminal.console import Console
from peer.terminal.views import JoinView, PeerView
from peer.ticket import Ticket

LOOK_SECONDS = 0.5


async def participate(ticket: Ticket, options: JoinOptions, stop: Stop, console: Console) -> Report:
    """Take part until the run, the rounds or the person's patience are over."""
    # More threads than a small machine has by default: one may be busy with a slow disk.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(8, thread_name_prefix="worker"))
    async with joined(ticket, options, console.event) as node:
        stop.on_request = node.stop
        watching = asyncio.create_task(_watch(node, console))
        try:
            await node.run()
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        console.show(join_view(node))
        return report(node)


async def _watch(node: Node, console: Console) -> None:
    while True:
        console.show(join_view(node))
        await asyncio.sleep(LOOK_SECONDS)


def join_view(node: Node) -> JoinView:
    log, view, tally = node.replica.log, node.link.view, node.tally
    run, exchange = log.spec.run, node.replica.exchange
    state = node.phase if node.link.reachable else "the coordinator does not answer; training goes on"
    return JoinView(
        run_name=run.name,
        peer=PeerView(
            name=node.labels.name or node.contributor.identity.peer_id.short,
            phase=node.phase,
            round_tokens=node.contributor.backlog.tokens,
            tokens_per_second=tally.tokens_per_second or None,
            credit_tokens=log.accounts.credit.get(node.contributor.identity.peer_id.public_key, 0),
            loss=tally.loss or None,
            bytes_sent=exchange.bytes_sent,
            bytes_received=exchange.bytes_received,
        ),
        state=f"{state}; {view.state_words}" if view.state_words else state,
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
        loss=log.accounts.loss,
        losses=log.accounts.losses,
    )
