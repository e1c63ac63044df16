"""The doctor behind a real NAT: three hosts out of network namespaces, a router that masquerades in the middle."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from peer.identity import Identity
from peer.ticket import Ticket
from tests.commands import tiny_config, until

pytestmark = [pytest.mark.netns, pytest.mark.timeout(240)]

PREFIX = f"cwdoc{os.getpid()}"
COORDINATOR, ROUTER, HOME = f"{PREFIX}c", f"{PREFIX}r", f"{PREFIX}h"
LAYOUT = [
    *(f"netns add {name}" for name in (COORDINATOR, ROUTER, HOME)),
    f"link add eth0 netns {COORDINATOR} type veth peer name wan netns {ROUTER}",
    f"link add eth0 netns {HOME} type veth peer name lan netns {ROUTER}",
    f"-n {COORDINATOR} addr add 5.9.0.1/24 dev eth0",
    f"-n {ROUTER} addr add 5.9.0.254/24 dev wan",
    f"-n {ROUTER} addr add 192.168.77.1/24 dev lan",
    f"-n {HOME} addr add 192.168.77.2/24 dev eth0",
    *(f"-n {name} link set {device} up" for name, device in
      ((COORDINATOR, "eth0"), (ROUTER, "wan"), (ROUTER, "lan"), (HOME, "eth0"))),
    *(f"-n {name} link set lo up" for name in (COORDINATOR, ROUTER, HOME)),
    f"-n {HOME} route add default via 192.168.77.1",
]  # fmt: skip


def inside(name: str, *command: object) -> list[str]:
    return ["ip", "netns", "exec", name, *map(str, command)]


@pytest.fixture
def hosts() -> Iterator[None]:
    """A coordinator's host, and a home behind a router that masquerades and forwards nothing inwards."""
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("nft") is None:
        pytest.skip("needs root, iproute2 and nftables")
    try:
        for line in LAYOUT:
            done = subprocess.run(["ip", *line.split()], capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"no network namespaces here: ip {line}: {done.stderr.strip()}")
        masquerade = "table ip nat { chain post { type nat hook postrouting priority 100; oifname wan masquerade; }; }"
        subprocess.run(inside(ROUTER, "sysctl", "-qw", "net.ipv4.ip_forward=1"), check=True)
        subprocess.run(inside(ROUTER, "nft", masquerade), check=True)
        yield
    finally:
        for name in (COORDINATOR, ROUTER, HOME):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def consult(ticket: object, folder: Path) -> tuple[int, dict[str, dict[str, Any]]]:
    """The doctor at home, in less than its minute: exit code, and its checks by name."""
    doctor = inside(HOME, sys.executable, "-m", "peer.cli", "doctor", ticket, "--dir", folder, "--json")
    done = subprocess.run(doctor, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, {check["name"]: check for check in json.loads(done.stdout.splitlines()[-1])["checks"]}


def test_a_home_behind_nat(hosts: None, tmp_path: Path) -> None:
    """The swarm is joined and both directions are measured; that nobody can dial in is said, with how to change it."""
    serve = inside(
        COORDINATOR, sys.executable, "-m", "coordinator.cli", "serve", tiny_config(tmp_path, rounds=0),
        "--dir", tmp_path / "run", "--host", "5.9.0.1", "--grpc-port", 7070, "--swarm-port", 7072,
    )  # fmt: skip
    coordinator = subprocess.Popen(serve, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        ticket = tmp_path / "run" / "ticket.txt"
        until(ticket.is_file, "the ticket is written")
        code, checks = consult(ticket, tmp_path / "peer")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(coordinator.pid, signal.SIGKILL)
        coordinator.wait()
    assert code == 0, checks
    assert checks["swarm"]["status"] == checks["bandwidth"]["status"] == "ok", checks
    assert checks["reachable"]["status"] == "warn" and "forward TCP port" in checks["reachable"]["cure"], checks


def test_a_network_that_swallows_everything(hosts: None, tmp_path: Path) -> None:
    """A firewall that drops without an answer, the slowest of all worlds: each check has its deadline, the whole its
    minute, and the cures are those of a coordinator that cannot be reached."""
    drop = "table ip wall { chain pass { type filter hook forward priority 0; policy drop; }; }"
    subprocess.run(inside(ROUTER, "nft", drop), check=True)
    far = Ticket(bytes(32), Identity.new().peer_id, ("5.9.0.1:7070",), ("/ip4/5.9.0.1/tcp/7072",))
    code, checks = consult(far, tmp_path / "peer")
    assert code == 1
    assert checks["coordinator"]["status"] == "fail" and "firewall" in checks["coordinator"]["cure"], checks
    assert checks["swarm"]["status"] == "fail" and "outgoing connections" in checks["swarm"]["cure"], checks
    assert checks["bandwidth"]["status"] == checks["reachable"]["status"] == "skipped", checks
