"""Faults among real processes: a coordinator and peers, each in a network namespace of its own, killed for real.

Needs root, iproute2 and nftables (`netns.missing()` says what lacks); a wrong clock needs libfaketime. Whatever is made
here is gone at the end, also if the test process itself is killed: see nursery.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from configs import RunSpec
from tests.faults.program import write
from tests.faults.schedule import COORDINATOR, Phase, What
from tests.faults.world import Left
from tests.netns import Host, Internet

START_SECONDS = 90.0  # of the nursery, on a busy machine
LEAVE_SECONDS = 15.0
DISK_BYTES = 24 << 20
LIGHT = (
    "--duty-percent",
    "15",
)  # of `join`: peers that leave each other room on two cores, so that who is late has a reason
FAKETIME = [Path(f"/usr/lib/{machine}-linux-gnu/faketime/libfaketimeMT.so.1") for machine in ("x86_64", "aarch64")]
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


class Nursery:
    """The process that nodes are forked from."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, **ENVIRONMENT},
        )
        self.codes: dict[int, int] = {}  # of ended processes, by process id
        self._started: list[int] = []
        self._news = threading.Condition()
        self._ready = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Nursery:
        self._wait(lambda: self._ready)
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(LEAVE_SECONDS)
        finally:
            self._process.kill()
            self._process.wait()
            self._reader.join()

    def start(
        self, arguments: Iterable[object], *, namespace: str, control: Path, out: Path, **environment: str
    ) -> int:
        """Process id of a new node; its output is appended to `out`.out and `out`.err."""
        order = {
            "start": [*map(str, arguments)],
            "namespace": namespace,
            "environment": environment,
            "out": f"{out}.out",
            "err": f"{out}.err",
            "control": str(control),
        }
        self._say(order)
        self._wait(lambda: bool(self._started))
        return self._started.pop()

    def at_end(self, *command: object) -> None:
        """To be run when the nursery ends, however the test process does."""
        self._say({"at_end": [*map(str, command)]})

    def _say(self, order: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def _wait(self, condition: Callable[[], bool]) -> None:
        with self._news:
            assert self._news.wait_for(condition, START_SECONDS), "the nursery does not answer"

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            news = json.loads(line)
            with self._news:
                self._ready = True
                if "started" in news:
                    self._started.append(news["started"])
                if "ended" in news:
                    self.codes[news["ended"]] = news["code"]
                self._news.notify_all()


class ProcessWorld:
    """See `tests.faults.world.World`. `small_disks`: nodes with a small file system of their own, for "fill"."""

    def __init__(
        self,
        nursery: Nursery,
        net: Internet,
        folder: Path,
        spec: RunSpec,
        small_disks: Iterable[str] = (),
        join_options: Iterable[str] = (),
    ) -> None:
        self.folder = folder
        self._join_options = [*join_options]
        self._nursery = nursery
        self._net = net
        self._hosts: dict[str, Host] = {}
        self._pids: dict[str, int] = {}  # of those that were started and neither killed nor stopped
        self._parted: set[str] = set()
        self._control = folder / "control"
        self._control.mkdir(parents=True)
        (folder / "run.toml").write_text(to_toml(spec.model_dump(exclude_none=True)))
        for name in small_disks:
            self._mount(folder / name)

    @property
    def cannot(self) -> Mapping[What, str]:
        return {} if _faketime() else {"skew": "libfaketime is not installed"}

    async def start(self, name: str, *, skew_seconds: float = 0.0) -> None:
        if name not in self._hosts:
            self._hosts[name] = self._net.host(name)
            self._nursery.at_end("ip", "netns", "delete", self._hosts[name].namespace)
        host, folder = self._hosts[name], self.folder / name
        if name == COORDINATOR:
            arguments = ["coordinator.cli", "serve", self.folder / "run.toml", "--dir", folder, "--json"]
            arguments += ["--host", host.address, "--grpc-port", 7070, "--swarm-port", 7072]
        else:
            arguments = ["peer.cli", "join", self.folder / COORDINATOR / "ticket.txt", "--dir", folder, "--name", name]
            arguments += ["--device", "cpu", "--always", "--json", *self._join_options]
        clock = {"LD_PRELOAD": _faketime(), "FAKETIME": f"{skew_seconds:+g}s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        control = self._control / f"{name}.json"
        self._pids[name] = self._nursery.start(
            arguments,
            namespace=host.namespace,
            control=control,
            out=self._control / name,
            **(clock if skew_seconds else {}),
        )
        if name == COORDINATOR:
            while not (folder / "ticket.txt").exists():
                assert not self.ended(), self.ended()
                await asyncio.sleep(0.05)

    def begin(self) -> None:
        """They began by themselves."""

    async def stop(self) -> dict[str, Left]:
        peers = {
            name: pid for name, pid in self._pids.items() if name != COORDINATOR and pid not in self._nursery.codes
        }
        await self._interrupt(peers)
        await self._interrupt({name: pid for name, pid in self._pids.items() if name == COORDINATOR})
        return {name: left for name in peers if (left := self._last_words(name)) is not None}

    def kill(self, name: str) -> None:
        if (pid := self._pids.pop(name, None)) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def pause(self, name: str, paused: bool) -> None:
        os.killpg(self._pids[name], signal.SIGSTOP if paused else signal.SIGCONT)

    def slow(self, name: str, mbit: float | None) -> None:
        self._hosts[name].limit(mbit, mbit)

    def cut(self, *names: str) -> None:
        self._net.part(*(self._hosts[name] for name in names))

    def lie(self, name: str, lies: bool) -> None:
        self._write(name, lies=lies)

    def fill(self, name: str, full: bool) -> None:
        ballast = self.folder / name / "ballast"
        if not full:
            ballast.unlink()
            return
        with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    def order(self, name: str, phase: Phase, round: int, what: What) -> None:
        self._write(name, orders=[*self._wishes(name).get("orders", []), [phase, round, what]])

    def reached(self, name: str) -> int:
        path = self._control / f"{name}.json.reached"
        reached = len(path.read_text().splitlines()) if path.exists() else 0
        if self._pids.get(name) in self._nursery.codes and self._nursery.codes[self._pids[name]] == -signal.SIGKILL:
            del self._pids[name]  # by its own hand, as ordered
        return reached

    def alive(self) -> set[str]:
        return {name for name, pid in self._pids.items() if pid not in self._nursery.codes}

    def ended(self) -> dict[str, str]:
        codes = self._nursery.codes
        return {
            name: f"exit code {codes[pid]}: {self._complaint(name)}"
            for name, pid in self._pids.items()
            if pid in codes and codes[pid] != -signal.SIGKILL
        }

    def leaked(self) -> list[str]:
        """Processes that still run on one of the hosts."""
        left = ((name, pid) for name, host in self._hosts.items() for pid in host.processes())
        return [f"{name}: {Path(f'/proc/{pid}/cmdline').read_text()[:200]}" for name, pid in left]

    async def _interrupt(self, processes: dict[str, int]) -> None:
        for pid in processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)
        async with asyncio.timeout(LEAVE_SECONDS):
            while not self._nursery.codes.keys() >= set(processes.values()):
                await asyncio.sleep(0.05)

    def _last_words(self, name: str) -> Left | None:
        try:
            report = json.loads((self._control / f"{name}.out").read_text().splitlines()[-1])
        except (OSError, IndexError, ValueError):
            return None
        return Left(report["head_round"], report["state_digest"])

    def _complaint(self, name: str) -> str:
        lines = (self._control / f"{name}.err").read_text().strip().splitlines()
        return lines[-1] if lines else "without a word"

    def _wishes(self, name: str) -> dict[str, Any]:
        path = self._control / f"{name}.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def _write(self, name: str, **wishes: Any) -> None:
        write(self._control / f"{name}.json", {**self._wishes(name), **wishes})

    def _mount(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", folder], check=True)
        self._nursery.at_end("umount", "-l", folder)


@contextlib.asynccontextmanager
async def process_world(
    nursery: Nursery,
    folder: Path,
    spec: RunSpec,
    small_disks: Iterable[str] = (),
    join_options: Iterable[str] = LIGHT,
) -> AsyncIterator[ProcessWorld]:
    """A coordinator is up; peers come with `start`. At the end nothing of it is left but the folders."""
    folder.mkdir(parents=True, exist_ok=True)
    with Internet() as net:
        world = ProcessWorld(nursery, net, folder, spec, small_disks, join_options)
        try:
            await world.start(COORDINATOR)
            yield world
        finally:
            for pid in set(world._pids.values()) - nursery.codes.keys():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)


def to_toml(sections: Mapping[str, Any], prefix: str = "") -> str:
    """A run spec's sections as TOML; strings, numbers, booleans and lists of them are written as JSON has them."""
    return "".join(_lines(sections, prefix))


def _lines(sections: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for name, value in sections.items():
        if isinstance(value, Mapping):
            yield f"[{prefix}{name}]\n"
            yield from (f"{key} = {json.dumps(it)}\n" for key, it in value.items() if not isinstance(it, Mapping))
            yield to_toml({key: it for key, it in value.items() if isinstance(it, Mapping)}, f"{prefix}{name}.")


def _faketime() -> str:
    return next((str(path) for path in FAKETIME if path.exists()), "")
