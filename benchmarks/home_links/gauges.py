"""What a host of the benchmark spends: processor seconds, memory, bytes; read from outside, equally for all methods."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from tests.netns import Host

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Gauge:
    """The processes of one host, however many a method starts there."""

    host: Host
    cpu_seconds: float = 0.0  # of all processes that were ever seen, up to the last look
    memory_bytes: int = 0  # at the most: anonymous and shared memory of all processes together
    _by_process: dict[int, float] = field(default_factory=dict)

    def look(self) -> None:
        memory = 0
        listed = subprocess.run(
            ["ip", "netns", "pids", self.host.namespace], capture_output=True, text=True, check=False
        )
        for pid in map(int, listed.stdout.split()):
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
                status = Path(f"/proc/{pid}/status").read_text()
            except OSError:  # it has ended meanwhile
                continue
            self._by_process[pid] = (int(fields[11]) + int(fields[12])) / _TICKS
            memory += sum(
                int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(("RssAnon", "RssShmem"))
            )
        self.cpu_seconds = sum(self._by_process.values())
        self.memory_bytes = max(self.memory_bytes, memory)
