"""The pictures of docs/page.md: a swarm of strangers, and Chromium looking at it, in light and dark, on desk and phone.

    python -m benchmarks.page_pictures --dir /tmp/pictures --write docs

Everything is real: five peers in processes of their own with the names below; one leaves after a while, one freezes and
comes back, and one that hands in garbage is refused. What the page was told in the end is kept in the folder, and the
same command again only takes the pictures.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from configs import load
from coordinator.run import Coordinator
from coordinator.serve import ServeOptions, coordinating
from coordinator.settings import CheckpointSettings, Settings
from peer.errors import CommonweightsError
from peer.identity import Identity
from peer.swarm import HivemindSwarm
from tests.browser import Tab, browser
from tests.small_run import Stranger
from tests.web_server import WebServer, web_server

ROOT = Path(__file__).parent.parent
PEERS = (
    ("ada", "Lund"),
    ("noether", "Göttingen"),
    ("thinkpad-x230", "Lund"),
    ("Émilie", "Paris 6"),
    ("attic-server", ""),
)
LAST_ROUND = 22
SNAPSHOT = "snapshot.json"
Look = dict[str, Any]
LOOKS: dict[str, Look] = {
    "page-light": {"width": 1440, "height": 900},
    "page-dark": {"width": 1440, "height": 900, "dark": True},
    "page-phone-light": {"width": 390, "height": 844, "phone": True, "scale": 1.5},
    "page-phone-dark": {"width": 390, "height": 844, "phone": True, "scale": 1.5, "dark": True},
}


async def swarm(folder: Path, port: int) -> None:
    spec = load(ROOT / "configs/demo.toml")
    run = spec.run.model_copy(update={"name": "Little Pythonista", "rounds": 40})
    timing = spec.timing.model_copy(update={"silence_seconds": 6.0, "first_deadline_seconds": 8.0})
    round_ = spec.round.model_copy(update={"target_tokens": spec.round.target_tokens // 2})
    spec = spec.model_copy(update={"run": run, "timing": timing, "round": round_})
    settings = Settings(checkpoints=CheckpointSettings(every_rounds=7))
    options = ServeOptions(folder / "run", host="127.0.0.1", web_ports=(port,), paused=True, settings=settings)
    async with coordinating(spec, options, print) as coordinator, contextlib.AsyncExitStack() as stack:
        processes = [await join(folder, coordinator, stack, *who) for who in PEERS]
        lead = asyncio.create_task(coordinator.run())
        await until(lambda: len(coordinator.leader.guests) == len(PEERS), 180)
        coordinator.leader.pause(False)
        try:
            await story(folder, coordinator, processes)
        finally:
            lead.cancel()
            await asyncio.gather(lead, return_exceptions=True)


async def story(folder: Path, coordinator: Coordinator, processes: list[asyncio.subprocess.Process]) -> None:
    leaving, freezing = processes[-1], processes[2]
    await after(coordinator, 6)
    leaving.send_signal(signal.SIGINT)
    await after(coordinator, 9)
    await be_refused(folder, coordinator)
    await after(coordinator, 12)
    freezing.send_signal(signal.SIGSTOP)
    await asyncio.sleep(9)
    freezing.send_signal(signal.SIGCONT)
    await after(coordinator, LAST_ROUND)
    await until(lambda: coordinator.leader.state.round_tokens > 20_000, 60)
    snapshot = await asyncio.to_thread(urllib.request.urlopen, f"{coordinator.page_address}/api/snapshot", None, 10)
    (folder / SNAPSHOT).write_bytes(snapshot.read())


async def join(
    folder: Path, coordinator: Coordinator, stack: contextlib.AsyncExitStack, name: str, team: str
) -> asyncio.subprocess.Process:
    team_options = ["--team", team] if team else []
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "peer.cli", "join", str(coordinator.ticket), "--dir", str(folder / name), "--name", name,
        *team_options,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )  # fmt: skip

    async def end() -> None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()

    stack.push_async_callback(end)
    return process


async def be_refused(folder: Path, coordinator: Coordinator) -> None:
    """A stranger hands in bytes that are no contribution."""
    assert coordinator.ticket is not None
    identity = Identity.new()
    bootstrap = [(coordinator.ticket.coordinator, coordinator.ticket.swarm_addresses)]
    async with await HivemindSwarm.create(identity, bootstrap=bootstrap, map_port=False) as swarm:
        stranger = Stranger(swarm, identity, folder / "stranger", coordinator.leader)
        for _ in range(3):
            await stranger.heartbeat(name="quick-money", team="", addresses=swarm.addresses, can_serve=True)
        with contextlib.suppress(CommonweightsError):
            await stranger.settled(stranger.offer(os.urandom(4096)))


async def after(coordinator: Coordinator, round_: int) -> None:
    await until(lambda: coordinator.log.head.round >= round_, 300)


async def until(condition: Callable[[], bool], seconds: float) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.1)


def take(snapshot: dict[str, Any], pictures: Path, folder: Path) -> None:
    with web_server(folder) as server, browser(folder / "profile") as tab:
        server.show(**snapshot)
        for name, look in LOOKS.items():
            photograph(tab, server, snapshot["now"], pictures / f"{name}.png", look)
        assert not tab.complaints, tab.complaints


def photograph(tab: Tab, server: WebServer, now: dict[str, Any], file: Path, look: Look) -> None:
    """The whole page: the window is made as high as it is, so that nothing sticks in the middle."""
    tab.look(**look)
    tab.open(server.address)
    tab.until("document.querySelectorAll('#board-table tbody tr, #loss-chart canvas').length > 1")
    tab.evaluate("document.documentElement.style.scrollbarGutter = 'auto'")  # there are no bars in a picture
    tab.look(**{**look, "height": tab.evaluate("document.documentElement.scrollHeight")})
    server.tell(now={**now, "round_tokens": now["round_tokens"] + 1})  # as every second
    tab.evaluate("new Promise((done) => setTimeout(done, 1500))")
    tab.screenshot(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True, help="for the run")
    parser.add_argument("--write", type=Path, required=True, help="where the pictures go")
    parser.add_argument("--port", type=int, default=17272)
    given = parser.parse_args()
    given.write.mkdir(parents=True, exist_ok=True)
    given.dir.mkdir(parents=True, exist_ok=True)
    if not (given.dir / SNAPSHOT).exists():
        asyncio.run(swarm(given.dir, given.port))
    with tempfile.TemporaryDirectory() as folder:
        take(json.loads((given.dir / SNAPSHOT).read_text()), given.write, Path(folder))


if __name__ == "__main__":
    main()
