"""Copies of checkpoints at their destinations, kept up beside the run.

What is to be done is never remembered, only compared: what the archive holds, what the destination holds, and the rule
of what to keep. So a kill at any moment, a destination that is away for a day, or a log that took another way all end
the same: the next look finds the difference. Each destination has a task, and a thread that ends with the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from coordinator.archive import Archive, superfluous
from coordinator.destinations import Destination, OtherRun, Stopped, Stored, without_secrets
from peer.background import cancel
from peer.checkpoints.manifest import Checkpoint
from peer.log.chain import Log

logger = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 2.0
LONGEST_PAUSE_SECONDS = 600.0
PROGRESS_SECONDS = 10.0  # between two lines about one upload
LAST_FAILURES = 5  # in a row, after the end of the run: then it is left to the next start
LOOK_SECONDS = 0.1

T = TypeVar("T")


@dataclass(frozen=True)
class Difference:
    missing: list[Checkpoint]  # oldest first: on the Hub the last commit is what people get
    superfluous: list[Stored]


def difference(archive: Archive, stored: Sequence[Stored], log: Log) -> Difference:
    """What a destination lacks of the archive, and what it should not hold any longer."""
    here = {checkpoint.round: checkpoint for checkpoint in archive.checkpoints}
    there = {item.round: item for item in stored if not _abandoned(item, log)}
    gone = set(superfluous(sorted({*here, *there}), archive.settings))
    missing = [it for round_, it in sorted(here.items()) if round_ not in gone and round_ not in there]
    doomed = [item for item in stored if item.round in gone or item.round not in {*there, *here}]
    return Difference(missing, doomed)


def _abandoned(item: Stored, log: Log) -> bool:
    """Whether the log has another record for that round; a log that is behind says nothing."""
    entries = log.entries
    return item.round < len(entries) and not entries[item.round].hash.hex().startswith(item.record_hash)


class Uploads:
    """All destinations of one archive. Use as an async context manager around the run."""

    def __init__(
        self, archive: Archive, destinations: Sequence[Destination], on_event: Callable[[str], None] = logger.info
    ) -> None:
        self.archive = archive
        self.on_event = on_event
        self.lines = [_Line(destination, self) for destination in destinations]
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Uploads:
        self._tasks = [asyncio.create_task(line.run()) for line in self.lines]
        return self

    async def __aexit__(self, *error: object) -> None:
        """What is under way is given up; the next start begins it again."""
        for line in self.lines:
            line.stopping.set()
        await cancel(*self._tasks)

    @property
    def busy_rounds(self) -> set[int]:
        """Checkpoints that are being read."""
        return {line.round for line in self.lines if line.round >= 0}

    def look(self) -> None:
        """The archive has changed."""
        for line in self.lines:
            line.settled = line.given_up
            line.changed.set()

    async def finish(self) -> None:
        """Until everything is where it belongs, or a destination has failed `LAST_FAILURES` times in a row."""
        self.look()
        while not all(line.settled or line.failures >= LAST_FAILURES for line in self.lines):
            await asyncio.sleep(LOOK_SECONDS)
        for line in self.lines:
            if not line.settled:
                self.on_event(f"{line.destination.name}: not all checkpoints are there; the next start goes on")


class _Line:
    """One destination: its state, and the loop that serves it."""

    def __init__(self, destination: Destination, uploads: Uploads) -> None:
        self.destination = destination
        self.uploads = uploads
        self.changed = asyncio.Event()
        self.stopping = threading.Event()
        self.settled = False  # nothing was left to do at the last look
        self.given_up = False
        self.failures = 0  # in a row
        self.round = -1  # of the checkpoint that is being copied
        self._said = 0.0

    async def run(self) -> None:
        while not self.given_up:
            self.changed.clear()
            try:
                await self._settle()
                self.failures = 0
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LONGEST_PAUSE_SECONDS):
                        await self.changed.wait()
            except OtherRun as error:  # only a person can mend that
                self.uploads.on_event(str(error))
                self.settled = self.given_up = True
            except Exception as error:  # every library behind a destination has errors of its own
                self._failed(error)
                await asyncio.sleep(min(FIRST_PAUSE_SECONDS * 2.0 ** (self.failures - 1), LONGEST_PAUSE_SECONDS))

    async def _settle(self) -> None:
        """Copy and remove until there is no difference."""
        archive, destination = self.uploads.archive, self.destination
        self.settled = False
        while not self.settled:
            self.changed.clear()
            stored = await _in_thread(destination.stored, archive.log.run_id)
            work = difference(archive, stored, archive.log)
            if work.missing:
                await self._put(work.missing[0])
            for item in work.superfluous:
                await _in_thread(destination.drop, item)
            self.settled = not (work.missing or work.superfluous or self.changed.is_set())

    async def _put(self, checkpoint: Checkpoint) -> None:
        started = self._said = time.monotonic()
        loop, sent = asyncio.get_running_loop(), 0

        def on_bytes(count: int) -> None:  # in the thread
            nonlocal sent
            if self.stopping.is_set():
                raise Stopped(f"{self.destination.name}: stopped")
            sent += count
            if time.monotonic() - self._said > PROGRESS_SECONDS:
                self._said = time.monotonic()
                loop.call_soon_threadsafe(self._say, checkpoint, f"{sent / checkpoint.size_bytes:.0%} copied")

        self.round = checkpoint.round
        try:
            folder = self.uploads.archive.folder_of(checkpoint.round)
            await _in_thread(self.destination.put, folder, checkpoint, on_bytes)
        finally:
            self.round = -1
        seconds = time.monotonic() - started
        self._say(checkpoint, f"copied ({checkpoint.size_bytes / 1e6:.1f} MB in {seconds:.0f} s)")

    def _say(self, checkpoint: Checkpoint, what: str) -> None:
        self.uploads.on_event(f"checkpoint of round {checkpoint.round} to {self.destination.name}: {what}")

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        reason = without_secrets((str(error).strip().splitlines() or [type(error).__name__])[0])
        trace = without_secrets("".join(traceback.format_exception(error)))
        logger.info("%s: %s\n%s", self.destination.name, reason, trace)
        if self.failures in (1, LAST_FAILURES):  # said once, and again when it lasts
            self.uploads.on_event(f"{self.destination.name}: cannot be written, trying again: {reason}")


async def _in_thread(work: Callable[..., T], *arguments: Any) -> T:
    """In a thread that does not keep the process alive: some libraries cannot be told to stop."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(outcome: Callable[[], None]) -> None:
        if not done.done():
            outcome()

    def run() -> None:
        try:
            outcome = partial(done.set_result, work(*arguments))
        except BaseException as error:
            outcome = partial(done.set_exception, error)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, outcome)

    threading.Thread(target=run, name="upload", daemon=True).start()
    return await done
