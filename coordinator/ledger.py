"""The ledger: credit by peer, as a fold over the log and nothing else."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

from peer.identity import PeerId
from peer.log.accounting import Accounts


@dataclass(frozen=True)
class Row:
    peer_id: str
    name: str  # what the peer calls itself, if it was ever heard of here
    team: str
    credit_tokens: int  # confirmed and pending
    pending_tokens: int  # of the credit
    voided_tokens: int
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
            account.name or names.get(peer_id, ""),
            account.team,
            account.credit_tokens,
            accounts.pending_tokens(key),
            account.voided_tokens,
            account.contributions,
            account.refused,
            account.last_refusal,
            account.first_round,
            account.last_round,
        )
        for key, account in accounts.peers.items()
    ]
    return sorted(found, key=lambda row: (-row.credit_tokens, row.peer_id))


@dataclass(frozen=True)
class TeamRow:
    team: str  # empty: peers without one
    credit_tokens: int
    contributions: int
    peers: int


def team_rows(accounts: Accounts) -> list[TeamRow]:
    """Every team of the log, largest credit first; equal ones by name."""
    found = [
        TeamRow(name, team.credit_tokens, team.contributions, len(team.peers)) for name, team in accounts.teams.items()
    ]
    return sorted(found, key=lambda row: (-row.credit_tokens, row.team))


def to_csv(ledger: Sequence[Row | TeamRow], kind: type[Row] | type[TeamRow] = Row) -> str:
    """With a header line; cells that a spreadsheet would take for a formula are quoted with an apostrophe."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(field.name for field in fields(kind))
    for row in ledger:
        writer.writerow(
            f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value
            for value in asdict(row).values()
        )
    return out.getvalue()
