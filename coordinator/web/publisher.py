"""From the coordinator to the page: starts the web server's process and tells it about once a second how it goes.

What is sent is only what changed. A web server that died is started again; one that does not read is not waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from coordinator.web import sections
from peer.errors import UsageError

if TYPE_CHECKING:
    from coordinator.run import Coordinator

logger = logging.getLogger(__name__)

EVERY_SECONDS = 1.0
PEERS_PER_SECOND = 50  # of large swarms, the per-peer sections are sent less often
BACKLOG_BYTES = 8 << 20  # unread by the web server: wait with more
RESTART_SECONDS = 2.0
END_SECONDS = 3.0
UNACKNOWLEDGED_MILLISECONDS = 40_000  # after which the system gives a connection up, and its memory back


class Publisher:
    """`address` is where people find the page."""

    def __init__(self, coordinator: Coordinator, listening: socket.socket, host: str) -> None:
        self.coordinator = coordinator
        self.listening = listening
        self.address = f"http://{host}:{listening.getsockname()[1]}"
        self._process: asyncio.subprocess.Process | None = None
        self._sent: dict[str, str] = {}
        self._key: tuple[object, ...] = ()
        self._peers_due = 0.0

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                if self._process is None or self._process.returncode is not None:
                    await self._start()
                self._tell()
                await asyncio.sleep(EVERY_SECONDS)
        finally:
            await self._end()

    async def _start(self) -> None:
        if self._process is not None:
            logger.warning("the web server has ended (%s); starting it again", self._process.returncode)
            await asyncio.sleep(RESTART_SECONDS)
        descriptor = self.listening.fileno()
        self._sent, self._key = {}, ()
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "coordinator.web", str(descriptor), str(self.coordinator.folder / "checkpoints"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            pass_fds=[descriptor],
            start_new_session=True,  # Ctrl-C is for this process; the other ends when its input does
        )  # fmt: skip

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(END_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    def _tell(self) -> None:
        pipe = self._process.stdin if self._process is not None else None
        if pipe is None or pipe.is_closing() or pipe.transport.get_write_buffer_size() > BACKLOG_BYTES:
            return
        fresh = {}
        for name, value in self._values().items():
            text = encoded(value)
            if self._sent.get(name) != text:
                self._sent[name] = text
                fresh[name] = text
        with contextlib.suppress(ConnectionError):  # it ended just now; the next round of the loop starts it again
            pipe.write(("{" + ",".join(f'"{name}":{text}' for name, text in fresh.items()) + "}\n").encode())

    def _values(self) -> dict[str, Any]:
        coordinator, clock = self.coordinator, time.time()
        coordinator.timeline.sample(clock, coordinator.leader.tokens_per_second, len(coordinator.leader.guests))
        found = {"now": sections.now(coordinator, clock)}
        key = coordinator.log.head.round, len(coordinator.evaluator.history), coordinator.checkpoint
        if key != self._key:
            self._key = key
            found |= {name: section(coordinator) for name, section in sections.EACH_ROUND.items()}
        if clock >= self._peers_due:
            self._peers_due = clock + len(coordinator.leader.guests) / PEERS_PER_SECOND - EVERY_SECONDS / 2
            found |= {name: section(coordinator) for name, section in sections.EACH_SECOND.items()}
        return found


def encoded(value: Any) -> str:
    """JSON without NaN and infinity, which browsers refuse: a loss that diverged is not known."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except ValueError:
        return encoded(_without_nonsense(value))


def _without_nonsense(value: Any) -> Any:
    match value:
        case dict():
            return {key: _without_nonsense(item) for key, item in value.items()}
        case list() | tuple():
            return [_without_nonsense(item) for item in value]
        case float():
            return sections.finite(value)
    return value


@asynccontextmanager
async def published(coordinator: Coordinator, host: str, ports: Sequence[int], public_host: str) -> AsyncIterator[str]:
    """The page of `coordinator` while the block runs, at the first of `ports` that is free (0: any).

    Yields its address, empty if there are no ports.

    Raises:
        UsageError: none is free.
    """
    if not ports:
        yield ""
        return
    with contextlib.closing(_listen(host, ports)) as listening:
        publisher = Publisher(coordinator, listening, public_host)
        task = asyncio.create_task(_forever(publisher))
        try:
            yield publisher.address
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _forever(publisher: Publisher) -> None:
    """The page may fail; the run goes on."""
    while True:
        try:
            await publisher.run()
        except Exception:
            logger.exception("the page is not kept up; trying again")
            await asyncio.sleep(RESTART_SECONDS)


def _listen(host: str, ports: Sequence[int]) -> socket.socket:
    for port in ports:
        try:
            listening = socket.create_server((host, port), backlog=512)
        except (OSError, OverflowError) as error:
            reason = error
            continue
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # connections inherit it
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MILLISECONDS)
        return listening
    raise UsageError(f"--web-port {ports[-1]}: cannot listen there on {host} ({reason}); choose another port")
