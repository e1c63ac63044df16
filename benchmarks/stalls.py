"""How long an event loop is kept from running, and by whom: a thread looks at its stack whenever it is late."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections import defaultdict
from types import FrameType

BEAT_SECONDS = 0.005
LATE_SECONDS = 0.02
OWN_FOLDERS = ("/peer/", "/coordinator/", "/protos/", "/benchmarks/", "/tests/")


class Stalls:
    """Start it in the loop that is watched; read `longest_seconds` and `worst` at any time."""

    def __init__(self) -> None:
        self.longest_seconds = 0.0
        self.total_seconds = 0.0
        self._by_place: defaultdict[str, float] = defaultdict(float)  # the longest stall there
        self._beat = time.monotonic()
        self._loop_thread = threading.get_ident()
        self._ended = threading.Event()
        self._task = asyncio.create_task(self._beating())
        self._thread = threading.Thread(target=self._look, name="stalls", daemon=True)
        self._thread.start()

    async def end(self) -> None:
        self._ended.set()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._thread.join()

    @property
    def worst(self) -> list[tuple[str, float]]:
        """Places in our own code, and the seconds of the longest stall there, the longest first."""
        return sorted(self._by_place.items(), key=lambda item: -item[1])

    async def _beating(self) -> None:
        while True:
            self._beat = time.monotonic()
            await asyncio.sleep(BEAT_SECONDS)
            late = time.monotonic() - self._beat - BEAT_SECONDS
            if late > LATE_SECONDS:
                self.total_seconds += late
                self.longest_seconds = max(self.longest_seconds, late)

    def _look(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            beat = self._beat
            late = time.monotonic() - beat - BEAT_SECONDS
            if late > LATE_SECONDS and (frame := sys._current_frames().get(self._loop_thread)) is not None:
                place = _place(frame)
                self._by_place[place] = max(self._by_place[place], late)


def _place(frame: FrameType | None) -> str:
    """The innermost function of ours in the stack of what the loop is running."""
    while frame is not None and not frame.f_code.co_filename.endswith(("asyncio/runners.py", "asyncio/base_events.py")):
        name = frame.f_code.co_filename
        if any(folder in name for folder in OWN_FOLDERS) and "site-packages" not in name:
            return f"{'/'.join(name.split('/')[-2:])}:{frame.f_lineno} {frame.f_code.co_qualname}"
        frame = frame.f_back
    return "nobody: it waited for the processor"
