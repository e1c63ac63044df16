"""What peers call themselves, remembered beyond their presence: for people, never for accounting."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path

from peer.durable import write_durably
from peer.identity import PeerId

MAX_NAMES = 100_000


class Names:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.by_id: dict[str, str] = {}
        self.teams: dict[str, str] = {}
        with contextlib.suppress(
            OSError, ValueError, AttributeError, KeyError
        ):  # none yet, or damaged: peers tell again
            kept = json.loads(path.read_text())
            self.by_id = {str(key): str(value) for key, value in kept["names"].items()}
            self.teams = {str(key): str(value) for key, value in kept["teams"].items()}

    def of(self, peer: PeerId) -> str:
        return self.by_id.get(str(peer), peer.short)

    def team_of(self, peer: PeerId) -> str:
        return self.teams.get(str(peer), "")

    def remember(self, labels: Iterable[tuple[PeerId, str, str]]) -> None:
        """(peer, name, team) of those who are here."""
        told = list(labels)
        names = {str(peer): name for peer, name, _ in told if name}
        teams = {str(peer): team for peer, _, team in told if team or str(peer) in self.teams}
        new = not (names.items() <= self.by_id.items() and teams.items() <= self.teams.items())
        if new and len(self.by_id) < MAX_NAMES:
            self.by_id.update(names)
            self.teams.update(teams)
            self.save()

    def save(self) -> None:
        content = json.dumps({"names": self.by_id, "teams": self.teams}, ensure_ascii=False, indent=0)
        write_durably(self.path, content.encode())
