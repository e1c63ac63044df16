"""A private PostgreSQL for tests: Debian's binaries, an unprivileged user, a temporary folder, a Unix socket only."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest


class PostgresServer:
    def __init__(self, socket: Path, user: str, command: list[str], bin_folder: Path) -> None:
        self.socket = socket
        self.user = user
        self._command = command
        self._bin = bin_folder
        self._numbers = count()

    def new_database(self) -> str:
        """Makes an empty one; its URL."""
        name = f"test{next(self._numbers)}"
        createdb = [*self._command, str(self._bin / "createdb"), "-h", str(self.socket), name]
        subprocess.run(createdb, check=True, capture_output=True, cwd="/")
        return f"postgresql://{self.user}@/{name}?host={self.socket}"


@contextlib.contextmanager
def postgres_server(factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """Skips the test, with the reason, where there is no PostgreSQL to be had."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'commonweights[postgres]'")
    bin_folder = _binaries()
    if bin_folder is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    # PostgreSQL refuses to run as root.
    user = pwd.getpwuid(os.getuid()).pw_name if os.getuid() else "nobody"
    as_user = [] if os.getuid() else ["runuser", "-u", user, "--"]
    folder = Path(tempfile.mkdtemp(prefix="cw-pg-"))  # short: a socket's path has 107 characters
    try:
        shutil.chown(folder, user)
        data = folder / "data"
        initdb = [str(bin_folder / "initdb"), "-D", str(data), "-A", "trust", "-U", user, "-E", "UTF8", "--no-sync"]
        subprocess.run([*as_user, *initdb], check=True, capture_output=True, cwd="/")
        options = f"-k {folder} -c listen_addresses= -c fsync=off"
        control = [*as_user, str(bin_folder / "pg_ctl"), "-D", str(data), "-w", "-l", str(folder / "log")]
        subprocess.run([*control, "-o", options, "start"], check=True, capture_output=True, cwd="/")
        try:
            yield PostgresServer(folder, user, as_user, bin_folder)
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], check=True, capture_output=True, cwd="/")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _binaries() -> Path | None:
    places = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    if found := shutil.which("initdb"):
        places.append(Path(found).resolve().parent)
    return next((place for place in places if (place / "initdb").exists() and (place / "postgres").exists()), None)
