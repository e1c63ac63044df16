"""Waiting for "something changed", always with a time limit."""

from __future__ import annotations

import asyncio


class Pulse:
    """Wakes everybody who waits at the moment of a beat; a beat that nobody waits for is gone.

    A waiter therefore looks at the state first, waits, and looks again; the time limit covers the beat it may have
    missed.
    """

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def beat(self) -> None:
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, timeout_seconds: float) -> bool:
        """Whether there was a beat within the time."""
        try:
            async with asyncio.timeout(timeout_seconds):  # wait_for of Python 3.11 may swallow a cancellation
                await self._event.wait()
        except TimeoutError:
            return False
        return True
