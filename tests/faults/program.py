"""One node as a process: the product's own command, with a function looking on that can stop it in any phase.

python -m tests.faults.program CONTROL MODULE ARGUMENT...: runs `main` of MODULE (peer.cli or coordinator.cli). CONTROL
is a file that the test writes and changes: {"orders": [[PHASE, ROUND, WHAT], ...], "lies": false}. An order is crossed
out, and noted in CONTROL.reached, when it is carried out.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from peer.node import Node
from peer.swarm.wire import Services
from tests.faults.phases import observed

SIGNALS = {"kill": signal.SIGKILL, "pause": signal.SIGSTOP}


class Control:
    """What the test wants of this process at the moment."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._changed = 0
        self._wishes: dict[str, Any] = {}

    def read(self) -> dict[str, Any]:
        try:
            changed = self.path.stat().st_mtime_ns
        except FileNotFoundError:
            return {}
        if changed != self._changed:
            self._changed = changed
            self._wishes = json.loads(self.path.read_text())
        return self._wishes

    def observe(self, node: Node, phase: str) -> None:
        """Carry out the first order whose phase and round have come."""
        round_ = node.replica.state.round + 1
        wishes = self.read()
        for order in wishes.get("orders", []):
            if order[0] == phase and order[1] <= round_:
                rest = [other for other in wishes["orders"] if other is not order]
                write(self.path, {**wishes, "orders": rest})
                with open(f"{self.path}.reached", "a") as file:
                    file.write(f"{phase} {round_}\n")
                if order[2] in SIGNALS:
                    os.kill(os.getpid(), SIGNALS[order[2]])
                return


def write(path: Path, wishes: dict[str, Any]) -> None:
    """Complete or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(wishes))
    os.replace(temporary, path)


def lying(control: Control) -> None:
    """While the test wants it, the last byte of everything that this process serves is wrong."""
    pieces = Services.pieces

    async def wrong(services: Services, *arguments: Any) -> AsyncGenerator[bytes, None]:
        async for piece in pieces(services, *arguments):
            lies = control.read().get("lies") and piece
            yield piece[:-1] + bytes([piece[-1] ^ 0xFF]) if lies else piece

    Services.pieces = wrong  # type: ignore[method-assign, assignment]


def main(arguments: list[str]) -> None:
    control = Control(Path(arguments[0]))
    sys.argv = [arguments[1], *arguments[2:]]
    lying(control)
    with observed(control.observe):
        importlib.import_module(arguments[1]).main()


if __name__ == "__main__":
    main(sys.argv[1:])
