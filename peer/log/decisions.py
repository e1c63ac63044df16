"""What only the coordinator may decide, signed by it and carried by whoever sequences: who may take part in an
invite-only run (admissions), and whose credit or place is taken back (verdicts).

Pure checks. That they are signed, and stand in the log, is what makes them survive the coordinator's absence and a
sequencer that would rather not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from protos import log_pb2
from protos.signing import PUBLIC_KEY_BYTES, SignatureError, open_signed

if TYPE_CHECKING:
    from peer.log.chain import Log

MAX_REASON_CHARACTERS = 200
MAX_IN_A_RECORD = 256  # admissions, and verdicts
INVITE = "invite"  # the run spec's run.access


def admission_fault(signed: log_pb2.Signed, peer: bytes, log: Log) -> str:
    """Why `signed` does not admit the key `peer` to the run of `log`; empty when it does."""
    try:
        admission = open_signed(signed, log_pb2.Admission)
    except SignatureError as error:
        return str(error)
    if signed.signer != log.origin.coordinator.public_key:
        return "the admission is not signed by the run's coordinator"
    if admission.run_id != log.run_id:
        return "the admission is to another run"
    if admission.peer != peer or len(peer) != PUBLIC_KEY_BYTES:
        return "the admission is for another key; invitations are personal"
    return ""


def is_admitted(peer: bytes, log: Log) -> bool:
    """Whether the log itself says that the key may contribute. Admissions outside of the log are to be shown."""
    return log.spec.run.access != INVITE or peer in log.accounts.admitted or peer == log.origin.coordinator.public_key


def verdict_fault(signed: log_pb2.Signed, log: Log) -> str:
    """Why a verdict cannot stand in the record after the head; empty when it can."""
    try:
        verdict = open_signed(signed, log_pb2.Verdict)
    except SignatureError as error:
        return str(error)
    if signed.signer != log.origin.coordinator.public_key:
        return "the verdict is not signed by the run's coordinator"
    if verdict.run_id != log.run_id or len(verdict.peer) != PUBLIC_KEY_BYTES:
        return "the verdict is about another run, or about no peer"
    if not 0 < len(verdict.reason) <= MAX_REASON_CHARACTERS or not verdict.reason.isprintable():
        return f"a verdict has a reason of 1 to {MAX_REASON_CHARACTERS} printable characters"
    if not verdict.round:
        return "the peer is barred already" if verdict.peer in log.accounts.barred else ""
    work = log.accounts.pending.get(verdict.round, {}).get(verdict.peer)
    if work is None or work.payload_hash != verdict.payload_hash:
        return f"the peer has no pending contribution to round {verdict.round}"
    return "that contribution is void already" if work.void else ""


def decisions_fault(record: log_pb2.Record, log: Log) -> str:
    """Why the admissions and verdicts in a record may not stand there; empty when they may."""
    if max(len(record.admissions), len(record.verdicts)) > MAX_IN_A_RECORD:
        return f"more than {MAX_IN_A_RECORD} admissions or verdicts in one record"
    try:
        peers, verdicts = admitted_by(record), verdicts_in(record)
    except SignatureError as error:
        return str(error)
    if peers != tuple(sorted(set(peers))) or set(peers) & log.accounts.admitted:
        return "admissions are not in the order of the peers' keys, each new"
    if peers and log.spec.run.access != INVITE:
        return "admissions to a run that is open to everybody"
    for peer, admission in zip(peers, record.admissions, strict=True):
        if reason := admission_fault(admission, peer, log):
            return reason
    if len({(verdict.peer, verdict.round) for verdict in verdicts}) != len(verdicts):
        return "two verdicts about the same"
    return next((reason for signed in record.verdicts if (reason := verdict_fault(signed, log))), "")


def admitted_by(record: log_pb2.Record) -> tuple[bytes, ...]:
    """The keys that a record admits, as it says: raises SignatureError for what is no admission."""
    return tuple(open_signed(signed, log_pb2.Admission).peer for signed in record.admissions)


def verdicts_in(record: log_pb2.Record) -> tuple[log_pb2.Verdict, ...]:
    """The verdicts in a record, as it says: raises SignatureError for what is none."""
    return tuple(open_signed(signed, log_pb2.Verdict) for signed in record.verdicts)
