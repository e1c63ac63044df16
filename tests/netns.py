"""A small internet out of network namespaces: hosts with public addresses, homes behind NAT, links of a given rate.

Needs root, `ip`, `tc` and `nft`; `missing()` says what lacks. Nothing leaves the machine: the addresses are routed
within the namespaces only. They are of a public range, because libp2p treats private ones differently.

    with Internet() as net:
        server = net.host("server")
        home = net.home("home")                # a router: masquerades, lets nothing in that was not asked for
        alice = home.host("alice", up_mbit=10, down_mbit=50)
        alice.popen([sys.executable, "-m", "peer.cli", "join", ...])
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

PUBLIC = "11.22.33"  # /24, one bridge
_MASQUERADE = """
table ip home {{
  chain out {{ type nat hook postrouting priority 100; oifname "{wan}" masquerade; }}
  chain through {{
    type filter hook forward priority 0; policy drop;
    ct state established,related accept
    iifname != "{wan}" accept
  }}
  chain to_router {{
    type filter hook input priority 0; policy accept;
    ct state established,related accept
    iifname "{wan}" ip protocol tcp drop
  }}
}}
"""


def missing() -> str:
    """Why this machine cannot build namespaces; empty when it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    absent = [program for program in ("ip", "tc", "nft") if shutil.which(program) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (iproute2, nftables)"
    name = f"cw{os.getpid()}probe"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        return "this machine does not allow network namespaces"
    worked = subprocess.run(["ip", "netns", "exec", name, "nft", "list", "ruleset"], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
    return "" if worked.returncode == 0 else "nft does not work in network namespaces here"


def sweep() -> None:
    """Remove what killed test processes left: namespaces named after a process that is no more."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False).stdout
    for name in (line.split()[0] for line in listed.splitlines() if line.strip()):
        owner = re.match(r"cw(\d+)[a-z]", name)
        if owner and not os.path.exists(f"/proc/{owner[1]}"):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


class Host:
    """One machine of the small internet."""

    def __init__(self, namespace: str, address: str, interface: str, far_end: tuple[str, str]) -> None:
        self.namespace = namespace
        self.address = address
        self._interface, self._far_end = interface, far_end
        self._processes: list[subprocess.Popen[str]] = []

    def command(self, arguments: Sequence[object]) -> list[str]:
        """`arguments` as a command line that runs on this host."""
        return ["ip", "netns", "exec", self.namespace, *map(str, arguments)]

    def popen(self, arguments: Sequence[object], **options: Any) -> subprocess.Popen[str]:
        """Started on this host, in a session of its own; killed at the end of the internet."""
        process = subprocess.Popen(self.command(arguments), text=True, start_new_session=True, **options)
        self._processes.append(process)
        return process

    def limit(self, up_mbit: float | None = None, down_mbit: float | None = None, queue_ms: int = 300) -> None:
        """The rate of its link, each direction, with a buffer of `queue_ms` as home routers have; None: unlimited."""
        for (namespace, interface), mbit in (
            ((self.namespace, self._interface), up_mbit),
            (self._far_end, down_mbit),
        ):
            subprocess.run(
                ["tc", "-n", namespace, "qdisc", "delete", "dev", interface, "root"], capture_output=True, check=False
            )
            if mbit is not None:
                _run(
                    "tc", "-n", namespace, "qdisc", "add", "dev", interface, "root", "tbf",
                    "rate", f"{mbit}mbit", "burst", "16kb", "latency", f"{queue_ms}ms",
                )  # fmt: skip

    def cut(self, is_cut: bool = True) -> None:
        """Pull the plug, or put it back in."""
        namespace, interface = self._far_end
        _run("ip", "-n", namespace, "link", "set", interface, "down" if is_cut else "up")

    def sent_bytes(self) -> int:
        """What left this host since it exists, headers included."""
        counter = f"/sys/class/net/{self._interface}/statistics/tx_bytes"
        return int(subprocess.check_output(self.command(["cat", counter])))

    def processes(self) -> list[int]:
        """Ids of everything that runs on this host."""
        return [int(pid) for pid in subprocess.check_output(["ip", "netns", "pids", self.namespace]).split()]

    def kill(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                os.killpg(process.pid, 9)
            process.wait()


class Home:
    """A router with one public address, and hosts behind it that nobody can dial."""

    def __init__(self, net: Internet, router: Host, number: int) -> None:
        self.router = router
        self._net = net
        self._prefix = f"192.168.{number}"
        self._count = itertools.count(2)
        _run("ip", "netns", "exec", router.namespace, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        _run("ip", "-n", router.namespace, "link", "add", "lan", "type", "bridge")
        _run("ip", "-n", router.namespace, "address", "add", f"{self._prefix}.1/24", "dev", "lan")
        _run("ip", "-n", router.namespace, "link", "set", "lan", "up")
        rules = _MASQUERADE.format(wan=router._interface)
        _run("ip", "netns", "exec", router.namespace, "nft", "-f", "-", input=rules)

    def host(self, name: str, up_mbit: float | None = None, down_mbit: float | None = None) -> Host:
        host = self._net._attach(name, f"{self._prefix}.{next(self._count)}", self.router.namespace, "lan")
        _run("ip", "-n", host.namespace, "route", "add", "default", "via", f"{self._prefix}.1")
        host.limit(up_mbit, down_mbit)
        return host


class Internet:
    """The namespaces of one test; all are gone at its end."""

    def __init__(self) -> None:
        self._prefix = f"cw{os.getpid()}"
        self._core = f"{self._prefix}core"
        self._links = itertools.count()
        self._addresses = itertools.count(10)
        self._homes = itertools.count(1)
        self._namespaces: list[str] = []
        self._hosts: list[Host] = []

    def host(self, name: str, up_mbit: float | None = None, down_mbit: float | None = None) -> Host:
        """A machine with a public address that everybody can dial."""
        host = self._attach(name, f"{PUBLIC}.{next(self._addresses)}", self._core, "internet")
        host.limit(up_mbit, down_mbit)
        return host

    def part(self, *hosts: Host) -> None:
        """These hosts reach each other and nobody else; without any, the internet is one again."""
        for host in self._hosts:
            switch, far = host._far_end
            if switch == self._core:
                _run("ip", "-n", switch, "link", "set", far, "master", "island" if host in hosts else "internet")

    def home(self, name: str) -> Home:
        return Home(self, self.host(name), next(self._homes))

    def __enter__(self) -> Internet:
        sweep()
        self._namespace(self._core)
        for bridge in ("internet", "island"):
            _run("ip", "-n", self._core, "link", "add", bridge, "type", "bridge")
            _run("ip", "-n", self._core, "link", "set", bridge, "up")
        return self

    def __exit__(self, *error: object) -> None:
        for host in self._hosts:
            host.kill()
        for namespace in reversed(self._namespaces):
            subprocess.run(["ip", "netns", "delete", namespace], capture_output=True, check=False)

    def _namespace(self, name: str) -> None:
        _run("ip", "netns", "add", name)
        self._namespaces.append(name)
        _run("ip", "-n", name, "link", "set", "lo", "up")

    def _attach(self, name: str, address: str, switch: str, bridge: str) -> Host:
        namespace, number = f"{self._prefix}{name}", next(self._links)
        self._namespace(namespace)
        near, far = f"near{number}", f"far{number}"
        _run("ip", "-n", namespace, "link", "add", near, "type", "veth", "peer", "name", far, "netns", switch)
        _run("ip", "-n", switch, "link", "set", far, "master", bridge, "up")
        _run("ip", "-n", namespace, "address", "add", f"{address}/24", "dev", near)
        _run("ip", "-n", namespace, "link", "set", near, "up")
        host = Host(namespace, address, near, (switch, far))
        self._hosts.append(host)
        return host


def _run(*command: str, input: str | None = None) -> None:  # as subprocess calls it
    done = subprocess.run(command, input=input, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"
