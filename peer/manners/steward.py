"""Looks after the owner's machine while the peer runs: settings, orders and sensors in, permission and caps out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Protocol

from peer.errors import ConfigError
from peer.manners import orders, settings
from peer.manners.decide import Conduct, Facts, Verdict, follow, judge, rest_seconds
from peer.manners.settings import Overrides, Settings

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0  # between looks at the owner's word
SENSOR_SECONDS = 5.0  # and at the machine


class Permission(Protocol):
    """What the node asks before it trains, rests or moves anything large."""

    @property
    def verdict(self) -> Verdict: ...

    def rest_seconds(self, worked_seconds: float) -> float:
        """How long to rest after so much work on the device."""


class Unrestrained:
    """A machine that has nothing else to do."""

    verdict = Verdict()

    def rest_seconds(self, worked_seconds: float) -> float:
        return 0.0


class Sensors(Protocol):
    def look(self) -> Facts: ...


class Steward:
    """The owner's will, kept up to date by `watch`.

    Raises ConfigError when the settings cannot be read at the start; later on the old ones stay in force.
    """

    def __init__(
        self, folder: Path, overrides: Overrides, machine: Sensors, on_event: Callable[[str], None] = lambda text: None
    ) -> None:
        self.folder = folder
        self.on_event = on_event
        self._path = settings.ensure(folder)
        self._overrides = overrides
        self._machine = machine
        self._stamp = self._file_stamp()
        self.settings: Settings = settings.load(self._path, overrides)
        self._facts = Facts()
        self._sensed = -SENSOR_SECONDS
        self._conduct = Conduct()

    @property
    def verdict(self) -> Verdict:
        return self._conduct.verdict

    def rest_seconds(self, worked_seconds: float) -> float:
        return rest_seconds(self.settings.device.duty_percent, worked_seconds)

    async def watch(self, apply: Callable[[Settings], None], changed: Callable[[], None]) -> None:
        """Until cancelled: `apply` the settings now and whenever they change, tell `changed` of another verdict."""
        apply(self.settings)
        while True:
            if self._reread():
                apply(self.settings)
            before = self.verdict
            await self.look()
            if self.verdict != before:
                changed()
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Judge anew, by the order of the moment and by sensors that were read a few seconds ago at most."""
        if time.monotonic() - self._sensed >= SENSOR_SECONDS:
            self._facts = await asyncio.to_thread(self._machine.look)
            self._sensed = time.monotonic()
        verdict = judge(self.settings, self._facts, orders.read(self.folder), datetime.now())
        self._conduct = follow(self._conduct, verdict, self.settings.pause.calm_seconds, time.monotonic())

    def _reread(self) -> bool:
        """Whether there are other settings than before."""
        stamp = self._file_stamp()
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            found = settings.load(self._path, self._overrides)
        except ConfigError as error:
            self.on_event(f"{error}; the settings of before stay in force")
            return False
        if found == self.settings:
            return False
        self.settings = found
        self.on_event(f"{self._path.name} was changed: it counts from now on")
        return True

    def _file_stamp(self) -> tuple[int, int]:
        with contextlib.suppress(OSError):
            stat = self._path.stat()
            return stat.st_mtime_ns, stat.st_size
        return 0, 0
