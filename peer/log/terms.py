"""Terms: the numbers under which a node leads. Each start of leading takes a new one and notes it before using it.

So a node whose disk forgot its last record never signs a second one of the same round and term, which others would
take for a lie (`rules.equivocation`). The step is drawn by chance: two copies of one folder, or a backup that
forgot the note as well, then do not take the same number either.
"""

from __future__ import annotations

import secrets
from pathlib import Path

from peer.durable import write_durably
from peer.exchange.blobs import writing
from peer.log.rules import MAX_TERM_STEP

_STEP = 1 << 10


class Terms:
    def __init__(self, folder: Path) -> None:
        self.path = folder / "term"

    def next(self, known: int) -> int:
        """A term above `known` (of the log, and of whoever led last) and above every one this node used.

        Raises:
            CommonweightsError: it cannot be noted, so it may not be used.
        """
        term = max(known, self._noted(known)) + 1 + secrets.randbelow(_STEP)
        with writing(self.path):
            write_durably(self.path, f"{term}\n".encode())
        return term

    def _noted(self, known: int) -> int:
        """0 when there is no note, or none that a log could follow."""
        try:
            noted = int(self.path.read_text())
        except (OSError, ValueError):
            return 0
        return noted if noted < known + MAX_TERM_STEP // 2 else 0
