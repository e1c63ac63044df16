"""Replaying a run from disk: is the log what was signed, do the contributions give these weights, who has which credit?

Trusts nothing in the folder. Records are checked by `Log.load`; here every payload is hashed, its norm computed again
and applied, and the digest after each round compared with the one that the next record names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from peer.codecs import open_payload
from peer.errors import CommonweightsError, VerificationError
from peer.exchange.blobs import BlobStore
from peer.identity import PeerId
from peer.log import aggregate
from peer.log.chain import Entry, Log
from peer.log.replica import apply_entry
from peer.log.snapshots import Snapshots, fault
from peer.log.state import State


@dataclass
class Verdict:
    run_id: str = ""
    rounds: int = 0  # records with contributions
    contributions: int = 0
    state_digest: str = ""
    credit: dict[str, int] = field(default_factory=dict)  # tokens by peer id
    errors: list[str] = field(default_factory=list)
    replayed_from: int = 0  # round of the snapshot that the replay started from

    @property
    def ok(self) -> bool:
        return not self.errors


def verify(folder: Path, on_round: Callable[[int, int], None] = lambda round_, last: None) -> Verdict:
    """Replay the run in `folder` (of demo, serve or join); everything that is wrong is in the verdict's errors.

    A coordinator's folder is replayed from the initial state. A peer's holds payloads back to its oldest snapshot, so
    the replay starts there, after checking that snapshot against the chain. A node that was stopped in the middle of a
    round may hold newer records than work: these are checked as records, and the replay ends before them.

    Args:
        on_round: called with (round replayed, last round) for progress.
    """
    verdict = Verdict()
    try:
        log = Log.load(folder / "log")
    except VerificationError as error:
        verdict.errors.append(str(error))
        return verdict
    verdict.run_id = log.run_id.hex()
    verdict.credit = {str(PeerId(key)): tokens for key, tokens in sorted(log.accounts.credit.items())}
    verdict.rounds = sum(1 for entry in log.entries if entry.contributions)
    verdict.contributions = sum(len(entry.contributions) for entry in log.entries)
    try:
        blobs = BlobStore(folder / "blobs")
        snapshots = Snapshots(folder / "snapshots", blobs)
        state = _start(log, snapshots)
        verdict.replayed_from = state.round
        digest = state.digest()
        for entry in log.entries[state.round + 1 :]:
            if _not_here_yet(entry, snapshots, blobs):
                break
            digest = _replay(entry, state, digest, log, blobs)
            on_round(entry.round, log.head.round)
        verdict.state_digest = digest.hex()
        _check_snapshots(log, snapshots, state, digest)
    except CommonweightsError as error:
        verdict.errors.append(str(error))
    return verdict


def _not_here_yet(entry: Entry, snapshots: Snapshots, blobs: BlobStore) -> bool:
    """Whether the folder's node was stopped when it had this record, but neither its payloads nor a state after it."""
    ahead = entry.round > max(snapshots.rounds())
    return ahead and not all(blobs.has(item.payload_hash) for _, item in entry.contributions)


def _start(log: Log, snapshots: Snapshots) -> State:
    """The oldest state in the folder that fits the chain; a damaged or missing one is an error, not a detour."""
    genesis = log.origin.genesis
    state = State.empty(genesis.parameters, log.spec.outer.momentum > 0)
    rounds = [round_ for round_ in snapshots.rounds() if round_ <= log.head.round]
    if not rounds:
        raise VerificationError(
            "round 0: there is no snapshot of any state to replay from; was the folder copied whole?"
        )
    manifest = snapshots.manifest(rounds[0])
    # A lone snapshot of the head has nothing to be checked against yet: the next record will name its digest.
    known = rounds[0] < log.head.round or rounds[0] == 0
    if known and (reason := fault(manifest, log, state.state_bytes, b"")):
        raise VerificationError(f"round {rounds[0]}: the snapshot is not the state in the log: {reason}")
    snapshots.load(manifest, state)
    return state


def _replay(entry: Entry, state: State, digest: bytes, log: Log, blobs: BlobStore) -> bytes:
    if entry.record.base_digest != digest:
        raise VerificationError(
            f"round {state.round}: the replayed state is {digest.hex()[:16]}, record {entry.round} names "
            f"{entry.record.base_digest.hex()[:16]}"
        )
    for (signer, item), norm in zip(entry.contributions, entry.norms, strict=True):
        who = f"round {entry.round}: contribution of {PeerId(signer).short}"
        if not blobs.check(item.payload_hash):
            raise VerificationError(f"{who}: its payload {item.payload_hash.hex()[:16]} is missing or damaged")
        try:
            payload = open_payload(blobs.view(item.payload_hash), state.theta.numel())
        except CommonweightsError as error:
            raise VerificationError(f"{who}: {error}") from None
        if aggregate.norm_of(payload) != norm:
            raise VerificationError(f"{who}: its norm is not the one in the record")
    return apply_entry(state, entry, log, blobs)


def _check_snapshots(log: Log, snapshots: Snapshots, state: State, digest: bytes) -> None:
    for round_ in snapshots.rounds():
        manifest = snapshots.manifest(round_)
        if reason := fault(manifest, log, state.state_bytes, digest):
            raise VerificationError(f"round {round_}: the snapshot is not the state in the log: {reason}")
        for hash_ in manifest.chunk_hashes:
            if not snapshots.blobs.check(hash_):
                raise VerificationError(f"round {round_}: state chunk {hash_.hex()[:16]} is missing or damaged")
