"""What may follow in a log: the rules that every replica checks, and that a forged chain would have to keep.

Pure functions of a record and of the log before it. They say nothing about blobs or weights, which need the payloads
(see `replica` and `verify`). Who may sign: the coordinator, and any peer whose work is in the log already, so that
rounds go on while the coordinator is away; a newcomer, whose keys cost nothing, never leads. Terms order those who
lead: they never fall, and one term has one signer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from configs import RunSpec
from peer.errors import VerificationError
from peer.identity import PeerId
from peer.log.decisions import admitted_by, decisions_fault, is_admitted, verdicts_in
from peer.rounds.ranges import MAX_POSITION, Ranges, well_formed
from protos import log_pb2
from protos.signing import HASH_BYTES, PUBLIC_KEY_BYTES, SignatureError, body_hash, open_signed

if TYPE_CHECKING:
    from peer.log.chain import Log

MAX_RECORD_BYTES = 3 << 20  # must fit into one reply between peers
MAX_HEADER_BYTES = 64 << 10  # of one contribution: room for some 3,000 ranges
MAX_PROOF_BYTES = 512 << 10  # of all equivocations in one record, each of them two records
MAX_LABEL_CHARACTERS = 200
MAX_NAME_CHARACTERS = 60  # of a peer or a team
MAX_LOSS = 1e6  # nats per token; beyond, a figure is nonsense and would only spoil the mean
MAX_TERM_STEP = 1 << 32  # so that nobody uses up the terms there are
MAX_CURSOR_STEP = 1 << 40  # nor the positions


@dataclass(frozen=True)
class Entry:
    """A record that was checked: what it says, who signed it and what it is called."""

    signed: log_pb2.Signed
    record: log_pb2.Record
    hash: bytes
    contributions: tuple[tuple[bytes, log_pb2.Contribution], ...]  # accepted, opened, with their signers

    @property
    def round(self) -> int:
        return self.record.round

    @cached_property
    def admitted(self) -> tuple[bytes, ...]:
        """Public keys that it admits to an invite-only run."""
        return admitted_by(self.record)

    @cached_property
    def verdicts(self) -> tuple[log_pb2.Verdict, ...]:
        return verdicts_in(self.record)

    @cached_property
    def norms(self) -> tuple[float, ...]:
        return tuple(item.norm for item in self.record.accepted)


@dataclass(frozen=True)
class Origin:
    """What record 0 fixes for good."""

    run_id: bytes
    spec: RunSpec
    genesis: log_pb2.Genesis
    coordinator: PeerId


def opened(signed: log_pb2.Signed, round_: int) -> Entry:
    """A record that came as that of `round_`, its signature and those in it checked: milliseconds where there are many.
    Whether it may follow is for `check` to say.

    Raises:
        VerificationError: with the round and the reason.
    """
    try:
        record = open_signed(signed, log_pb2.Record)
        return Entry(
            signed,
            record,
            body_hash(signed),
            tuple(
                (item.contribution.signer, open_signed(item.contribution, log_pb2.Contribution))
                for item in record.accepted
            ),
        )
    except SignatureError as error:
        raise VerificationError(f"round {round_}: {error}") from None


def check(entry: Entry, log: Log) -> None:
    """Whether an opened record may follow the head of `log`.

    Raises:
        VerificationError: with the round and the reason.
    """
    if reason := _fault(entry, log):
        raise VerificationError(f"round {log.head.round + 1}: {reason}")


def contribution_fault(contribution: log_pb2.Contribution, log: Log) -> str:
    """Why a contribution cannot be merged in the round after the head, as far as its header tells; empty when it can.

    Whether its positions are leased is the sequencer's to say; whether they are new is checked here.
    """
    head = log.head
    spec = log.spec
    if contribution.run_id != log.run_id:
        return "it belongs to another run"
    if contribution.round != head.round + 1:
        return f"it is for round {contribution.round}, the open round is {head.round + 1}"
    if contribution.previous_hash != head.hash:
        return f"it builds on another record {head.round} than this log's"
    if len(contribution.base_digest) != HASH_BYTES or len(contribution.payload_hash) != HASH_BYTES:
        return "a digest is not 32 bytes long"
    if not abs(contribution.mean_loss) <= MAX_LOSS or not 0 <= contribution.train_seconds < math.inf:
        return "its loss or training time is not a finite number, or makes no sense"
    if contribution.codec not in spec.codec.ladder:
        return f"codec {contribution.codec[:40]!r}; this run uses {', '.join(map(repr, spec.codec.ladder))}"
    if not 0 < contribution.payload_bytes <= max_payload_bytes(log.origin.genesis.parameters):
        parameters = log.origin.genesis.parameters
        return f"a payload of {contribution.payload_bytes} bytes cannot be right for {parameters} parameters"
    if len(contribution.private_data) > MAX_LABEL_CHARACTERS:
        return "the name of its private data is too long"
    if any(len(it) > MAX_NAME_CHARACTERS or not it.isprintable() for it in (contribution.name, contribution.team)):
        return f"names have at most {MAX_NAME_CHARACTERS} printable characters"
    if not well_formed(contribution.consumed):
        return "its ranges are empty, unsorted, overlap or are absurdly far ahead"
    consumed = Ranges.from_protos(contribution.consumed)
    if contribution.private_data:
        if consumed or contribution.tokens <= 0:
            return "private data comes with tokens and without leased positions"
        if contribution.tokens > (most := most_private_tokens(spec)):
            return f"{contribution.tokens} tokens of private data; a round credits at most {most}"
    elif contribution.tokens != len(consumed) * spec.data.sequence_length or not consumed:
        return f"{contribution.tokens} tokens do not match {len(consumed)} sequences of {spec.data.sequence_length}"
    if doubled := consumed & log.accounts.accepted:
        return f"position {doubled.pairs[0][0]} was merged before"
    return ""


def most_private_tokens(spec: RunSpec) -> int:
    """What one contribution of private data may claim: no lease vouches for it, so no more than a round is to have."""
    return max(spec.round.target_tokens, spec.batch_tokens)


def max_payload_bytes(parameters: int) -> int:
    """No codec needs more: fp32 and a header."""
    return 4 * parameters + (64 << 10)


def _fault(entry: Entry, log: Log) -> str:
    record, head = entry.record, log.head
    if head.record.final:
        return f"the run ended with round {head.round}; nothing may follow"
    if entry.signed.ByteSize() > MAX_RECORD_BYTES:
        return f"the record is larger than {MAX_RECORD_BYTES >> 20} MiB"
    if record.run_id != log.run_id:
        return "the record belongs to another run"
    if record.round != head.round + 1:
        return f"the record says round {record.round}"
    if record.previous_hash != head.hash:
        return f"the record does not follow from record {head.round} of this log"
    if record.HasField("genesis"):
        return "only record 0 may carry a genesis"
    if reason := signer_fault(entry.signed.signer, record.term, log):
        return reason
    if len(record.base_digest) != HASH_BYTES:
        return "the state digest is not 32 bytes long"
    if not (math.isfinite(record.time_seconds) and math.isfinite(record.deadline_seconds)):
        return "a time is not a finite number"
    cursor = log.accounts.data_cursor
    if not cursor <= record.data_cursor <= min(MAX_POSITION, cursor + MAX_CURSOR_STEP):
        return "the data cursor moves backwards, or absurdly far ahead"
    if any(len(refused.peer) != PUBLIC_KEY_BYTES for refused in record.refused):
        return f"a refused peer's key is not {PUBLIC_KEY_BYTES} bytes long"
    if record.final and record.accepted:
        return "the final record may not merge contributions"
    if record.final and entry.signed.signer != log.origin.coordinator.public_key and not is_due(log):
        return "only the coordinator may end the run before its time"
    return _proofs_fault(record, log) or decisions_fault(record, log) or _accepted_fault(entry, log)


def is_due(log: Log) -> bool:
    """Whether the run has all it was to have."""
    run = log.spec.run
    return bool((run.rounds and log.head.round >= run.rounds) or (run.tokens and log.accounts.tokens >= run.tokens))


def may_sequence(key: bytes, log: Log) -> bool:
    """Whether records of `key` may follow the head: the coordinator's, and those of peers that the log credits."""
    if key in log.accounts.banned or key in log.accounts.barred:
        return False
    account = log.accounts.peers.get(key)
    return key == log.origin.coordinator.public_key or (account is not None and account.credit_tokens > 0)


