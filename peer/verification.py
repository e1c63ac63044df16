"""`commonweights verify` at the terminal: a progress bar while the log is replayed, and the verdict in words."""

from __future__ import annotations

import asyncio
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from peer.checkpoints.fetch import local_copy
from peer.checkpoints.manifest import MANIFEST_FILE
from peer.checkpoints.verification import CheckpointVerdict, verify_checkpoint
from peer.client import RunClient
from peer.errors import UnreachableError, UsageError
from peer.log.chain import Log
from peer.log.verify import Verdict, verify
from peer.ticket import Ticket


def is_checkpoint(target: str) -> bool:
    """Whether `target` is a checkpoint (a URL, or a folder with a manifest), and not the folder of a run."""
    return "://" in target or (Path(target) / MANIFEST_FILE).is_file()


def verify_checkpoint_with_progress(source: str, run: str) -> CheckpointVerdict:
    """Check a checkpoint at a folder or URL.

    Args:
        run: a ticket, or the folder of a demo, serve or join; empty: the run's folder that the checkpoint lies in, if
            it does.

    Raises:
        UsageError, UnreachableError: checkpoint or run cannot be read.
        VerificationError: the run's log is damaged.
    """
    log = _log_of(run, source)
    console = Console(stderr=True)
    columns = (TextColumn("fetching"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)
        with local_copy(source, lambda done, total: progress.update(task, completed=done, total=total)) as folder:
            return verify_checkpoint(folder, log)


def _log_of(run: str, source: str) -> Log | None:
    if not run:
        beside = Path(source).absolute().parent.parent / "log"  # DIR/checkpoints/round-000010
        return Log.load(beside) if "://" not in source and any(beside.glob("*.record")) else None
    if (Path(run) / "log").is_dir():
        return Log.load(Path(run) / "log")
    return asyncio.run(_fetched(Ticket.parse(run)))


async def _fetched(ticket: Ticket) -> Log:
    """The log from the run's coordinator, checked record by record, in memory."""
    log: Log | None = None
    async with RunClient(ticket) as client:
        async for record in client.records():
            if log is None:
                log = Log.start(record, run_id=ticket.run_id)
            else:
                log.append(record)
    if log is None:
        raise UnreachableError("the coordinator sends no records; try again later")
    return log


def show_checkpoint_verdict(verdict: CheckpointVerdict) -> None:
    """On stdout."""
    console = Console(highlight=False, markup=False)
    for error in verdict.errors:
        console.print(f"NOT AS SIGNED  {error}", soft_wrap=True)
    if not verdict.ok:
        return
    console.print(f"run {verdict.run_id[:16]}: round {verdict.round}, {verdict.tokens:,} tokens, {verdict.files} files")
    console.print(f"state digest {verdict.state_digest}")
    console.print(f"signed by the run's coordinator {verdict.coordinator}")
    if verdict.log_checked:
        console.print("it is what the run's log says")
    else:
        console.print("the run's log was not looked at; give its ticket or a folder of it with --run")


def verify_with_progress(folder: Path) -> Verdict:
    """Raises UsageError when there is nothing to verify."""
    if not (folder / "log").is_dir():
        raise UsageError(f"{folder} holds no run and no checkpoint; give the --dir of a demo, serve or join")
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
