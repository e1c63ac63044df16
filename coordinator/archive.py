"""Checkpoints of the run in its folder: made, sealed with a signed manifest, listed, and dropped by rule.

A folder `checkpoints/round-000010` is either a whole checkpoint or not there. Which ones are kept is a pure function
(`superfluous`); what does not count any more, because the log was rolled back behind it, goes first.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from coordinator.evaluate import Evaluation
from coordinator.settings import CheckpointSettings
from peer.checkpoints.manifest import Checkpoint, folder_name, seal
from peer.data.manifest import Manifest
from peer.errors import VerificationError
from peer.identity import Identity, PeerId
from peer.log.chain import Entry, Log
from peer.log.state import State, manifest_digest
from peer.training.checkpoint import export, remove_leftovers
from peer.training.model_card import Contributor, Provenance
from protos import log_pb2

logger = logging.getLogger(__name__)


class Archive:
    """One per folder of a run. `make` and `prune` are for one thread at a time; the rest may be asked by any."""

    def __init__(
        self,
        folder: Path,
        log: Log,
        identity: Identity,
        manifest: Manifest,
        settings: CheckpointSettings,
        name_of: Callable[[PeerId], str],
    ) -> None:
        self.folder = folder / "checkpoints"
        self.tokenizer_folder = folder / "data" / "tokenizer"
        self.log = log
        self.identity = identity
        self.manifest = manifest
        self.settings = settings
        self.name_of = name_of
        remove_leftovers(self.folder)
        self._made = checkpoints_in(self.folder, log)

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """What there is, oldest first; without those that the log has left behind."""
        made = self._made
        return [made[round_] for round_ in sorted(made) if made[round_].counts_in(self.log)]

    @property
    def newest(self) -> Checkpoint | None:
        checkpoints = self.checkpoints
        return checkpoints[-1] if checkpoints else None

    def folder_of(self, round_: int) -> Path:
        return self.folder / folder_name(round_)

    def due(self, round_: int) -> bool:
        """Whether a multiple of `every_rounds` was reached since the newest checkpoint: a missed one is made up for."""
        newest = self.newest
        every = self.settings.every_rounds
        return round_ // every > (newest.round // every if newest else 0)

    def make(self, state: State, entries: Sequence[Entry], evaluation: Evaluation) -> Checkpoint:
        """Write, seal and list the checkpoint of `state`, which the last of `entries` (from the genesis on) gave.

        Raises:
            CommonweightsError: the folder cannot be written.
        """
        last = entries[-1]
        credit: dict[bytes, int] = {}
        for signer, item in (pair for entry in entries for pair in entry.contributions):
            credit[signer] = credit.get(signer, 0) + item.tokens
        manifest = log_pb2.CheckpointManifest(
            run_id=self.log.run_id,
            round=last.round,
            record_hash=last.hash,
            state=state.manifest(self.log.run_id),
            tokens=sum(credit.values()),
            time_seconds=time.time(),
            eval_loss=evaluation.loss,
            genesis=entries[0].signed,
        )
        folder = export(
            self.folder_of(last.round),
            state.theta,
            self.log.spec,
            vocab_size=self.manifest.vocab_size,
            end_of_text=self.manifest.end_of_text,
            tokenizer_folder=self.tokenizer_folder,
            provenance=self._provenance(manifest, credit),
            momentum=state.momentum,
            seal=lambda partial: seal(partial, manifest, self.identity),
        )
        checkpoint = Checkpoint.load(folder)
        self._made = {**self._made, last.round: checkpoint}
        return checkpoint

    def prune(self, busy: Collection[int] = ()) -> None:
        """Drop what the settings do not keep, and what does not count any more; not the rounds in `busy`."""
        made = self._made
        counting = [checkpoint.round for checkpoint in self.checkpoints]
        gone = {*superfluous(counting, self.settings), *(set(made) - set(counting))} - set(busy)
        for round_ in gone:
            drop(self.folder_of(round_))
        self._made = {round_: checkpoint for round_, checkpoint in made.items() if round_ not in gone}

    def _provenance(self, manifest: log_pb2.CheckpointManifest, credit: dict[bytes, int]) -> Provenance:
        return Provenance(
            run_id=manifest.run_id.hex(),
            round=manifest.round,
            record_hash=manifest.record_hash.hex(),
            tokens=manifest.tokens,
            state_digest=manifest_digest(manifest.state).hex(),
            data=str(self.manifest.source.get("path", "")),
            data_license=self.manifest.license,
            contributors=[
                Contributor(self.name_of(PeerId(key)), amount)
                for key, amount in sorted(credit.items(), key=lambda item: -item[1])
                if amount
            ],
            eval_loss=manifest.eval_loss,
        )


def superfluous(rounds: Sequence[int], settings: CheckpointSettings) -> list[int]:
    """Of `rounds` (rising), those to drop: neither among the newest, nor the first at or after a multiple of
    `keep_every`. The newest of all, which at the end is the final one, is always kept."""
    kept, seen = set(rounds[-settings.keep_last :]), {0}
    for round_ in rounds if settings.keep_every else ():
        if round_ // settings.keep_every not in seen:
            seen.add(round_ // settings.keep_every)
            kept.add(round_)
    return [round_ for round_ in rounds if round_ not in kept]


def drop(folder: Path) -> None:
    """Delete a checkpoint's folder, out of sight first: nothing in between passes for a checkpoint, and what a kill
    leaves is cleared away at the next start."""
    leaving = folder.with_name(f".{folder.name}.replaced")
    shutil.rmtree(leaving, ignore_errors=True)  # of a kill
    with contextlib.suppress(FileNotFoundError):
        os.replace(folder, leaving)
    shutil.rmtree(leaving, ignore_errors=True)


def checkpoints_in(folder: Path, log: Log) -> dict[int, Checkpoint]:
    """Checkpoints of this run that lie in `folder`; others are left where they are, and not listed."""
    found = {}
    for path in sorted(folder.glob("round-*")):
        try:
            checkpoint = Checkpoint.load(path)
        except VerificationError as error:
            logger.warning("not a checkpoint: %s", error)
            continue
        if checkpoint.origin.run_id == log.run_id and path.name == folder_name(checkpoint.round):
            found[checkpoint.round] = checkpoint
    return found
