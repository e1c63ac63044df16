"""What people are shown of a run: the coordinator's state as the console's plain data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peer.identity import PeerId
from peer.terminal.views import PeerView, Summary, SwarmView

if TYPE_CHECKING:
    from coordinator.demo import DemoResult
    from coordinator.ledger import Row
    from coordinator.serve import Coordinator
    from peer.log.chain import Log


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
        checkpoint=str(coordinator.evaluator.checkpoint or ""),
        prompt=evaluation.prompt if evaluation else "",
        sample=evaluation.sample if evaluation else "",
        next_steps=[
            (f"commonweights verify {folder}", "replay the log to the same bits"),
            (f"commonweights-coordinator ledger --dir {folder}", "who contributed how much"),
        ],
    )


def print_ledger(log: Log, rows: list[Row]) -> None:
    """A table on stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{log.spec.run.name}: {log.accounts.tokens:,} tokens in {log.head.round} rounds")
    for heading in ("peer", "name", "credit (tokens)", "contributions", "refused", "rounds", "last refusal"):
        table.add_column(heading, justify="right" if heading[0] in "c" else "left")
    for row in rows:
        table.add_row(
            row.peer_id, row.name, f"{row.credit_tokens:,}", str(row.contributions), str(row.refused),
            f"{row.first_round}-{row.last_round}", row.last_refusal,
        )  # fmt: skip
    Console().print(table)
