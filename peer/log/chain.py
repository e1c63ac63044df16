"""The log of a run: a hash chain of signed records, checked when appended, one small file per record.

Validation of a record is a pure function of the record and of what came before it (`check`); it says nothing about
blobs or weights, which need the payloads (see `replica` and `verify`). One file per record costs a few bytes of slack
each and buys atomic appends, a damaged round that can be named, and no index.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from configs import RunSpec
from configs.schema import canonical_json
from peer.errors import CommonweightsError, VerificationError
from peer.identity import PeerId
from peer.log.accounting import Accounts
from peer.rounds.ranges import MAX_POSITION, Ranges, well_formed
from protos import log_pb2
from protos.signing import HASH_BYTES, PUBLIC_KEY_BYTES, SignatureError, body_hash, open_signed, strict_parse

logger = logging.getLogger(__name__)

MAX_RECORD_BYTES = 3 << 20  # must fit into one reply between peers
MAX_HEADER_BYTES = 64 << 10  # of one contribution: room for some 3,000 ranges
MAX_LABEL_CHARACTERS = 200
MAX_LOSS = 1e6  # nats per token; beyond, a figure is nonsense and would only spoil the mean


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
    def norms(self) -> tuple[float, ...]:
        return tuple(item.norm for item in self.record.accepted)


@dataclass(frozen=True)
class Origin:
    """What record 0 fixes for good."""

    run_id: bytes
    spec: RunSpec
    genesis: log_pb2.Genesis
    coordinator: PeerId


class Log:
    """The chain this replica holds, in memory and, unless `folder` is None, on disk."""

    def __init__(self, folder: Path | None, origin: Origin, genesis: Entry) -> None:
        self.folder = folder
        self.origin = origin
        self.entries = [genesis]
        self.accounts = Accounts()
        self.accounts.add(genesis.record, [])

    @classmethod
    def start(cls, genesis: log_pb2.Signed, folder: Path | None = None, run_id: bytes | None = None) -> Log:
        """A log that holds only its genesis record, stored if there is a folder.

        Raises:
            VerificationError: the record is damaged, or is not the genesis of the run `run_id`.
        """
        log = cls(folder, *_open_genesis(genesis, run_id))
        log._store(log.head)
        return log

    @classmethod
    def load(cls, folder: Path, cut_damage: bool = False) -> Log:
        """Read and check everything in `folder`.

        Args:
            cut_damage: drop a damaged record and what follows it, for somebody who can fetch them again. A coordinator
                cannot: its peers have seen them, and a second version of a round would be a fork.

        Raises:
            VerificationError: naming the first round whose record is missing or damaged.
        """
        files = sorted(path for path in folder.glob("*.record"))
        if not files:
            raise VerificationError(f"{folder} holds no log; the folder is made by demo, serve or join")
        log = cls(folder, *_open_genesis(_read(files[0], 0), None))
        for round_, path in enumerate(files[1:], start=1):
            try:
                if path.name != _file_name(round_):
                    raise VerificationError(f"round {round_}: {folder / _file_name(round_)} is missing")
                log._add(check(_read(path, round_), log))
            except VerificationError as error:
                if not cut_damage:
                    raise
                logger.warning("%s; this record and %d after it are fetched again", error, len(files) - round_ - 1)
                for rest in reversed(files[round_:]):
                    rest.unlink()
                break
        return log

    @property
    def head(self) -> Entry:
        return self.entries[-1]

    @property
    def spec(self) -> RunSpec:
        return self.origin.spec

    @property
    def run_id(self) -> bytes:
        return self.origin.run_id

    @property
    def finished(self) -> bool:
        return self.head.record.final

    def append(self, signed: log_pb2.Signed) -> Entry:
        """Check a record and make it the head; stored before it counts.

        Raises:
            VerificationError: it does not follow from the head; the log is unchanged.
        """
        entry = check(signed, self)
        self._store(entry)
        self._add(entry)
        return entry

    def records(self, first_round: int, count: int, max_bytes: int) -> Iterator[log_pb2.Signed]:
        """Records [first_round, first_round + count), as many as fit into `max_bytes`, but at least one."""
        used = 0
        for entry in self.entries[first_round : first_round + count]:
            used += entry.signed.ByteSize() + 8
            if used > max_bytes and entry.round != first_round:
                return
            yield entry.signed

    def _add(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.accounts.add(entry.record, list(entry.contributions))

    def _store(self, entry: Entry) -> None:
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write_durably(self.folder / _file_name(entry.round), entry.signed.SerializeToString(deterministic=True))
        except OSError as error:
            raise CommonweightsError(
                f"cannot write record {entry.round} to {self.folder}: {error.strerror}; make room there and start again"
            ) from None


def check(signed: log_pb2.Signed, log: Log) -> Entry:
    """Whether `signed` may follow the head of `log`; the opened record if so.

    Raises:
        VerificationError: with the round and the reason.
    """
    round_ = log.head.round + 1
    try:
        record = open_signed(signed, log_pb2.Record)
        entry = Entry(
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
    if reason := _fault(entry, log):
        raise VerificationError(f"round {round_}: {reason}")
    return entry


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
    if contribution.codec != spec.codec.name:
        return f"codec {contribution.codec[:40]!r}; this run uses {spec.codec.name!r}"
    if not 0 < contribution.payload_bytes <= max_payload_bytes(log.origin.genesis.parameters):
        parameters = log.origin.genesis.parameters
        return f"a payload of {contribution.payload_bytes} bytes cannot be right for {parameters} parameters"
    if len(contribution.private_data) > MAX_LABEL_CHARACTERS:
        return "the name of its private data is too long"
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
    if entry.signed.signer != log.origin.coordinator.public_key:
        return f"signed by {PeerId(entry.signed.signer).short}, who does not sequence this run"
    if len(record.base_digest) != HASH_BYTES:
        return "the state digest is not 32 bytes long"
    if not (math.isfinite(record.time_seconds) and math.isfinite(record.deadline_seconds)):
        return "a time is not a finite number"
    if not log.accounts.data_cursor <= record.data_cursor <= MAX_POSITION:
        return "the data cursor moves backwards, or absurdly far ahead"
    if any(len(refused.peer) != PUBLIC_KEY_BYTES for refused in record.refused):
        return f"a refused peer's key is not {PUBLIC_KEY_BYTES} bytes long"
    if record.final and record.accepted:
        return "the final record may not merge contributions"
    return _accepted_fault(entry, log)


def _accepted_fault(entry: Entry, log: Log) -> str:
    signers = [signer for signer, _ in entry.contributions]
    if signers != sorted(set(signers)):
        return "contributions are not in the order of their signers' keys, one each"
    merged = Ranges()
    payloads: set[bytes] = set()
    for (signer, contribution), accepted in zip(entry.contributions, entry.record.accepted, strict=True):
        who = f"contribution of {PeerId(signer).short}"
        if reason := contribution_fault(contribution, log):
            return f"{who}: {reason}"
        if contribution.base_digest != entry.record.base_digest:
            return f"{who}: it starts from another state"
        if not (math.isfinite(accepted.norm) and accepted.norm >= 0):
            return f"{who}: its norm is not a finite number"
        consumed = Ranges.from_protos(contribution.consumed)
        if merged & consumed:
            return f"{who}: position {(merged & consumed).pairs[0][0]} is claimed twice"
        merged |= consumed
        if contribution.payload_hash in payloads:
            return f"{who}: its payload is a copy of another one in this record"
        payloads.add(contribution.payload_hash)
    if merged.stop > entry.record.data_cursor:
        return f"position {merged.stop - 1} lies beyond the data cursor"
    return ""


def _open_genesis(signed: log_pb2.Signed, run_id: bytes | None) -> tuple[Origin, Entry]:
    try:
        record = open_signed(signed, log_pb2.Record)
        name = body_hash(signed)
    except SignatureError as error:
        raise VerificationError(f"round 0: {error}") from None
    if record.round != 0 or not record.HasField("genesis") or record.accepted or record.previous_hash:
        raise VerificationError("round 0: the record is not a genesis")
    if run_id is not None and name != run_id:
        raise VerificationError(f"round 0: this is run {name.hex()[:16]}, not {run_id.hex()[:16]}")
    try:
        spec = RunSpec.from_json(record.genesis.spec)
    except ValueError as error:
        raise VerificationError(f"round 0: the run spec is not one this version understands: {error}") from None
    # Not the spec's own canonical form: a later version may know more keys, and still has to read this run.
    if canonical_json(json.loads(record.genesis.spec)) != record.genesis.spec:
        raise VerificationError("round 0: the run spec is not in canonical form")
    if record.genesis.parameters <= 0 or len(record.genesis.state_digest) != HASH_BYTES:
        raise VerificationError("round 0: the genesis names no model")
    return Origin(name, spec, record.genesis, PeerId(signed.signer)), Entry(signed, record, name, ())


def _read(path: Path, round_: int) -> log_pb2.Signed:
    try:
        if path.stat().st_size > 2 * MAX_RECORD_BYTES:
            raise VerificationError(f"round {round_}: {path} is too large to be a record")
        return strict_parse(path.read_bytes(), log_pb2.Signed)
    except SignatureError as error:
        raise VerificationError(f"round {round_}: {path}: {error}") from None
    except OSError as error:
        raise VerificationError(f"round {round_}: {path} cannot be read: {error.strerror}") from None


def _file_name(round_: int) -> str:
    return f"{round_:08d}.record"


def _write_durably(path: Path, data: bytes) -> None:
    """Complete or not at all, also after a power cut."""
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
