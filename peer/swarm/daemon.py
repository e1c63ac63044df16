"""The life of one p2pd process: the Go program that holds the libp2p connections for us.

hivemind would start it too, but leaves it running when we are killed, leaves its sockets behind, does not notice its
death, and lets two daemons listen on one port (libp2p sets SO_REUSEPORT: connections then reach either). So the process
is ours: a private folder for sockets and key, a launcher that ties its life to ours, a clear word for every way a start
fails. The price is that its command line is written down here.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import logging
import os
import resource
import shutil
import socket
import sys
import tempfile
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path

from peer.errors import CommonweightsError, UnreachableError, UsageError
from peer.identity import Identity

logger = logging.getLogger(__name__)

_LAUNCHER = Path(__file__).with_name("launcher.py")
_FOLDER_PREFIX = "commonweights-"
_SOCKET_PATH_BYTES = 60  # a unix socket's path may have 104 bytes on macOS, 108 on Linux; file names come on top
_STOP_SECONDS = 1.0
_OPEN_FILES = 16384


@dataclass(frozen=True)
class Listening:
    """Where and how a peer is present on the network.

    `port` 0 takes a free one. `announce` replaces the addresses that others are told (behind a port forward). A
    `client_mode` peer listens nowhere; others reach it over the connections it makes. `auto_relay` asks `relays`
    (multiaddrs with /p2p) to pass connections on to a peer behind NAT; `public` says that we can be dialled from
    everywhere, and pass connections on for others.
    """

    host: str = "0.0.0.0"
    port: int = 0
    announce: tuple[str, ...] = ()
    client_mode: bool = False
    auto_relay: bool = False
    relays: tuple[str, ...] = ()
    public: bool = False
    map_port: bool = True

    @property
    def is_private(self) -> bool:
        return self.client_mode or ip_address(self.host).is_loopback

    @property
    def multiaddr(self) -> str:
        return f"/ip{ip_address(self.host).version}/{self.host}/tcp/{self.port}"

    def at_port_of(self, visible: Sequence[str]) -> Listening:
        """The same, with the port that was found for port 0."""
        ports = [a.rpartition("/tcp/")[2] for a in visible if "p2p-circuit" not in a]
        return replace(self, port=int(ports[0])) if ports and not self.client_mode else self


class Daemon:
    """One running p2pd. Make it with `start`, end it with `stop`."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self.process = process
        self.folder = folder
        self.control_socket = str(folder / "control.sock")
        self._output: deque[str] = deque(maxlen=5)
        self._ready = asyncio.get_running_loop().create_future()
        self._reading = asyncio.create_task(self._read_output())

    @classmethod
    async def start(
        cls, program: Path, identity: Identity, listening: Listening, folder: Path, *, startup_timeout: float
    ) -> Daemon:
        """Raises UsageError for what the user can mend (port in use, no such address), UnreachableError for a start
        that takes too long."""
        if not listening.client_mode:
            check_port_is_free(listening.host, listening.port)
        raise_open_files()
        for name in ("control.sock", "client.sock"):
            (folder / name).unlink(missing_ok=True)
        key = folder / "identity.key"
        identity.save(key, replace=True)
        command = [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid()), str(program)]
        environment = {"GOLOG_LOG_LEVEL": "error", **os.environ, "GOLOG_LOG_FMT": "json"}
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                *_arguments(folder, key, listening),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=environment,
            )
        except OSError as error:
            raise CommonweightsError(f"cannot start the p2p daemon {program}: {error.strerror}") from None
        daemon = cls(process, folder)
        try:
            async with asyncio.timeout(startup_timeout):
                await daemon._ready
        except TimeoutError:
            await daemon.stop()
            raise UnreachableError(
                f"the p2p daemon did not start within {startup_timeout:g} s; is this machine very busy? try again"
            ) from None
        except BaseException:
            await daemon.stop()
            raise
        finally:
            key.unlink(missing_ok=True)  # it was read; a second copy of the key lies nowhere
        return daemon

    async def stop(self) -> None:
        """Ends the process, the hard way if it must. A few milliseconds usually, about a second at worst."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
            try:
                async with asyncio.timeout(_STOP_SECONDS):
                    await self.process.wait()
            except TimeoutError:
                self.process.kill()
        await self.process.wait()
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        if self._ready.done() and not self._ready.cancelled():
            self._ready.exception()

    async def _read_output(self) -> None:
        assert self.process.stdout is not None
        while True:
            try:
                line = (await self.process.stdout.readline()).decode(errors="replace")
            except ValueError:  # a line longer than the buffer
                continue
            if not line:
                break
            if line.startswith("Peer ID:") and not self._ready.done():
                self._ready.set_result(None)
            elif text := _message_of(line.strip()):
                self._output.append(text)
                logger.debug("p2pd: %s", text)
        if not self._ready.done():
            last = self._output[-1] if self._output else "without a word"
            self._ready.set_exception(UsageError(f"the p2p daemon ended at once: {last}"))


def _arguments(folder: Path, key: Path, listening: Listening) -> list[str]:
    options: dict[str, object] = {
        "listen": f"/unix{folder}/control.sock",
        "id": key,
        "tls": 1,
        "noise": 1,
        "connManager": 1,
        "connLo": 1024,  # above it idle connections are closed
        "connHi": 2048,
        "idleTimeout": "60s",  # ends itself if we never come
        "relay": 1,
        "relayService": int(listening.public),
        "relayMaxReservations": 1024,
        "relayBufferSize": 256 * 1024,  # per circuit and direction
        "relayDataLimit": 1 << 40,
        "relayTimeLimit": "24h",
        "autoRelay": int(listening.auto_relay),
        "relayDiscovery": 0,  # the relays we name, at once: discovery waits three minutes for more candidates
        "autonat": int(listening.auto_relay or not listening.is_private),  # hole punching comes with it
        "natPortMap": int(listening.map_port and not listening.is_private),
        "dhtClient" if listening.client_mode else "dhtServer": 1,
    }
    if listening.client_mode:
        options["noListenAddrs"] = 1
    else:
        options["hostAddrs"] = listening.multiaddr
    if listening.public:
        options["forceReachabilityPublic"] = 1
    elif listening.auto_relay:
        options["forceReachabilityPrivate"] = 1
    if listening.announce:
        options["announceAddrs"] = ",".join(listening.announce)
    if listening.auto_relay and listening.relays:
        options["trustedRelays"] = ",".join(listening.relays)
    return [f"-{name}={value}" for name, value in options.items()]


def check_port_is_free(host: str, port: int) -> None:
    """Raises UsageError if `host` is not ours or somebody listens on `port` there already."""
    try:
        address = ip_address(host)
    except ValueError:
        raise UsageError(f"{host!r} is not an IP address to listen on; use 0.0.0.0 for all") from None
    if not 0 <= port < 65536:
        raise UsageError(f"port {port}: ports go from 0 (any) to 65535")
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise UsageError(
                    f"port {port} is in use on {host}; stop what uses it, or choose another port"
                ) from None
            raise UsageError(f"cannot listen on {host} port {port}: {error.strerror}") from None


def raise_open_files() -> None:
    """Every conversation is an open file here; the usual soft limit of 1024 is low and ours to raise."""
    with contextlib.suppress(OSError, ValueError):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class PrivateFolder:
    """A folder of mode 0700 for sockets; removed at close. What killed processes left is removed by the next one:
    the living hold a lock on theirs."""

    def __init__(self) -> None:
        parent = Path(tempfile.gettempdir())
        if len(os.fsencode(parent)) + len(_FOLDER_PREFIX) + 8 > _SOCKET_PATH_BYTES:
            parent = Path("/tmp")
        _sweep(parent)
        self.path = Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX, dir=parent)).resolve()
        self._lock = _try_lock(self.path / "lock", create=True)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _sweep(parent: Path) -> None:
    for lock in parent.glob(f"{_FOLDER_PREFIX}*/lock"):
        with contextlib.suppress(OSError):
            if lock.parent.stat().st_uid == os.getuid() and (descriptor := _try_lock(lock, create=False)) is not None:
                shutil.rmtree(lock.parent, ignore_errors=True)
                os.close(descriptor)


def _try_lock(path: Path, *, create: bool) -> int | None:
    descriptor = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _message_of(line: str) -> str:
    """The text of one line of p2pd's output; its log lines are JSON."""
    try:
        record = json.loads(line)
        return " ".join(str(record[key]) for key in ("msg", "error") if record.get(key))
    except (ValueError, AttributeError):
        return line
