"""What is done with the weights after a round, beside the rounds: evaluation, checkpoints, copies, trackers.

It works on a copy of the state, taken between two rounds. When it cannot keep up it skips evaluations, and makes a
checkpoint a round or two later; it never delays a round, and nothing that goes wrong here ends the run.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from coordinator.archive import Archive
from coordinator.destinations import Destination, destination
from coordinator.evaluate import Evaluation, Evaluator
from coordinator.names import Names
from coordinator.settings import Settings
from coordinator.trackers import Trackers, start_trackers
from coordinator.upload import Uploads
from peer.background import cancel
from peer.checkpoints.manifest import Checkpoint
from peer.data.manifest import Manifest
from peer.errors import CommonweightsError
from peer.identity import Identity
from peer.log.chain import Entry
from peer.log.replica import Replica
from peer.log.snapshots import digest_after
from peer.log.state import State

logger = logging.getLogger(__name__)

SETTLE_SECONDS = 10.0  # for which a checkpoint on demand waits for a state that stands still
LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class View:
    """A state, and the records that led to it."""

    state: State
    entries: list[Entry]  # from the genesis to the one that made the state

    @property
    def last(self) -> Entry:
        return self.entries[-1]


class Observer:
    """Use as an async context manager around the run."""

    def __init__(
        self,
        replica: Replica,
        evaluator: Evaluator,
        archive: Archive,
        destinations: Sequence[Destination],
        trackers: Trackers,
    ) -> None:
        self.replica = replica
        self.log = replica.log
        self.evaluator = evaluator
        self.archive = archive
        self.uploads = Uploads(archive, destinations, lambda text: self.on_event(text))
        self.trackers = trackers
        self.on_event: Callable[[str], None] = logger.warning  # one line for people
        self.on_checkpoint: Callable[[str], None] = logger.info  # the same
        self._one_at_a_time = asyncio.Lock()
        self._under_way: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Observer:
        await self.uploads.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        """Give up what is under way; a checkpoint that is being written is completed."""
        await self.uploads.__aexit__(*error)
        if self._under_way is not None:
            await cancel(self._under_way)
        await asyncio.to_thread(self.evaluator.close)
        await asyncio.to_thread(self.trackers.close)

    def after_round(self, round_: int) -> None:
        """Look at the state after `round_`, which the replica has just come to, if that is due and nothing else is
        under way."""
        evaluate = round_ % self.log.spec.evaluation.every_rounds == 0
        export = self.archive.due(round_)
        busy = self._under_way is not None and not self._under_way.done()
        if (evaluate or export) and not busy:
            self._under_way = asyncio.create_task(self._quietly(self._view(), export))

    async def finish(self) -> None:
        """Bring evaluation, checkpoint and its copies up to the present state.

        Raises:
            CommonweightsError, OSError: that failed.
        """
        if self._under_way is not None:
            await asyncio.wait([self._under_way])
        view = await self._view()
        if view is not None:
            await self._look(view, export=True)
        await self.uploads.finish()

    async def checkpoint_now(self) -> Checkpoint:
        """Of the present state, whenever the next one would be due.

        Raises:
            CommonweightsError, OSError: it cannot be made now; the text says why.
        """
        end = time.monotonic() + SETTLE_SECONDS
        while (view := await self._view()) is None:  # a record is being applied
            if time.monotonic() > end:
                raise CommonweightsError("the state changes all the time; try again in a moment")
            await asyncio.sleep(LOOK_SECONDS)
        await self._look(view, export=True)
        newest = self.archive.newest
        if newest is None or newest.round < view.last.round:
            raise CommonweightsError("the log changed meanwhile; try again in a moment")
        return newest

    def _view(self) -> asyncio.Future[View | None]:
        """The present state with its records; None if log and state do not belong together now. What it is of is
        decided at the call, before anything else can happen."""
        round_, entries = self.replica.state.round, list(self.log.entries)
        copying = self.replica.copy()

        async def copied() -> View | None:
            state = await copying
            if not 0 <= state.round == round_ < len(entries):
                return None
            expected = digest_after(self.log, round_, b"") if round_ < self.log.head.round else b""
            if expected and await self.evaluator.aside(state.digest) != expected:
                return None
            state.round -= entries[round_].record.final  # the final record changes nothing: it is the state before it
            return View(state, entries[: state.round + 1])

        return asyncio.ensure_future(copied())

    async def _quietly(self, viewing: asyncio.Future[View | None], export: bool) -> None:
        try:
            view = await viewing
            if view is not None:
                await self._look(view, export)
        except (CommonweightsError, OSError) as error:
            self.on_event(f"no evaluation or checkpoint this time, the run goes on: {error}")
        except Exception:
            logger.exception("evaluation failed; the run goes on")

    async def _look(self, view: View, export: bool) -> None:
        async with self._one_at_a_time:
            evaluation = self._known(view.last) or await self._evaluate(view)
            if export and not self._archived(view.last):
                checkpoint = await self.evaluator.aside(self.archive.make, view.state, view.entries, evaluation)
                await self.evaluator.aside(self.archive.prune, self.uploads.busy_rounds)
                self.uploads.look()
                self.on_checkpoint(f"checkpoint of round {checkpoint.round}: {checkpoint.size_bytes / 1e6:.1f} MB")

    async def _evaluate(self, view: View) -> Evaluation:
        tokens = sum(item.tokens for entry in view.entries for _, item in entry.contributions)
        evaluation = await self.evaluator.evaluate(view.state.theta, view.last.round, tokens, view.last.hash)
        self.trackers.evaluated(evaluation)
        return evaluation

    def _known(self, entry: Entry) -> Evaluation | None:
        return next((item for item in reversed(self.evaluator.all) if item.record_hash == entry.hash.hex()), None)

    def _archived(self, entry: Entry) -> bool:
        return any(checkpoint.manifest.record_hash == entry.hash for checkpoint in self.archive.checkpoints)


def observer_of(folder: Path, replica: Replica, identity: Identity, names: Names, settings: Settings) -> Observer:
    """The observer of the run in `folder`.

    Raises:
        UsageError: a destination or a tracker in the settings is wrong, or not installed here.
    """
    log, manifest = replica.log, Manifest.load(folder / "data")
    destinations = [destination(url, settings.checkpoints) for url in settings.checkpoints.upload]
    return Observer(
        replica,
        Evaluator(folder, log, manifest),
        Archive(folder, log, identity, manifest, settings.checkpoints, names.of),
        destinations,
        start_trackers(settings.trackers, log.spec, log.run_id, folder, logger.warning),
    )
