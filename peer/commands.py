"""What both command lines share: one line per error, JSON on stdout, logs on stderr."""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peer.errors import CommonweightsError


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """A person's mistake, or the world's, ends the command with its one line and its exit code; a bug shows itself."""
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


def set_up_logging(path: Path | None, screen: logging.Handler | None = None) -> None:
    """Warnings to the screen (stderr), everything to a file beside the run."""
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # it reports every fork of a child process otherwise
    screen = screen or logging.StreamHandler(sys.stderr)
    screen.setLevel(logging.WARNING)
    handlers = [screen]
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(path)
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        handlers.append(file)
    logging.basicConfig(level=logging.INFO, handlers=handlers, force=True)
    for noisy in ("httpx", "httpcore", "datasets", "transformers", "accelerate", "fsspec", "asyncio", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
