"""Is this checkpoint what the run's log gives? Its files, its signature, its weights, and its place in the chain.

The digest of a state covers weights and outer momentum. A checkpoint need not carry the momentum: its manifest names
the hashes of all chunks, so the weights alone are enough to check the digest that stands in the log.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from peer.checkpoints.manifest import Checkpoint, file_faults
from peer.errors import VerificationError
from peer.log.chain import Log
from peer.log.snapshots import digest_after
from peer.log.state import State
from peer.training.checkpoint import read_momentum, read_weights
from protos import log_pb2


@dataclass
class CheckpointVerdict:
    run_id: str = ""
    round: int = 0
    record_hash: str = ""
    state_digest: str = ""
    tokens: int = 0
    files: int = 0
    coordinator: str = ""  # peer id of who signed it
    log_checked: bool = False  # False: only the coordinator's word was there to check against
    errors: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.errors


def verify_checkpoint(folder: Path, log: Log | None = None) -> CheckpointVerdict:
    """Everything that is wrong with the checkpoint in `folder` is in the verdict's errors.

    Args:
        log: the run's; None: the signature is checked with the key that the run id names, and the log is not looked at.
    """
    verdict = CheckpointVerdict(log_checked=log is not None)
    try:
        checkpoint = Checkpoint.load(folder)
    except VerificationError as error:
        verdict.errors.append(str(error))
        return verdict
    manifest = checkpoint.manifest
    verdict.run_id, verdict.round, verdict.tokens = manifest.run_id.hex(), manifest.round, manifest.tokens
    verdict.record_hash, verdict.state_digest = manifest.record_hash.hex(), checkpoint.state_digest.hex()
    verdict.files, verdict.coordinator = len(manifest.files), str(checkpoint.origin.coordinator)
    verdict.errors.extend(file_faults(folder, manifest))
    if not verdict.errors:  # files that nobody signed are not loaded
        verdict.errors.extend(_weight_faults(folder, checkpoint))
    if log is not None:
        verdict.errors.extend(log_faults(checkpoint, log))
    return verdict


def log_faults(checkpoint: Checkpoint, log: Log) -> Iterator[str]:
    """What the log says otherwise."""
    manifest, round_ = checkpoint.manifest, checkpoint.round
    if manifest.run_id != log.run_id:
        yield f"it is of run {manifest.run_id.hex()[:16]}, the log of run {log.run_id.hex()[:16]}"
    elif round_ > log.head.round:
        yield f"it is of round {round_}, the log ends with round {log.head.round}; bring the log up to date"
    elif not checkpoint.counts_in(log):
        yield f"record {round_} of the log is another one: the round that gave these weights was given up"
    else:
        digest = digest_after(log, round_, b"")  # of the head it is not known yet
        if digest and digest != checkpoint.state_digest:
            yield f"its state digest is {checkpoint.state_digest.hex()[:16]}, the log says {digest.hex()[:16]}"
        tokens = sum(item.tokens for entry in log.entries[: round_ + 1] for _, item in entry.contributions)
        if tokens != manifest.tokens:
            yield f"it claims {manifest.tokens:,} tokens, the log says {tokens:,}"


def load_state(folder: Path, checkpoint: Checkpoint) -> State | None:
    """The whole state, to lead the run on from; None when the outer momentum was not kept.

    Raises:
        VerificationError: files or weights are not what the manifest says.
    """
    if reasons := list(file_faults(folder, checkpoint.manifest)):
        raise VerificationError(f"{folder}: {reasons[0]}")
    theta = read_weights(folder)
    momentum = read_momentum(folder, theta.numel())
    if momentum is None and checkpoint.origin.spec.outer.momentum > 0:
        return None
    state = State(checkpoint.round, theta, momentum)
    if state.digest() != checkpoint.state_digest:
        raise VerificationError(f"{folder}: the weights are not those of the manifest")
    return state


def _weight_faults(folder: Path, checkpoint: Checkpoint) -> Iterator[str]:
    try:
        theta = read_weights(folder)
        momentum = read_momentum(folder, theta.numel())
    except VerificationError as error:
        yield str(error)
        return
    if theta.numel() != checkpoint.origin.genesis.parameters:
        yield f"{theta.numel():,} weights; the run has {checkpoint.origin.genesis.parameters:,}"
        return
    named = checkpoint.manifest.state.chunk_hashes
    weights = _chunks(theta)
    if weights != named[: len(weights)]:
        yield "the weights are not those of the manifest"
    if momentum is not None and _chunks(momentum) != named[len(weights) :]:
        yield "the outer momentum is not that of the manifest"


def _chunks(vector: torch.Tensor) -> list[bytes]:
    manifest: log_pb2.StateManifest = State(0, vector, None).manifest(b"")
    return list(manifest.chunk_hashes)
