"""The ledger: credit by peer, as a fold over the log and nothing else."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass, fields

from peer.identity import PeerId
from peer.log.accounting import Accounts


@dataclass(frozen=True)
class Row:
    peer_id: str
    name: str  # what the peer calls itself, if it was ever heard of here
    credit_tokens: int
    contributions: int
    refused: int
    last_refusal: str
    first_round: int
    last_round: int


def rows(accounts: Accounts, names: dict[str, str]) -> list[Row]:
    """Every peer of the log, largest credit first; equal ones in the order of their ids."""
    found = [
        Row(
            peer_id := str(PeerId(key)),
            names.get(peer_id, ""),
            account.credit_tokens,
            account.contributions,
            account.refused,
            account.last_refusal,
            account.first_round,
            account.last_round,
        )
        for key, account in accounts.peers.items()
    ]
    return sorted(found, key=lambda row: (-row.credit_tokens, row.peer_id))


def to_csv(ledger: list[Row]) -> str:
    """With a header line; cells that a spreadsheet would take for a formula are quoted with an apostrophe."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(field.name for field in fields(Row))
    for row in ledger:
        writer.writerow(
            f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value
            for value in asdict(row).values()
        )
    return out.getvalue()
