"""A process of its own around a swarm, for tests that kill processes or change the clock.

python -m tests.swarm_program LOOP SKEW_SECONDS: prints its addresses, p2pd's pid and its private folder as one JSON
line, serves "echo" and "blob" zeros, and ends when its standard input ends.
"""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import sys
import time
from collections.abc import AsyncIterator

import torch.multiprocessing
import uvloop

from peer.identity import Identity, PeerId
from peer.swarm import HivemindSwarm


async def echo(sender: PeerId, request: bytes) -> bytes:
    return request


async def zeros(sender: PeerId, request: bytes) -> AsyncIterator[bytes]:
    for _ in range(int(request)):
        yield bytes(256 * 1024)


async def main() -> None:
    async with await HivemindSwarm.create(Identity.new(), listen_host="127.0.0.1") as swarm:
        swarm.serve("echo", echo, max_request_bytes=100)
        swarm.serve_stream("zeros", zeros, max_request_bytes=100)
        assert swarm._keeper.current is not None
        about = {
            "peer": str(swarm.peer_id),
            "addresses": swarm.addresses,
            "p2pd": swarm._keeper.current.daemon.process.pid,
            "folder": str(swarm._keeper.folder.path),
            "start_method": multiprocessing.get_start_method(allow_none=True),
            "sharing": torch.multiprocessing.get_sharing_strategy(),
            "level_name": logging.getLevelName(logging.WARNING),
            "log_handlers": len(logging.getLogger("hivemind").handlers),
        }
        sys.stdout.write(json.dumps(about) + "\n")
        sys.stdout.flush()
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        began = time.monotonic()
    sys.stdout.write(json.dumps({"stop_seconds": time.monotonic() - began}) + "\n")


if __name__ == "__main__":
    skew_seconds = float(sys.argv[2])
    if skew_seconds:
        import hivemind.dht.protocol

        hivemind.dht.protocol.get_dht_time = lambda: time.time() + skew_seconds
    if sys.argv[1] == "uvloop":
        uvloop.run(main())
    else:
        asyncio.run(main())
