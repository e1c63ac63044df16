"""Who may take part, as the node that leads sees it, and what of that belongs into the next record.

The log says who was admitted and barred so far (`accounting`); here is what it does not say yet: admissions that peers
have shown, and verdicts that the coordinator has just signed. Any node that leads has a gate; only the coordinator's
gets verdicts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypedDict

from peer.errors import Refused
from peer.log.chain import Log
from peer.log.decisions import MAX_IN_A_RECORD, admission_fault, is_admitted, verdict_fault
from protos import log_pb2

MAX_SHOWN = 100_000  # admissions that are remembered until their peer contributes


class Decisions(TypedDict):
    """Fields of a record."""

    admissions: list[log_pb2.Signed]
    verdicts: list[log_pb2.Signed]


@dataclass
class Gate:
    log: Log
    verdicts: list[log_pb2.Signed] = field(default_factory=list)  # of the coordinator, that may not be in the log yet
    _shown: dict[bytes, log_pb2.Signed] = field(default_factory=dict)  # admissions by public key

    def pass_(self, peer: bytes, admission: log_pb2.Signed | None = None) -> None:
        """Let a peer in.

        Args:
            peer: its public key.
            admission: what it shows for itself; it needs to do so once.

        Raises:
            Refused: it is barred, or not invited; with the reason.
        """
        if (reason := self._barred(peer)) is not None:
            raise Refused(f"the organiser has barred this peer from the run: {reason}")
        if is_admitted(peer, self.log) or peer in self._shown:
            return
        if admission is None:
            raise Refused("this run admits invited peers only; join with --invite and an invitation of the organiser")
        if fault := admission_fault(admission, peer, self.log):
            raise Refused(f"{fault}; join with --invite and an invitation of the organiser")
        if len(self._shown) < MAX_SHOWN:
            self._shown[peer] = admission

    def has_shown(self, peer: bytes) -> bool:
        """Whether the peer has shown an admission here."""
        return peer in self._shown

    def decide(self, verdict: log_pb2.Signed) -> None:
        """A verdict for the next record.

        Raises:
            Refused: it cannot stand there; with the reason.
        """
        if fault := verdict_fault(verdict, self.log):
            raise Refused(fault)
        if verdict not in self.verdicts:
            self.verdicts.append(verdict)

    def decisions(self, contributors: Iterable[bytes]) -> Decisions:
        """What the record after the head has to hold besides the work of these peers (public keys)."""
        fresh = sorted(peer for peer in contributors if not is_admitted(peer, self.log))
        due, seen = [], set()
        for signed in self.verdicts:  # after a fork, one that was in the log may be due again
            verdict = log_pb2.Verdict.FromString(signed.body)
            if (key := (verdict.peer, verdict.round)) not in seen and not verdict_fault(signed, self.log):
                seen.add(key)
                due.append(signed)
        return {"admissions": [self._shown[peer] for peer in fresh], "verdicts": due[:MAX_IN_A_RECORD]}

    def _barred(self, peer: bytes) -> str | None:
        if peer in self.log.accounts.barred:
            return self.log.accounts.barred[peer]
        for signed in self.verdicts:
            verdict = log_pb2.Verdict.FromString(signed.body)
            if verdict.peer == peer and not verdict.round:
                return verdict.reason
        return None
