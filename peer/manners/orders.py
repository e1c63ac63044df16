"""`commonweights pause` and `resume`: a file in the peer's folder, which the peer looks at once a second.

A file and not a socket: it holds across restarts and kills, needs no peer that runs, and whoever may write into the
folder may give the order.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from peer.errors import UsageError

FILE_NAME = "pause.json"
LOCK_NAME = "peer.lock"


@dataclass(frozen=True)
class Order:
    """The owner wants a pause, until a time of the Unix clock or until told otherwise."""

    until_seconds: float | None = None

    def holds(self, now_seconds: float) -> bool:
        return self.until_seconds is None or now_seconds < self.until_seconds


def pause(folder: Path, seconds: float | None = None) -> None:
    """From now on, for so long."""
    until = None if seconds is None else time.time() + seconds
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{FILE_NAME}.tmp"
    temporary.write_text(json.dumps({"until_seconds": until}))
    os.replace(temporary, folder / FILE_NAME)


def resume(folder: Path) -> bool:
    """Whether there was a pause."""
    there = (folder / FILE_NAME).exists()
    (folder / FILE_NAME).unlink(missing_ok=True)
    return there


def read(folder: Path) -> Order | None:
    """The order in force. A file that makes no sense is a pause all the same: somebody wanted one."""
    try:
        until = json.loads((folder / FILE_NAME).read_text())["until_seconds"]
        return Order(float(until) if until is not None else None)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return Order()


@contextlib.contextmanager
def only_peer(folder: Path) -> Iterator[None]:
    """Hold a folder for this process: two peers with one identity would spoil each other's work.

    Raises:
        UsageError: another process holds it, and which one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_NAME).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UsageError(
                f"a peer runs in {folder} already (process {file.read(20).strip() or 'unknown'}); stop it first, or use"
                " another --dir"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def is_running(folder: Path) -> bool:
    """Whether a peer runs in this folder."""
    try:
        with (folder / LOCK_NAME).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:
        return False
