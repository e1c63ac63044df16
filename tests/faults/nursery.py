"""A process that has imported everything and forks nodes: real processes, up in a fraction of a second of CPU time.

Importing torch and transformers costs some five seconds per process, which a hundred kills on two cores cannot pay. The
nursery reads orders from standard input, one JSON object a line, and answers in the same way:

    {"start": ["peer.cli", "join", ...], "namespace": NAME, "environment": {...}, "out": FILE, "err": FILE,
     "control": FILE}     -> {"started": PID}, and at its end {"ended": PID, "code": CODE}, as subprocess counts
    {"at_end": ["umount", ...]}

It ends when its input ends, also because its owner was killed: then every node is killed, with what it started, and the
`at_end` commands run, the newest first. A node with another clock needs another C library and is executed anew instead.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import select
import signal
import subprocess
import sys
from typing import Any

_PR_SET_PDEATHSIG = 1
_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)
LOOK_SECONDS = 0.02


def main() -> None:
    _load()
    _say({"ready": True})
    living: set[int] = set()
    at_end: list[list[str]] = []
    try:
        for order in _orders(living):
            if "at_end" in order:
                at_end.append(order["at_end"])
            else:
                living.add(pid := _start(order))
                _say({"started": pid})
    finally:
        for pid in living:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        for command in reversed(at_end):
            subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)


def _load() -> None:
    import transformers.models.llama.modeling_llama  # noqa: F401  most of the time

    import tests.faults.program  # noqa: F401

    gc.collect()
    gc.freeze()  # pages stay shared with the children


def _orders(living: set[int]) -> Any:
    """Orders as they come; tells of the ends of `living` meanwhile."""
    buffer = b""
    while True:
        readable, _, _ = select.select([0], [], [], LOOK_SECONDS)
        _reap(living)
        if not readable:
            continue
        data = os.read(0, 1 << 16)
        if not data:
            return
        *lines, buffer = (buffer + data).split(b"\n")
        yield from map(json.loads, lines)


def _reap(living: set[int]) -> None:
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            living.discard(found[0])
            _say({"ended": found[0], "code": os.waitstatus_to_exitcode(found[1])})


def _say(value: dict[str, Any]) -> None:
    os.write(1, json.dumps(value).encode() + b"\n")


def _start(order: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        _become(order)
        code = _live(order)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(bool(error.code))
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _become(order: dict[str, Any]) -> None:
    """A process of its own: session, life tied to the nursery's, network, output, environment."""
    os.setsid()
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if order["namespace"]:
        with open(f"/var/run/netns/{order['namespace']}") as namespace:
            if _LIBC.setns(namespace.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
    for descriptor, path in ((0, os.devnull), (1, order["out"]), (2, order["err"])):
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, descriptor)
        os.close(file)
    os.environ.update(order["environment"])
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _live(order: dict[str, Any]) -> int:
    arguments = [order["control"], *order["start"]]
    if "LD_PRELOAD" in order["environment"]:
        os.execv(sys.executable, [sys.executable, "-m", "tests.faults.program", *arguments])
    from tests.faults.program import main as live

    live(arguments)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main()
