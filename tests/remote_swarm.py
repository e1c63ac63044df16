"""A swarm on another host of a small internet, told what to do line by line.

python -m tests.remote_swarm HOST [ADDRESS/p2p/PEER ...]: prints one JSON line about itself, then one for each line of
its standard input: `reach`, `connect PEER ADDRESS ...`, `echo PEER TEXT`; ends with its input. Without addresses of
others it is the first, and public.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from typing import Any

import uvloop

from peer.errors import CommonweightsError
from peer.identity import Identity, PeerId
from peer.swarm import HivemindSwarm
from peer.swarm.multiaddr import split_peer
from tests.netns import Host


class Remote:
    """This program on `host`."""

    def __init__(self, host: Host, *bootstrap: str) -> None:
        command = [sys.executable, "-m", "tests.remote_swarm", host.address, *bootstrap]
        self._process = host.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        about = self._read()
        self.peer_id = PeerId.parse(about["peer"])
        self.listens: list[str] = about["listens"]

    def ask(self, *words: object) -> Any:
        """One command; its answer, or why there is none."""
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the program ended"
        return json.loads(line)


async def echo(sender: PeerId, request: bytes) -> bytes:
    return request


async def obey(swarm: HivemindSwarm, word: str, *arguments: str) -> Any:
    if word == "reach":
        return await swarm.check_reachability()
    peer = PeerId.parse(arguments[0])
    if word == "connect":
        return await swarm.connect(peer, list(arguments[1:]), timeout_seconds=10)
    assert word == "echo"
    return (await swarm.call(peer, "echo", arguments[1].encode(), timeout_seconds=10)).decode()


async def main(host: str, *addresses: str) -> None:
    contacts = [(peer, [address]) for address, peer in map(split_peer, addresses) if peer is not None]
    swarm = await HivemindSwarm.create(
        Identity.new(), listen_host=host, bootstrap=contacts, public=not contacts, map_port=False
    )
    async with swarm:
        swarm.serve("echo", echo, max_request_bytes=100)
        listens = [f"/ip4/{host}/tcp/{swarm._keeper.listening_port}"]
        say({"peer": str(swarm.peer_id), "listens": listens})
        while line := await asyncio.to_thread(sys.stdin.readline):
            try:
                say(await obey(swarm, *line.split()))
            except CommonweightsError as error:
                say(str(error))


def say(answer: Any) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(main(*sys.argv[1:]))
