"""A state for a coordinator whose snapshots are lost: from its newest checkpoint, or from the run's first weights.

Neither is taken on trust. A checkpoint's whole state (weights and outer momentum) must have the digest that the log
names after that round; of the head's, which no record names yet, this coordinator's own signature does. The records
since are replayed as always.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from coordinator.archive import checkpoints_in
from coordinator.genesis import initial_state
from peer.checkpoints.manifest import folder_name
from peer.checkpoints.verification import load_state, log_faults
from peer.data.manifest import Manifest
from peer.errors import CommonweightsError, VerificationError
from peer.log.chain import Log
from peer.log.snapshots import Snapshots
from peer.log.state import State

logger = logging.getLogger(__name__)


def recover_snapshots(folder: Path, log: Log, snapshots: Snapshots, on_event: Callable[[str], None]) -> None:
    """Make snapshots again from what else is in the folder, as far as it goes. Heavy: not for the event loop.

    The first weights come back too if this machine draws them to the same bits, so that the run can be replayed whole.
    """
    on_event("the snapshots of the state are missing or damaged; making them again")
    for state in (_first_weights(folder, log), _newest_checkpoint(folder, log)):
        if state is not None:
            snapshots.save(state, log.run_id)
            on_event(f"the state after round {state.round} is back")


def _first_weights(folder: Path, log: Log) -> State | None:
    try:
        state = initial_state(log.spec, Manifest.load(folder / "data"))
    except CommonweightsError as error:
        logger.warning("the first weights cannot be made again: %s", error)
        return None
    if state.digest() != log.origin.genesis.state_digest:
        logger.warning("this machine draws other first weights than the run began with")
        return None
    return state


def _newest_checkpoint(folder: Path, log: Log) -> State | None:
    for round_, checkpoint in sorted(checkpoints_in(folder / "checkpoints", log).items(), reverse=True):
        place = folder / "checkpoints" / folder_name(round_)
        try:
            if reasons := list(log_faults(checkpoint, log)):
                raise VerificationError(f"{place}: {reasons[0]}")
            state = load_state(place, checkpoint)
        except VerificationError as error:
            logger.warning("%s", error)
            continue
        if state is not None:
            return state
    return None
