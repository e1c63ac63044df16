"""Making a run: data, initial weights, and record 0, which names both."""

from __future__ import annotations

import time
from pathlib import Path

from configs import RunSpec
from coordinator.prepare import prepare
from coordinator.warm_start import load_into
from peer.data.manifest import Manifest
from peer.exchange.blobs import BlobStore
from peer.identity import Identity
from peer.log.chain import Log
from peer.log.snapshots import Snapshots
from peer.log.state import State
from peer.training.tasks import build_model
from peer.training.trainer import FlatParameters
from protos import log_pb2
from protos.signing import sign


def create(spec: RunSpec, folder: Path, identity: Identity) -> Log:
    """Prepare the data, draw the initial weights, sign the genesis record. The log appears last: without it there is no
    run.

    Raises:
        CommonweightsError: the data cannot be prepared, or the model not be built.
    """
    manifest = prepare(spec, folder / "data")
    blobs = BlobStore(folder / "blobs")
    text = manifest.to_json()
    state = initial_state(spec, manifest)
    genesis = log_pb2.Genesis(
        spec=spec.canonical_json(),
        manifest_hash=blobs.put(text),
        manifest_bytes=len(text),
        state_digest=state.digest(),
        parameters=state.theta.numel(),
    )
    record = sign(log_pb2.Record(time_seconds=time.time(), genesis=genesis), identity.private_key)
    share_data(manifest, folder / "data", blobs)
    snapshots = Snapshots(folder / "snapshots", blobs)
    run_id = Log.start(record).run_id
    snapshots.save(state, run_id)
    return Log.start(record, folder / "log")


def initial_state(spec: RunSpec, manifest: Manifest) -> State:
    """theta before the first round: of `model.initial_weights`, or drawn from the run's seed.

    Raises:
        ConfigError, DataError, UnreachableError: there is no such model, or it is not the run's.
    """
    model = build_model(spec, manifest.vocab_size, manifest.end_of_text)
    if spec.model.initial_weights:
        load_into(model, spec.model.initial_weights)
    return State.initial(FlatParameters(model).read(), spec.outer.momentum > 0)


def share_data(manifest: Manifest, data: Path, blobs: BlobStore) -> None:
    """Let peers fetch the data set's files from this node's blob store (by links where the file system has them)."""
    for entry in manifest.files():
        blobs.put_file(data / entry.name)
