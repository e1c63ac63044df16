"""Receipts at the terminal: fetched from the coordinator, checked from a file."""

from __future__ import annotations

import asyncio
from pathlib import Path

from rich.console import Console

from peer.client import RunClient
from peer.errors import CommonweightsError, UsageError
from peer.identity import PeerId
from peer.log.receipts import MAX_RECEIPT_BYTES, Statement, check_receipt
from peer.terminal.quantities import clean
from peer.ticket import Ticket


def fetch_receipt(ticket: Ticket, peer: str, round_: int, out: Path | None) -> Path:
    """Where it was written, once it was checked.

    Raises:
        VerificationError: what the coordinator gave proves nothing.
        UsageError: there is no such contribution.
    """

    async def ask() -> bytes:
        async with RunClient(ticket) as run:
            receipt = await run.receipt(PeerId.parse(peer), round_)
            return receipt.SerializeToString(deterministic=True)

    content = asyncio.run(ask())
    statement = check_receipt(content, ticket.run_id)
    path = out or Path(f"receipt-{PeerId.parse(peer).short}-{statement.round}.bin")
    try:
        path.write_bytes(content)
    except OSError as error:
        raise CommonweightsError(f"{path} cannot be written: {error.strerror}") from None
    return path


def verify_receipt(path: Path, run: str) -> Statement:
    """Check a receipt from a file, for the run with this id (hex) or ticket; empty: for the one it names.

    Raises:
        VerificationError: it proves nothing.
        UsageError: the file cannot be read, or `run` is neither.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_RECEIPT_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    return check_receipt(content, _run_id(run) if run else None)


def _run_id(run: str) -> bytes:
    try:
        found = bytes.fromhex(run)
    except ValueError:
        return Ticket.parse(run).run_id
    if len(found) != 32:
        raise UsageError("--run: a run's id has 64 hexadecimal digits")
    return found


def show_statement(statement: Statement, run: str) -> None:
    """On stdout."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    label = " of ".join(clean(it, 60) for it in (statement.name, statement.team) if it)
    console.print(f"round {statement.round}: {statement.tokens:,} tokens accepted")
    console.print(f"of {statement.peer_id} {label}".rstrip())
    console.print(f"run {statement.run_id}")
    console.print(f"coordinator {statement.coordinator}")
    if not run:
        console.print("compare the run's id with one that you trust, or give it: --run ID or ticket")
    console.print("accepted as it says; whether a later verdict voided it: commonweights status TICKET --peer ID")
