"""What both command lines share: one line per error, JSON on stdout, logs on stderr."""

from __future__ import annotations

import errno
import json
import logging
import logging.handlers
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peer.errors import CommonweightsError

INTERRUPTED = 130  # exit code, as a shell has it for Ctrl-C
LOG_BYTES = 5_000_000  # then a new log file begins; three old ones are kept


@contextmanager
def as_a_command() -> Iterator[None]:
    """A person's mistake, or the world's, ends the command with its one line and its exit code; a bug shows itself.

    Until an event loop takes over the signals, Ctrl-C ends the process at once: there is nothing to clean up yet, and
    an exception in the middle of an import comes out as something else.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(INTERRUPTED))
    try:
        yield
    except CommonweightsError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno is None:
            raise
        where = f" ({error.filename})" if error.filename else ""
        cure = "; make room and start again, nothing is lost" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        sys.stderr.write(f"error: {error.strerror}{where}{cure}\n")
        sys.exit(1)


def print_json(value: dict[str, Any]) -> None:
    """One line on stdout."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def set_up_logging(
    path: Path | None, screen: logging.Handler | None = None, formatter: logging.Formatter | None = None
) -> None:
    """Warnings to the screen (stderr), everything to a file beside the run, which is never larger than a few times
    `LOG_BYTES`."""
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # it reports every fork of a child process otherwise
    screen = screen or logging.StreamHandler(sys.stderr)
    screen.setLevel(logging.WARNING)
    handlers: list[logging.Handler] = [screen]
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = logging.handlers.RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=3, encoding="utf-8")
        file.setFormatter(formatter or logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        handlers.append(file)
    logging.basicConfig(level=logging.INFO, handlers=handlers, force=True)
    for noisy in ("httpx", "httpcore", "datasets", "transformers", "accelerate", "fsspec", "asyncio", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
