"""The log of a run: a hash chain of signed records, checked when appended (`rules`), one small file per record.

One file per record costs a few bytes of slack each and buys atomic appends, a damaged round that can be named, and no
index. The tail can be taken back (`adopt`): after a partition one of two chains wins.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from configs import RunSpec
from configs.schema import canonical_json
from peer.durable import sync, write_durably
from peer.errors import CommonweightsError, VerificationError
from peer.identity import PeerId
from peer.log.accounting import Accounts
from peer.log.rules import (
    MAX_HEADER_BYTES,
    MAX_RECORD_BYTES,
    Entry,
    Origin,
    check,
    contribution_fault,
    max_payload_bytes,
    most_private_tokens,
    opened,
)
from protos import log_pb2
from protos.signing import HASH_BYTES, SignatureError, body_hash, open_signed, strict_parse

__all__ = [
    "MAX_HEADER_BYTES",
    "MAX_RECORD_BYTES",
    "Entry",
    "Log",
    "Origin",
    "contribution_fault",
    "max_payload_bytes",
    "most_private_tokens",
    "opened",
]

logger = logging.getLogger(__name__)

_CUT = ".cut"  # suffix of records that were put aside because one before them is damaged


class Log:
    """The chain this replica holds, in memory and, unless `folder` is None, on disk."""

    def __init__(self, folder: Path | None, origin: Origin, genesis: Entry) -> None:
        self.folder = folder
        self.origin = origin
        self.entries = [genesis]
        self.accounts = Accounts()
        self.accounts.add(genesis.record, [])
        self.damage = ""  # what `load` had to cut off

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
            cut_damage: put a damaged record and what follows it aside, for somebody who can fetch them again;
                `put_back` undoes it.

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
                entry = opened(_read(path, round_), round_)
                check(entry, log)
                log._add(entry)
            except VerificationError as error:
                if not cut_damage:
                    raise
                logger.warning("%s; this record and %d after it are fetched again", error, len(files) - round_ - 1)
                for rest in reversed(files[round_:]):
                    os.replace(rest, rest.with_suffix(_CUT))
                log.damage = str(error)
                break
        return log

    @property
    def head(self) -> Entry:
        return self.entries[-1]

    def holds(self, round_: int, hash_: bytes) -> bool:
        """Whether a record is one of these."""
        return round_ < len(self.entries) and self.entries[round_].hash == hash_

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
        entry = opened(signed, self.head.round + 1)
        self.append_opened(entry)
        return entry

    def append_opened(self, entry: Entry) -> None:
        """The same for a record that was opened elsewhere, in a thread say."""
        check(entry, self)
        self._store(entry)
        self._add(entry)

    def records(self, first_round: int, count: int, max_bytes: int) -> Iterator[log_pb2.Signed]:
        """Records [first_round, first_round + count), as many as fit into `max_bytes`, but at least one."""
        used = 0
        for entry in self.entries[first_round : first_round + count]:
            used += entry.signed.ByteSize() + 8
            if used > max_bytes and entry.round != first_round:
                return
            yield entry.signed

    # --- two chains -------------------------------------------------------------------------------------------------

    def branch(self, round_: int) -> Log:
        """A log in memory that ends with record `round_` of this one, to see what might follow instead."""
        log = Log(None, self.origin, self.entries[0])
        for entry in self.entries[1 : round_ + 1]:
            log._add(entry)
        return log

    def adopt(self, branch: Log) -> list[Entry]:
        """Become `branch`, which begins as this log does; returns the records that it gives up.

        On disk the old tail goes first, newest record first, then the new records come: whenever that is interrupted,
        a whole, shorter log is left, and the rest can be fetched again.
        """
        shared = common(self.entries, branch.entries)
        undone = self.entries[shared + 1 :]
        if self.folder is not None:
            for entry in reversed(undone):
                (self.folder / _file_name(entry.round)).unlink(missing_ok=True)
            sync(self.folder)
        self.entries, self.accounts = branch.entries[: shared + 1], branch.branch(shared).accounts
        for entry in branch.entries[shared + 1 :]:
            self._store(entry)
            self._add(entry)
        return undone

    def put_back(self) -> None:
        """Undo what `load` cut off, for a person to look at."""
        assert self.folder is not None
        for path in sorted(self.folder.glob(f"*{_CUT}")):
            os.replace(path, path.with_suffix(".record"))

    def _add(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.accounts.add(entry.record, list(entry.contributions), entry.admitted, entry.verdicts)

    def _store(self, entry: Entry) -> None:
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / _file_name(entry.round)
            write_durably(path, entry.signed.SerializeToString(deterministic=True))
            path.with_suffix(_CUT).unlink(missing_ok=True)
        except OSError as error:
            raise CommonweightsError(
                f"cannot write record {entry.round} to {self.folder}: {error.strerror}; make room there and start again"
            ) from None


def common(ours: Sequence[Entry], theirs: Sequence[Entry]) -> int:
    """The round of the last record that both chains have."""
    low, high = 0, min(len(ours), len(theirs)) - 1
    while low < high:  # hashes are chained: once they differ they differ for good
        middle = (low + high + 1) // 2
        low, high = (middle, high) if ours[middle].hash == theirs[middle].hash else (low, middle - 1)
    return low


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
