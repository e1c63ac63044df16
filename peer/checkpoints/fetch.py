"""A checkpoint from any place that fsspec knows, as a folder on this disk.

The manifest comes first and says what else to fetch: nobody has to list a folder, so plain HTTP will do, and nothing
that the coordinator did not sign is loaded.
"""

from __future__ import annotations

import contextlib
import tempfile
import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path

from peer.checkpoints.manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES, Checkpoint
from peer.data.sources import open_below
from peer.errors import UnreachableError, UsageError

PIECE_BYTES = 1 << 20


@contextlib.contextmanager
def local_copy(source: str, on_bytes: Callable[[int, int], None] = lambda done, total: None) -> Iterator[Path]:
    """The checkpoint at `source`: that folder itself, or for a URL a copy that lasts as long as the block.

    Args:
        on_bytes: called with (bytes fetched, bytes of all files).

    Raises:
        UsageError: no checkpoint is there, no such scheme, or what it needs is not installed.
        UnreachableError: it cannot be fetched.
        VerificationError: the manifest is not one.
    """
    if "://" not in source:
        yield Path(source)
        return
    with tempfile.TemporaryDirectory(prefix="commonweights-") as temporary:
        folder = Path(temporary)
        try:
            with _explained(source):
                _copy(source, MANIFEST_FILE, folder, MAX_MANIFEST_BYTES)
        except FileNotFoundError:
            raise UsageError(f"{source}: no checkpoint is there ({MANIFEST_FILE} is missing)") from None
        checkpoint = Checkpoint.load(folder)
        done = 0
        for file in checkpoint.manifest.files:
            with _explained(source), contextlib.suppress(FileNotFoundError):  # what is missing, verification names
                _copy(source, file.name, folder, file.bytes)
            done += file.bytes
            on_bytes(done, checkpoint.size_bytes)
        yield folder


def _copy(source: str, name: str, folder: Path, most: int) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    with open_below(source.rstrip("/"), name) as stream, (folder / name).open("wb") as out:
        left = most + 1  # one more: a file that is too long shows
        while left and (piece := stream.read(min(PIECE_BYTES, left))):
            out.write(piece)
            left -= len(piece)


@contextlib.contextmanager
def _explained(source: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except urllib.error.HTTPError as error:
        if error.code == 404:
            raise FileNotFoundError(source) from None
        raise UnreachableError(f"{source}: cannot be fetched: {error}") from None
    except ImportError as error:
        raise UsageError(f"{source}: {error}; install it with pip") from None
    except ValueError as error:
        raise UsageError(f"{source}: {error}") from None
    except Exception as error:  # every file system has errors of its own
        raise UnreachableError(f"{source}: cannot be fetched: {str(error) or type(error).__name__}") from None