def signer_fault(signer: bytes, term: int, log: Log) -> str:
    """Why `signer` may not sign the record after the head in `term`; empty when it may."""
    name, head = PeerId(signer).short, log.head
    if signer in log.accounts.banned:
        return f"signed by {name}, who signed two different records of one round and is banned"
    if not may_sequence(signer, log):
        return f"signed by {name}, who does not sequence this run: it has no credit in the log"
    if not head.record.term <= term <= head.record.term + MAX_TERM_STEP:
        return f"term {term} after term {head.record.term}"
    if term == head.record.term and signer != head.signed.signer:
        return f"term {term} is that of {PeerId(head.signed.signer).short}, not of {name}"
    return ""


def equivocation(one: Entry, other: Entry) -> log_pb2.Equivocation | None:
    """The proof that one sequencer told two tales, if these two checked records are one."""
    same = (one.signed.signer, one.round, one.record.term, one.record.run_id)
    if one.hash == other.hash or same != (other.signed.signer, other.round, other.record.term, other.record.run_id):
        return None
    first, second = sorted((one, other), key=lambda entry: entry.hash)
    return log_pb2.Equivocation(first=first.signed, second=second.signed)


def proof_fault(proof: log_pb2.Equivocation, run_id: bytes) -> str:
    """Why a proof from outside proves nothing; empty when its signer did tell two tales."""
    if proof.ByteSize() > MAX_PROOF_BYTES:
        return f"it is larger than {MAX_PROOF_BYTES >> 10} KiB"
    try:
        first, second = (open_signed(signed, log_pb2.Record) for signed in (proof.first, proof.second))
        in_order = body_hash(proof.first) < body_hash(proof.second)
    except SignatureError as error:
        return str(error)
    if proof.first.signer != proof.second.signer or not in_order:
        return "the two records are not two of one signer, in the order of their hashes"
    if (first.round, first.term, first.run_id) != (second.round, second.term, second.run_id):
        return "the two records are not of one round and term"
    if first.run_id != run_id or first.round == 0:
        return "the two records are not of this run"
    return ""


