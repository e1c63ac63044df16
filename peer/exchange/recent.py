"""The newest small blobs, in memory.

What many light peers contribute is small, and is served, measured and merged within seconds of its coming. Kept here
until then, it costs no looks at the disk. Only what was just hashed comes in.
"""

from __future__ import annotations

import threading

SMALL_BYTES = 512 * 1024  # of one blob
RECENT_BYTES = 8 * 1024 * 1024  # of all together; the oldest goes first


class Recent:
    """Contents by hash. Threads may use it at the same time: one changes it, those who look see before or after."""

    def __init__(self) -> None:
        self._contents: dict[bytes, bytes] = {}
        self._bytes = 0
        self._changing = threading.Lock()

    def __contains__(self, blob: bytes) -> bool:
        return blob in self._contents

    def get(self, blob: bytes) -> bytes | None:
        return self._contents.get(blob)

    def add(self, blob: bytes, content: bytes) -> None:
        """A small blob, whose hash was checked."""
        assert len(content) <= SMALL_BYTES
        with self._changing:
            self._remove(blob)
            self._contents[blob] = content
            self._bytes += len(content)
            while self._bytes > RECENT_BYTES:
                self._remove(next(iter(self._contents)))

    def drop(self, blob: bytes) -> None:
        with self._changing:
            self._remove(blob)

    def _remove(self, blob: bytes) -> None:
        self._bytes -= len(self._contents.pop(blob, b""))
