"""How exactly a peer keeps to its owner's caps: pause, resume, hours, duty cycle, upload and download caps.

    python -m benchmarks.manners [--seconds 20] [--write]

One real coordinator and one real peer on this machine, everything over real sockets; the settings file is edited while
the peer runs; the bandwidth caps between two nodes of their own. Makes the table of docs/volunteer.md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path

from benchmarks.tables import write_between_markers
from peer.exchange.blobs import BlobStore
from peer.exchange.exchange import Exchange
from peer.identity import Identity
from peer.manners import orders
from peer.swarm import HivemindSwarm
from tests.commands import free_port, running, tiny_config, until

HEADER = "| cap | set | measured | off by |\n|---|---|---|---|\n"


class Measured:
    """Rows of the table."""

    def __init__(self) -> None:
        self.rows: list[str] = []

    def add(self, what: str, wanted: float, found: float, unit: str) -> None:
        off = 100 * (found - wanted) / wanted
        self.rows.append(f"| {what} | {wanted:g} {unit} | {found:.3g} {unit} | {off:+.1f} % |")
        print(self.rows[-1], flush=True)

    def took(self, what: str, seconds: float) -> None:
        self.rows.append(f"| {what} | at once | after {seconds:.1f} s | |")
        print(self.rows[-1], flush=True)


class Trained:
    """Figures of a peer, from its Prometheus port."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/metrics"

    def __call__(self, name: str) -> float:
        text = urllib.request.urlopen(self.url, timeout=10).read().decode()
        found = re.search(rf"^commonweights_peer_{name} (\S+)$", text, re.M)
        return float(found[1]) if found else 0.0


def pause_and_resume(folder: Path, figure: Trained, measured: Measured) -> None:
    """From the order to the standstill, and back."""
    started = time.monotonic()
    orders.pause(folder)
    until(lambda: figure("paused") == 1, "paused")
    measured.took("`pause`", time.monotonic() - started)
    before = figure("trained_tokens_total")
    time.sleep(5)
    assert figure("trained_tokens_total") == before, "it trained while paused"
    started = time.monotonic()
    orders.resume(folder)
    until(lambda: figure("trained_tokens_total") > before, "training again")
    measured.took("`resume`, to the next finished step", time.monotonic() - started)


def hours(folder: Path, figure: Trained, measured: Measured) -> None:
    """A window that ends with this minute: the standstill is due at the full minute."""
    now = datetime.now()
    if now.second > 45:  # room to see it train before
        time.sleep(61 - now.second)
    end = datetime.now().replace(second=0, microsecond=0) + timedelta(minutes=1)
    write(folder, f'[schedule]\nhours = ["{end - timedelta(hours=1):%H:%M}-{end:%H:%M}"]\n')
    until(lambda: figure("paused") == 1, "outside its hours")
    measured.took("`schedule.hours`, end of a window", (datetime.now() - end).total_seconds())
    write(folder, "")
    until(lambda: figure("paused") == 0, "training again")


def duty(folder: Path, figure: Trained, measured: Measured, seconds: float) -> None:
    """Share of the time in which the device computes."""
    for percent in (75, 50, 25):
        write(folder, f"[device]\nduty_percent = {percent}\n")
        time.sleep(5)
        begun, computed = time.monotonic(), figure("computing_seconds_total")
        time.sleep(seconds)
        share = 100 * (figure("computing_seconds_total") - computed) / (time.monotonic() - begun)
        measured.add("`device.duty_percent`", percent, share, "%")
    write(folder, "")


def write(folder: Path, text: str) -> None:
    (folder / "settings.toml").write_text(text)


@contextlib.asynccontextmanager
async def exchanging(folder: Path, **caps: float) -> AsyncIterator[Exchange]:
    async with await HivemindSwarm.create(Identity.new(), listen_host="127.0.0.1", map_port=False) as swarm:
        yield Exchange(swarm, BlobStore(folder), **caps)


async def transfer(folder: Path, direction: str, megabits: float, seconds: float) -> float:
    """Mbit/s of a blob over a real connection, with the cap on one side."""
    rate = megabits * 1e6 / 8
    caps = {f"{direction}_bytes_per_second": rate}
    donor_caps, taker_caps = (caps, {}) if direction == "upload" else ({}, caps)
    async with exchanging(folder / "a", **donor_caps) as donor, exchanging(folder / "b", **taker_caps) as taker:
        size = int(rate * seconds)
        blob = donor.store.put(os.urandom(size))
        await taker._swarm.connect(donor._swarm.peer_id, donor._swarm.addresses, timeout_seconds=20)
        started = time.monotonic()
        await taker.fetch(blob, size, [donor._swarm.peer_id], deadline_seconds=10 * seconds)
        return size * 8 / 1e6 / (time.monotonic() - started)


def bandwidth(measured: Measured, seconds: float) -> None:
    for direction in ("upload", "download"):
        for megabits in (5.0, 50.0):
            with tempfile.TemporaryDirectory() as folder:
                found = asyncio.run(transfer(Path(folder), direction, megabits, seconds))
                measured.add(f"`network.{direction}_mbit`", megabits, found, "Mbit/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--write", action="store_true", help="put the table into docs/volunteer.md")
    arguments = parser.parse_args()
    measured = Measured()
    bandwidth(measured, arguments.seconds)
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        config = tiny_config(folder, rounds=0, inner_steps=1000)
        # Steps of some tenths of a second, as on a GPU with a real model; the tests' own take milliseconds.
        config.write_text(config.read_text().replace("_size = 16", "_size = 256").replace("_size = 32", "_size = 768"))
        serve = ("serve", config, "--dir", folder / "run", "--host", "127.0.0.1")
        with running(*serve, program="coordinator.cli"):
            ticket = folder / "run" / "ticket.txt"
            until(ticket.is_file, "the ticket is written")
            peer = folder / "peer"
            peer.mkdir()
            write(peer, "")
            with running("join", ticket, "--dir", peer, "--metrics-port", port):
                figure = Trained(port)
                until(lambda: serves(figure), "it trains")
                pause_and_resume(peer, figure, measured)
                duty(peer, figure, measured, arguments.seconds)
                hours(peer, figure, measured)
    if arguments.write:
        page = Path(__file__).parent.parent / "docs" / "volunteer.md"
        write_between_markers(page, HEADER + "\n".join(measured.rows) + "\n")


def serves(figure: Trained) -> bool:
    with contextlib.suppress(OSError):
        return figure("trained_tokens_total") > 0
    return False


if __name__ == "__main__":
    main()
