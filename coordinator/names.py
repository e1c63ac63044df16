"""What peers call themselves, remembered beyond their presence: for people, never for accounting."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from peer.identity import PeerId

MAX_NAMES = 100_000


class Names:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.by_id: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError, AttributeError):  # none yet, or damaged: peers tell them again
            self.by_id = {str(key): str(value) for key, value in json.loads(path.read_text()).items()}

    def of(self, peer: PeerId) -> str:
        return self.by_id.get(str(peer), peer.short)

    def remember(self, names: Iterable[tuple[PeerId, str]]) -> None:
        fresh = {str(peer): name for peer, name in names}
        if not fresh.items() <= self.by_id.items() and len(self.by_id) < MAX_NAMES:
            self.by_id.update(fresh)
            self.save()

    def save(self) -> None:
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.by_id, ensure_ascii=False, indent=0))
        os.replace(temporary, self.path)
