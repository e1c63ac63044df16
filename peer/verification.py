"""`commonweights verify` at the terminal: a progress bar while the log is replayed, and the verdict in words."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from peer.errors import UsageError
from peer.log.verify import Verdict, verify


def verify_with_progress(folder: Path) -> Verdict:
    """Raises UsageError when there is nothing to verify."""
    if not (folder / "log").is_dir():
        raise UsageError(f"{folder} holds no run; give the --dir of a demo, serve or join")
    console = Console(stderr=True)
    columns = (TextColumn("replaying"), BarColumn(), MofNCompleteColumn(), TextColumn("rounds"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)
        return verify(folder, lambda round_, last: progress.update(task, completed=round_, total=last))


def show_verdict(verdict: Verdict) -> None:
    """On stdout."""
    console = Console(highlight=False, markup=False)
    for error in verdict.errors:
        console.print(f"NOT AS SIGNED  {error}")
    if not verdict.ok:
        return
    since = f" (replayed from the state after round {verdict.replayed_from})" if verdict.replayed_from else ""
    console.print(f"run {verdict.run_id[:16]}: {verdict.rounds} rounds, {verdict.contributions} contributions{since}")
    console.print(f"state digest {verdict.state_digest}")
    for peer, tokens in verdict.credit.items():
        console.print(f"  {peer}  {tokens:,} tokens")
    console.print("everything is as it was signed")
