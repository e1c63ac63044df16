"""`commonweights join`: a node, the terminal view of it, and the signals that end it. Network trouble ends nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import torch

from peer import health
from peer.errors import UnreachableError
from peer.join import JoinOptions, Report, joined, report
from peer.manners import settings as owner
from peer.manners.orders import only_peer
from peer.manners.settings import Settings
from peer.metrics import exposed
from peer.node import Node
from peer.runner import Stop
from peer.terminal.console import Console
from peer.terminal.pace import Pace
from peer.terminal.quantities import count
from peer.ticket import Ticket
from peer.training.hardware import choose_hardware, choose_threads, device_count, limit_memory
from peer.view import health_facts, join_view, round_figures

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
FIRST_PAUSE_SECONDS = 2.0  # after a failed attempt to join; then twice as long each time, up to
MAX_PAUSE_SECONDS = 60.0


async def participate(ticket: Ticket, options: JoinOptions, stop: Stop, console: Console) -> Report:
    """Take part until the run, the rounds or the person's patience are over."""
    # More threads than a small machine has by default: one may be busy with a slow disk.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(8, thread_name_prefix="worker"))

    def say(text: str) -> None:
        logger.info("%s", text)
        console.event(text)

    async def attempt() -> Report:
        async with joined(ticket, options, say) as node:
            stop.on_request = node.stop
            try:
                async with _shown(node, console):
                    await node.run()
            finally:
                stop.on_request = None
            return report(node)

    with only_peer(options.folder), exposed(settle_in(options).metrics.port, lambda: console.join_view):
        say(f"looking for the swarm at {', '.join(ticket.swarm_addresses) or 'no address'}")
        return await persistently(attempt, say)


def settle_in(options: JoinOptions) -> Settings:
    """Do what of the owner's settings cannot be changed later.

    Raises:
        ConfigError: the settings file.
        UsageError: the device.
    """
    settings = owner.load(owner.ensure(options.folder), options.overrides)
    device = settings.device
    hardware = choose_hardware(options.device)  # a wrong --device is said before anything is started
    torch.set_num_threads(device.threads or choose_threads(options.processes or device_count(hardware)))
    if device.memory_bytes:
        limit_memory(hardware, device.memory_bytes)
    with contextlib.suppress(OSError):
        os.nice(max(0, device.nice - os.nice(0)))  # counted from what the system gave; lower again takes root
    return settings


async def persistently(attempt: Callable[[], Awaitable[Report]], say: Callable[[str], None]) -> Report:
    """`attempt`, again and again while nobody can be reached, more and more rarely. Says why, and what to do."""
    pause = FIRST_PAUSE_SECONDS
    while True:
        started = time.monotonic()
        try:
            return await attempt()
        except UnreachableError as error:
            if time.monotonic() - started > 2 * MAX_PAUSE_SECONDS:  # it went well for a while
                pause = FIRST_PAUSE_SECONDS
            say(f"{error}; trying again in {pause:.0f} s (`commonweights doctor` tells more)")
        await asyncio.sleep(pause)
        pause = min(2 * pause, MAX_PAUSE_SECONDS)


@contextlib.asynccontextmanager
async def _shown(node: Node, console: Console) -> AsyncIterator[None]:
    """The live view, and a line per round in the log file."""
    pace = Pace()
    logged_round, credited = -1, join_view(node, pace).peer.credit_tokens

    def show() -> None:
        nonlocal logged_round, credited
        view = join_view(node, pace)
        if view.peer.credit_tokens > credited:
            console.note(f"your work is in the log: {count(view.peer.credit_tokens - credited)} tokens more of credit")
        credited = view.peer.credit_tokens
        console.show(view)
        if view.round != logged_round:
            logged_round = view.round
            logger.info("round %d", view.round, extra={"figures": round_figures(view)})
        with contextlib.suppress(OSError):  # a full disk is somebody else's to say
            health.write(node.contributor.folder, health_facts(node, time.time()))

    async def watch() -> None:
        while True:
            show()
            await asyncio.sleep(LOOK_SECONDS)

    watching = asyncio.create_task(watch())
    try:
        yield
        show()
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
