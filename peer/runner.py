"""Running an async program so that Ctrl-C and SIGTERM end it quietly, cleanly and within ten seconds."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable
from typing import TypeVar

import uvloop

from peer.commands import INTERRUPTED

logger = logging.getLogger(__name__)
T = TypeVar("T")

PATIENCE_SECONDS = 9.0  # from the first signal to giving up on a clean end


class Stop:
    """What a signal does. `on_request` is set once there is something better to do than to cancel everything."""

    def __init__(self) -> None:
        self.requested = False
        self.on_request: Callable[[], None] | None = None


def run(main: Callable[[Stop], Awaitable[T]]) -> T | None:
    """`main` in a new uvloop; None if a signal ended it before it had a result."""

    async def guarded() -> T | None:
        stop = Stop()
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(main(stop))

        def on_signal() -> None:
            if stop.requested or stop.on_request is None:
                task.cancel()
            else:
                stop.on_request()
            if not stop.requested:
                loop.call_later(PATIENCE_SECONDS, _give_up)
            stop.requested = True

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, on_signal)
        try:
            return await task
        except asyncio.CancelledError:
            if stop.requested:
                return None
            raise

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(guarded())


def _give_up() -> None:
    """Something does not end, such as a step on a very slow device. What was saved before is what is kept."""
    logger.warning("not everything ended in %.0f s; stopping now", PATIENCE_SECONDS)
    os._exit(INTERRUPTED)
