"""Small calls beside bulk traffic on slow links, real daemons in network namespaces. Needs root, iproute2, nftables.

    python -m benchmarks.links [--mbit 10] [--queue-ms 1000] [--megabytes 20] [--peers 3]

A server without a limit and peers on slow links with deep router queues. Every peer's blob goes to the server while the
peer calls the server four times a second, as a heartbeat would: paced as shipped, and without pacing. Then the other
way: every peer fetches the same blob from the server and from each other.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

CALLS_PER_SECOND = 4


class Machine:
    """This file's other half, on a host: commands in, JSON answers out."""

    def __init__(self, host: Any, *arguments: str) -> None:
        command = [sys.executable, "-m", "benchmarks.links", "--inside", host.address, *arguments]
        self._process = host.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.contact = self._read()

    def ask(self, *words: object) -> Any:
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        line = self._process.stdout.readline()
        assert line, "the program on a host ended"
        return json.loads(line)


async def inside(address: str, pacing: str, *bootstrap: str) -> None:
    """One peer: an exchange over a real swarm."""
    from peer.exchange import pace
    from peer.exchange.blobs import BlobStore
    from peer.exchange.exchange import Exchange
    from peer.identity import Identity, PeerId
    from peer.swarm import HivemindSwarm
    from peer.swarm.multiaddr import split_peer

    if pacing == "no":
        pace.START_BYTES_PER_SECOND = 1e12
        pace.adjusted = lambda pace, *_: pace
    contacts = [(peer, [bare]) for bare, peer in map(split_peer, bootstrap) if peer is not None]
    swarm = await HivemindSwarm.create(
        Identity.new(), listen_host=address, bootstrap=contacts, public=not contacts, map_port=False
    )
    with tempfile.TemporaryDirectory() as folder:
        async with swarm:
            exchange = Exchange(swarm, BlobStore(folder))
            say(f"/ip4/{address}/tcp/{swarm._keeper.listening_port}/p2p/{swarm.peer_id}")
            calls: asyncio.Task[list[float]] | None = None
            while words := (await asyncio.to_thread(sys.stdin.readline)).split():
                match words:
                    case ["put", size]:
                        say(exchange.store.put(os.urandom(int(size))).hex())
                    case ["fetch", blob, size, *sources]:
                        began = time.monotonic()
                        peers = exchange.donors.order(bytes.fromhex(blob), [PeerId.parse(source) for source in sources])
                        await exchange.fetch(bytes.fromhex(blob), int(size), peers, deadline_seconds=600)
                        say(time.monotonic() - began)
                    case ["call", peer]:
                        calls = asyncio.create_task(call_on(swarm, PeerId.parse(peer)))
                        say(None)
                    case ["stop"]:
                        assert calls is not None
                        calls.cancel()
                        say(await calls)
                    case ["sent"]:
                        say(exchange.bytes_sent)
            await exchange.close()


async def call_on(swarm: Any, peer: Any) -> list[float]:
    """Seconds of each call, until cancelled; a call that fails counts as ten."""
    from peer.errors import CommonweightsError

    seconds: list[float] = []
    try:
        while True:
            began = time.monotonic()
            try:
                await swarm.call(peer, "echo", b"", timeout_seconds=10)
                seconds.append(time.monotonic() - began)
            except CommonweightsError:
                seconds.append(10.0)
            await asyncio.sleep(max(0.0, 1 / CALLS_PER_SECOND - (time.monotonic() - began)))
    except asyncio.CancelledError:
        return seconds


def say(answer: Any) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def measure(arguments: argparse.Namespace, pacing: str) -> list[list[str]]:
    from tests.netns import Internet

    size = int(arguments.megabytes * 1e6)
    with Internet() as net, ThreadPoolExecutor(2 * arguments.peers) as threads:
        server = Machine(net.host("server"), pacing)
        peers = []
        for number in range(arguments.peers):
            host = net.host(f"peer{number}")
            host.limit(arguments.mbit, arguments.mbit, arguments.queue_ms)
            peers.append(Machine(host, pacing, server.contact))
        ids = [peer.contact.rpartition("/")[2] for peer in peers]
        server_id = server.contact.rpartition("/")[2]
        rows = []
        blobs = [peer.ask("put", size) for peer in peers]
        for peer in peers:
            peer.ask("call", server_id)
        time.sleep(5)
        idle = [peer.ask("stop") for peer in peers]
        up, up_seconds = [], 0.0
        for blob, source, peer in zip(blobs, ids, peers, strict=True):
            peer.ask("call", server_id)
            up_seconds += server.ask("fetch", blob, size, source) / len(peers)
            up.append(peer.ask("stop"))
        rows.append(row("idle", pacing, "", idle))
        rows.append(row("upload", pacing, f"{size * 8e-6 / up_seconds:.1f}", up))
        shared = server.ask("put", size)
        for peer in peers:
            peer.ask("call", server_id)
        list(
            threads.map(
                lambda pair: pair[0].ask(
                    "fetch", shared, size, server_id, *(other for other in ids if other != pair[1])
                ),
                zip(peers, ids, strict=True),
            )
        )
        down = [peer.ask("stop") for peer in peers]
        served = server.ask("sent") / size
        rows.append(row(f"one blob to all ({served:.1f} copies from the server)", pacing, "", down))
    return rows


def row(what: str, pacing: str, mbit: str, calls: list[list[float]]) -> list[str]:
    seconds = sorted(second for each in calls for second in each)
    worst = seconds[-1]
    p95 = seconds[int(0.95 * (len(seconds) - 1))]
    return [what, pacing, mbit, f"{statistics.median(seconds):.3f}", f"{p95:.3f}", f"{worst:.3f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mbit", type=float, default=10.0)
    parser.add_argument("--queue-ms", type=int, default=1000)
    parser.add_argument("--megabytes", type=float, default=20.0)
    parser.add_argument("--peers", type=int, default=3)
    arguments = parser.parse_args()
    rows = [row for pacing in ("yes", "no") for row in measure(arguments, pacing)]
    heading = ["traffic", "paced", "Mbit/s", "call s, median", "95 %", "worst"]
    for cells in (heading, ["---"] * len(heading), *rows):
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        import uvloop

        uvloop.run(inside(*sys.argv[2:]))
    else:
        main()
