"""`serve`: a coordinator on its own, until the run is finished or a signal asks it to stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from google.protobuf.json_format import MessageToDict

from configs import RunSpec
from coordinator.run import Coordinator
from coordinator.serve import ServeOptions, coordinating
from peer.runner import Stop

LOOK_SECONDS = 0.5
LINGER_SECONDS = 15.0  # after the end, for peers to learn of it


async def lead(
    spec: RunSpec,
    options: ServeOptions,
    stop: Stop,
    show: Callable[[Coordinator], None],
    on_event: Callable[[str], None],
) -> dict[str, Any]:
    """Lead the run in `options.folder`; the status at the end, as JSON would have it."""
    on_event("preparing data and model")
    async with coordinating(spec, options, on_event) as coordinator:
        stopping = asyncio.Event()
        stop.on_request = stopping.set
        if coordinator.page_address:
            on_event(f"the page: {coordinator.page_address}")
        on_event(f"ticket: {coordinator.ticket}")
        on_event(f"join from anywhere that reaches this machine: commonweights join {options.folder}/ticket.txt")
        ended: asyncio.Task[Any] = asyncio.create_task(stopping.wait())
        leading = asyncio.create_task(coordinator.run())
        watching = asyncio.create_task(_watch(coordinator, show))
        try:
            await asyncio.wait([ended, leading, watching], return_when=asyncio.FIRST_COMPLETED)
            for task in (watching, leading):
                if task.done():
                    task.result()  # an error ends the command
            if not stopping.is_set():
                on_event("the run is finished; peers are told")
                await _until_alone(coordinator, stopping)
        finally:
            for task in (ended, leading, watching):
                task.cancel()
            await asyncio.gather(ended, leading, watching, return_exceptions=True)
        show(coordinator)
        return MessageToDict(
            coordinator.status(), preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )


async def _watch(coordinator: Coordinator, show: Callable[[Coordinator], None]) -> None:
    while True:
        show(coordinator)
        await asyncio.sleep(LOOK_SECONDS)


async def _until_alone(coordinator: Coordinator, stopping: asyncio.Event) -> None:
    """Stay until the peers have fetched the last record and left."""
    give_up = asyncio.get_running_loop().time() + LINGER_SECONDS
    while coordinator.leader.guests and not stopping.is_set() and asyncio.get_running_loop().time() < give_up:
        await asyncio.sleep(LOOK_SECONDS)
