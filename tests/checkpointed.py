"""A folder of a run with real log, data, tokenizer and weights, made without a swarm; rounds are records of no work."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from coordinator.archive import Archive
from coordinator.evaluate import Evaluation
from coordinator.genesis import create
from coordinator.settings import CheckpointSettings
from peer.data.manifest import Manifest
from peer.exchange.blobs import BlobStore
from peer.identity import Identity
from peer.log.chain import Log
from peer.log.replica import apply_entry
from peer.log.snapshots import Snapshots
from peer.log.state import State
from protos import log_pb2
from protos.signing import sign
from tests.in_memory import tiny_spec


@dataclasses.dataclass
class Run:
    folder: Path
    identity: Identity
    log: Log
    state: State

    @classmethod
    def make(cls, folder: Path, **changes: dict[str, Any]) -> Run:
        """At its genesis; the same folder again goes on at the head of its log."""
        torch.set_num_threads(1)
        identity = Identity.load_or_create(folder / "identity.key")
        begun = (folder / "log").is_dir()
        log = Log.load(folder / "log") if begun else create(tiny_spec(**changes), folder, identity)
        snapshots = Snapshots(folder / "snapshots", BlobStore(folder / "blobs"))
        state = State.empty(log.origin.genesis.parameters, log.spec.outer.momentum > 0)
        snapshots.load(snapshots.manifest(0), state)
        run = cls(folder, identity, log, state)
        for entry in log.entries[1:]:
            apply_entry(state, entry, log, snapshots.blobs)
        return run

    def record(self, *, time_seconds: float = 1.0, final: bool = False) -> log_pb2.Signed:
        """The next one, of a round without contributions."""
        head = self.log.head
        return sign(
            log_pb2.Record(
                run_id=self.log.run_id,
                round=head.round + 1,
                term=1,
                previous_hash=head.hash,
                time_seconds=time_seconds,
                base_digest=self.state.digest(),
                deadline_seconds=1.0,
                final=final,
            ),
            self.identity.private_key,
        )

    def advance(self, rounds: int = 1, **fields: Any) -> None:
        for _ in range(rounds):
            entry = self.log.append(self.record(**fields))
            apply_entry(self.state, entry, self.log, BlobStore(self.folder / "blobs"))

    def archive(self, **settings: Any) -> Archive:
        manifest = Manifest.load(self.folder / "data")
        return Archive(
            self.folder, self.log, self.identity, manifest, CheckpointSettings(**settings), lambda peer: peer.short
        )

    def make_checkpoint(self, archive: Archive) -> Path:
        """Of the present state."""
        last = self.log.head
        evaluation = Evaluation(last.round, 0, 5.5, record_hash=last.hash.hex())
        archive.make(self.state.copy(), list(self.log.entries), evaluation)
        return archive.folder_of(last.round)
