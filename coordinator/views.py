"""What people are shown of a run: the coordinator's state as the console's plain data."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from peer.identity import PeerId
from peer.terminal.quantities import clean
from peer.terminal.views import PeerView, Summary, SwarmView

if TYPE_CHECKING:
    from coordinator.demo import DemoResult
    from coordinator.ledger import Row, TeamRow
    from coordinator.run import Coordinator
    from peer.log.chain import Log

FILE_WIDTH = 160  # columns of a table that does not go to a terminal


def swarm_view(coordinator: Coordinator) -> SwarmView:
    status, log = coordinator.status(), coordinator.log
    evaluation = coordinator.evaluator.newest
    return SwarmView(
        run_name=status.name,
        state=status.state,
        round=status.round,
        target_rounds=status.target_rounds,
        tokens=status.tokens,
        target_tokens=status.target_tokens,
        round_tokens=coordinator.leader.state.round_tokens,
        round_target_tokens=log.spec.round.target_tokens,
        tokens_per_second=status.tokens_per_second or None,
        eta_seconds=status.eta_seconds if status.eta_seconds >= 0 else None,
        loss=log.accounts.loss,
        eval_loss=evaluation.loss if evaluation else None,
        losses=log.accounts.losses,
        eval_losses=[(item.round, item.loss) for item in coordinator.evaluator.history],
        peers=[
            PeerView(
                name=peer.name or peer.peer_id[-6:],
                phase=peer.phase,
                round_tokens=peer.round_tokens,
                tokens_per_second=peer.tokens_per_second or None,
                credit_tokens=peer.credit_tokens,
                loss=peer.loss or None,
                bytes_sent=peer.bytes_sent,
                bytes_received=peer.bytes_received,
                silent_seconds=peer.seen_seconds_ago,
            )
            for peer in status.peers
        ],
        address=coordinator.page_address,
    )


def summary_of(coordinator: Coordinator, result: DemoResult) -> Summary:
    log, evaluation = coordinator.log, coordinator.evaluator.newest
    reports = {report["peer_id"]: report for report in result.reports}
    peers = []
    for key, account in sorted(log.accounts.peers.items(), key=lambda item: -item[1].credit_tokens):
        peer = PeerId(key)
        report = reports.get(str(peer), {})
        peers.append(
            PeerView(
                name=coordinator.names_book.of(peer),
                round_tokens=report.get("tokens", account.credit_tokens),
                credit_tokens=account.credit_tokens,
                bytes_sent=report.get("bytes_sent"),
                bytes_received=report.get("bytes_received"),
            )
        )
    folder = coordinator.folder
    return Summary(
        run_name=log.spec.run.name,
        rounds=sum(1 for entry in log.entries if entry.contributions),
        tokens=log.accounts.tokens,
        seconds=result.seconds,
        losses=log.accounts.losses,
        eval_losses=[(item.round, item.loss) for item in coordinator.evaluator.history],
        peers=peers,
        state_digest=result.coordinator_digest,
        digests_equal=result.digests_equal,
        checkpoint=coordinator.checkpoint,
        prompt=evaluation.prompt if evaluation else "",
        sample=evaluation.sample if evaluation else "",
        next_steps=[
            (f"commonweights verify {folder}", "replay the log to the same bits"),
            (f"commonweights-coordinator ledger --dir {folder}", "who contributed how much"),
        ],
    )


def print_ledger(log: Log, rows: list[Row] | list[TeamRow]) -> None:
    """A table on stdout, without the columns that say nothing of anybody."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{log.spec.run.name}: {log.accounts.tokens:,} tokens in {log.head.round} rounds")
    cells = [vars(row) for row in rows]
    kept = [key for key in (cells[0] if cells else {}) if any(row[key] for row in cells)]
    for key in kept:
        figures = isinstance(cells[0][key], int)
        table.add_column(key.replace("_", " "), justify="right" if figures else "left", overflow="fold")
    for row in cells:
        shown = ((key, row[key]) for key in kept)
        table.add_row(
            *(f"{value:,}" if isinstance(value, int) else clean(_short(key, value), 200) for key, value in shown)
        )
    Console(width=None if sys.stdout.isatty() else FILE_WIDTH).print(table)


def _short(key: str, value: str) -> str:
    """On the screen the end of a peer id tells peers apart; --json and --csv have them whole."""
    return PeerId.parse(value).short if key == "peer_id" else value


def print_invites(invites: list[dict[str, Any]]) -> None:
    """A table on stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table("number", "note", "admitted", "state")
    for item in invites:
        admitted = ", ".join(PeerId.parse(peer).short for peer in item["admitted"])
        state = "taken back" if item["revoked"] else f"{item['uses'] - len(item['admitted'])} left"
        table.add_row(str(item["number"]), clean(item["note"], 60), admitted, state)
    Console().print(table)
