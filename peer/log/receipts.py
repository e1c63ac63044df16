"""Receipts: a contribution's place in the log, checkable by anybody who knows the run's id, without the log.

The id is the hash of the genesis record, and the genesis is signed by the coordinator: so the id alone says whose
signature counts. A record that the coordinator signed vouches for every record before it, whose hash it builds on. What
a receipt cannot show is a verdict that voided the contribution later; that takes the log, or the coordinator's word.
"""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.message import DecodeError

from peer.errors import Refused, VerificationError
from peer.identity import PeerId
from peer.log.chain import Log
from protos import log_pb2
from protos.signing import SignatureError, body_hash, open_signed, strict_parse

MAX_RECEIPT_BYTES = 16 << 20


@dataclass(frozen=True)
class Statement:
    """What a receipt proves."""

    run_id: str  # hex
    coordinator: str  # peer id
    peer_id: str
    round: int
    tokens: int
    time_seconds: float  # of the record, by its sequencer's clock
    name: str
    team: str
    sequencer: str  # peer id of who signed the record


def make_receipt(log: Log, peer: PeerId, round_: int) -> log_pb2.Receipt:
    """Of the peer's contribution to `round_`, or of its newest one for 0.

    Raises:
        Refused: there is none, or nothing of the coordinator stands after it yet.
    """
    account = log.accounts.peers.get(peer.public_key)
    wanted = round_ or (account.last_round if account else 0)
    if not 0 < wanted <= log.head.round or peer.public_key not in dict(log.entries[wanted].contributions):
        where = f"to round {round_}" if round_ else "in this run"
        raise Refused(f"{peer.short} has no accepted contribution {where}")
    records = []
    for entry in log.entries[wanted:]:
        records.append(entry.signed)
        if entry.signed.signer == log.origin.coordinator.public_key:
            return log_pb2.Receipt(genesis=log.entries[0].signed, records=records, peer=peer.public_key)
    raise Refused("the coordinator was away in that round and has signed nothing since; ask again after the next round")


def check_receipt(content: bytes, run_id: bytes | None = None) -> Statement:
    """What a receipt proves about the run with this id (32 bytes); None: about the run that it names itself.

    Raises:
        VerificationError: it proves nothing; with the reason.
    """
    if len(content) > MAX_RECEIPT_BYTES:
        raise VerificationError("the file is too large to be a receipt")
    try:
        receipt = strict_parse(content, log_pb2.Receipt)
        genesis = open_signed(receipt.genesis, log_pb2.Record)
        named = body_hash(receipt.genesis)
        records = [open_signed(signed, log_pb2.Record) for signed in receipt.records]
        hashes = [body_hash(signed) for signed in receipt.records]
    except (SignatureError, DecodeError) as error:
        raise VerificationError(f"not a receipt: {error}") from None
    if run_id is not None and named != run_id:
        raise VerificationError(f"the receipt is of run {named.hex()[:16]}, not of {run_id.hex()[:16]}")
    if genesis.round != 0 or not genesis.HasField("genesis") or not records:
        raise VerificationError("not a receipt: it does not begin with a genesis and a record")
    for record, before in zip(records[1:], hashes, strict=False):
        if record.previous_hash != before:
            raise VerificationError(f"record {record.round} does not follow from the one before")
    if any(record.run_id != named for record in records):
        raise VerificationError("a record belongs to another run")
    if receipt.records[-1].signer != receipt.genesis.signer:
        raise VerificationError("the last record is not signed by the run's coordinator")
    line = _line_of(receipt.peer, records[0])
    return Statement(
        run_id=named.hex(),
        coordinator=str(PeerId(receipt.genesis.signer)),
        peer_id=str(PeerId(receipt.peer)),
        round=records[0].round,
        tokens=line.tokens,
        time_seconds=records[0].time_seconds,
        name=line.name,
        team=line.team,
        sequencer=str(PeerId(receipt.records[0].signer)),
    )


def _line_of(peer: bytes, record: log_pb2.Record) -> log_pb2.Contribution:
    for accepted in record.accepted:
        if accepted.contribution.signer == peer:
            try:
                contribution = open_signed(accepted.contribution, log_pb2.Contribution)
            except SignatureError as error:
                raise VerificationError(str(error)) from None
            if contribution.run_id == record.run_id and contribution.round == record.round:
                return contribution
    raise VerificationError("the record holds no contribution of that peer")
