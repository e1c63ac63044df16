"""The web server's process: serves on a socket it inherits what the coordinator writes to its standard input.

Apart from the coordinator, so that a thousand watchers cost a round nothing but idle processor time, and so that a
fault here never reaches training. Its input ends with the coordinator, however that dies, and then it ends too.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import socket
import sys
from pathlib import Path

import uvicorn
import uvloop

from coordinator.web.app import Site
from coordinator.web.board import Board

MAX_LINE_BYTES = 64 << 20
NICENESS = 5  # training on the same machine comes first
MAX_CONNECTIONS = 4096  # more are told to come back later


async def main(inherited: int, checkpoints: Path) -> None:
    site = Site(Board(), checkpoints)
    config = uvicorn.Config(
        site.app,
        log_level="warning",
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=1,
        timeout_keep_alive=30,
        limit_concurrency=MAX_CONNECTIONS,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[socket.socket(fileno=inherited)]))
    reading = asyncio.create_task(_read(site))
    await asyncio.wait([serving, reading], return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    await serving
    reading.cancel()


async def _read(site: Site) -> None:
    """One JSON object of sections a line, until the end."""
    reader = asyncio.StreamReader(limit=MAX_LINE_BYTES)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        site.put(json.loads(line))


if __name__ == "__main__":
    os.nice(NICENESS)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # each watcher is an open file; some systems set limits of their own
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    uvloop.run(main(int(sys.argv[1]), Path(sys.argv[2])))
