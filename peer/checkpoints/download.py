"""A checkpoint from the coordinator itself, file by file over its API, into a folder.

The manifest comes first and must be signed by the coordinator of the run that the ticket names; sizes and hashes are
the manifest's, not the server's. It is written last: a folder that has it was complete and checked.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from peer.checkpoints.manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES, Checkpoint, file_faults, folder_name
from peer.client import RunClient
from peer.durable import write_durably
from peer.errors import UnreachableError, VerificationError
from peer.ticket import Ticket
from protos import log_pb2

Report = Callable[[int, int], None]  # (bytes that are here, bytes of all files)


async def download(run: RunClient, folder: Path, round_: int = 0, report: Report = lambda done, total: None) -> Path:
    """The checkpoint of that round (0: the newest) in `folder`/round-NNNNNN. What is there already is completed, not
    fetched again.

    Raises:
        VerificationError: it is not what the run's coordinator signed.
        UnreachableError: the line broke; the same call goes on from there.
        UsageError: there is no such checkpoint.
    """
    found = await run.checkpoint(round_)
    round_ = found.checkpoint.round
    content = bytearray()
    async for piece in run.read(round_, MANIFEST_FILE):
        content += piece
        if len(content) > MAX_MANIFEST_BYTES:
            raise VerificationError(f"{MANIFEST_FILE}: too large for a manifest")
    checkpoint = Checkpoint.parse(bytes(content))
    if checkpoint.origin.run_id != run.ticket.run_id:
        raise VerificationError(f"{MANIFEST_FILE}: of another run than the ticket's")
    target = folder / folder_name(checkpoint.round)
    done = len(content)
    for file in checkpoint.manifest.files:  # their names were checked with the manifest
        path = target / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        async for here in _completed(run, round_, file, path):
            report(done + here, checkpoint.size_bytes)
        done += file.bytes
    (target / MANIFEST_FILE).unlink(missing_ok=True)
    if faults := await asyncio.to_thread(lambda: list(file_faults(target, checkpoint.manifest))):
        raise VerificationError(f"{target}/{faults[0]}; delete it, the same command fetches what is missing")
    write_durably(target / MANIFEST_FILE, checkpoint.content)
    return target


async def _completed(run: RunClient, round_: int, file: log_pb2.SealedFile, path: Path) -> AsyncIterator[int]:
    """Fetch the end of the file that is missing; how many bytes are here, after each piece."""
    path.touch()
    have = path.stat().st_size
    if have < file.bytes:
        with path.open("ab") as out:
            async for piece in run.read(round_, file.name, have):
                have += len(piece)
                if have > file.bytes:
                    raise VerificationError(f"{file.name}: more than the {file.bytes:,} bytes that were signed")
                out.write(piece)
                yield have
    if have < file.bytes:
        raise UnreachableError(f"{file.name}: the download broke off; the same command goes on from there")


def download_with_progress(ticket: Ticket, folder: Path, round_: int) -> Path:
    """`commonweights download` at the terminal; where the checkpoint lies. Raises what `download` does."""
    console = Console(stderr=True)
    columns = (TextColumn("fetching"), BarColumn(), DownloadColumn(), TimeRemainingColumn())

    async def fetch(report: Report) -> Path:
        async with RunClient(ticket) as run:
            return await download(run, folder, round_, report)

    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)
        return asyncio.run(fetch(lambda done, total: progress.update(task, completed=done, total=total)))
