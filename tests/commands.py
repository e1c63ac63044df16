"""Running the two commands as a person would, in processes of their own, that never outlive the test."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from protos import log_pb2

TINY = """
[run]
name = "tiny"
seed = 7
rounds = {rounds}
[model.config]
hidden_size = 16
intermediate_size = 32
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 2
[data]
sequence_length = 32
shard_sequences = 256
held_out_fraction = 0.05
[data.source]
kind = "text"
path = "{text}"
suffixes = [".py"]
[data.tokenizer]
kind = "bytes"
[train]
batch_sequences = 4
learning_rate = 0.01
schedule = "constant"
[round]
target_tokens = 1048576
inner_steps = {inner_steps}
max_seconds = 30
overlap = false
[snapshots]
every_rounds = 2
[evaluation]
sequences = 8
sample_tokens = 8
[timing]
heartbeat_seconds = 0.2
silence_seconds = 4
first_deadline_seconds = 6
"""


def tiny_config(folder: Path, *, rounds: int = 4, inner_steps: int = 4) -> Path:
    """A config file for a run that takes a few seconds."""
    path = folder / "tiny.toml"
    path.write_text(TINY.format(rounds=rounds, inner_steps=inner_steps, text=Path(json.__file__).parent))
    return path


class Command:
    """One running command. `wait` and `interrupt` return it when it has ended."""

    def __init__(self, *arguments: object, program: str = "peer.cli", **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", program, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            # As from a terminal; a test run in the background has it ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self.out = ""
        self.err = ""

    def wait(self, seconds: float = 120) -> Command:
        self.out, self.err = self.process.communicate(timeout=seconds)
        return self

    def interrupt(self, number: int = signal.SIGINT, seconds: float = 12) -> Command:
        """Send the signal and wait for the end, at most `seconds`."""
        self.process.send_signal(number)
        return self.wait(seconds)

    @property
    def code(self) -> int:
        return self.process.returncode

    @property
    def json(self) -> dict[str, Any]:
        """The last line of stdout."""
        value = json.loads(self.out.splitlines()[-1])
        assert isinstance(value, dict)
        return value

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def running(*arguments: object, program: str = "peer.cli", **environment: str) -> Iterator[Command]:
    command = Command(*arguments, program=program, **environment)
    try:
        yield command
    finally:
        command.end()


def run(*arguments: object, program: str = "peer.cli", seconds: float = 120, **environment: str) -> Command:
    """To its end."""
    with running(*arguments, program=program, **environment) as command:
        return command.wait(seconds)


def coordinator(*arguments: object, seconds: float = 120) -> Command:
    return run(*arguments, program="coordinator.cli", seconds=seconds)


def until(condition: Callable[[], bool], what: str, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.1)


def records(folder: Path) -> int:
    """How many records the log in `folder` has, the genesis not counted."""
    return max(0, len(list((folder / "log").glob("*.record"))) - 1)


def journal(folder: Path) -> list[dict[str, Any]]:
    """The log file of the peer in `folder`; a line that is being written is left out."""
    path = folder / "peer.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def last_signer(folder: Path) -> bytes:
    """Of the newest record; nobody's while the log is being changed."""
    with contextlib.suppress(IndexError, FileNotFoundError):
        newest = sorted((folder / "log").glob("*.record"))[-1]
        return log_pb2.Signed.FromString(newest.read_bytes()).signer
    return b""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def processes_with(text: str) -> list[str]:
    """Command lines on this machine that contain `text`, this one and pytest's left out."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if text in line and "pytest" not in line and int(entry.name) != os.getpid():
                found.append(line)
    return found