def _proofs_fault(record: log_pb2.Record, log: Log) -> str:
    signers = [proof.first.signer for proof in record.equivocations]
    if signers != sorted(set(signers)) or set(signers) & log.accounts.banned:
        return "equivocations are not in the order of their signers' keys, each proven once"
    if sum(proof.ByteSize() for proof in record.equivocations) > MAX_PROOF_BYTES:
        return f"the equivocations are larger than {MAX_PROOF_BYTES >> 10} KiB"
    for proof in record.equivocations:
        if reason := proof_fault(proof, log.run_id):
            return f"equivocation of {PeerId(proof.first.signer).short}: {reason}"
    return ""


def _accepted_fault(entry: Entry, log: Log) -> str:
    signers = [signer for signer, _ in entry.contributions]
    if signers != sorted(set(signers)):
        return "contributions are not in the order of their signers' keys, one each"
    payloads: set[bytes] = set()
    for (signer, contribution), norm in zip(entry.contributions, entry.norms, strict=True):
        reason = _contributor_fault(signer, entry, log) or contribution_fault(contribution, log)
        if not reason and contribution.base_digest != entry.record.base_digest:
            reason = "it starts from another state"
        if not reason and not (math.isfinite(norm) and norm >= 0):
            reason = "its norm is not a finite number"
        if not reason and contribution.payload_hash in payloads:
            reason = "its payload is a copy of another one in this record"
        if reason:
            return f"contribution of {PeerId(signer).short}: {reason}"
        payloads.add(contribution.payload_hash)
    return _positions_fault(entry)


def _contributor_fault(signer: bytes, entry: Entry, log: Log) -> str:
    if signer in log.accounts.banned:
        return "it signed two different records of one round and is banned"
    if signer in log.accounts.barred:
        return f"the organiser has barred it from the run: {log.accounts.barred[signer]}"
    if not is_admitted(signer, log) and signer not in entry.admitted:
        return "nobody invited it to this run"
    return ""


def _positions_fault(entry: Entry) -> str:
    """Of all contributions together: one union, not one for each."""
    claims = [(signer, Ranges.from_protos(item.consumed)) for signer, item in entry.contributions]
    merged = Ranges.of(pair for _, consumed in claims for pair in consumed)
    if len(merged) < sum(len(consumed) for _, consumed in claims):
        return _claimed_twice(claims)
    if merged.stop > entry.record.data_cursor:
        return f"position {merged.stop - 1} lies beyond the data cursor"
    return ""


def _claimed_twice(claims: Sequence[tuple[bytes, Ranges]]) -> str:
    merged = Ranges()
    for signer, consumed in claims:
        if twice := merged & consumed:
            return f"contribution of {PeerId(signer).short}: position {twice.pairs[0][0]} is claimed twice"
        merged |= consumed
    return ""
