"""What the page shows now, in sections, and everybody who watches it.

A section is replaced whole, never patched: a watcher that was away, was slow or saw the coordinator restart is right
again with the next event, and what a slow watcher misses is simply overwritten, so nothing queues up for it. Each
section is encoded once, whatever the number of watchers.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from coordinator.web.document import Document

KEEPALIVE_SECONDS = 15.0
JSON = "application/json"


@dataclass(frozen=True)
class Section:
    name: str
    value: Any
    version: int  # of the board when it last changed

    @cached_property
    def document(self) -> Document:
        return Document(json.dumps(self.value, ensure_ascii=False, separators=(",", ":")).encode(), JSON)

    @cached_property
    def event(self) -> bytes:
        """As a server-sent event; JSON holds no line breaks."""
        return b"event: %s\ndata: %s\n\n" % (self.name.encode(), self.document.body)


class Board:
    def __init__(self) -> None:
        self.sections: dict[str, Section] = {}
        self.version = 0
        self._changed = asyncio.Event()
        self._all = Document(b"{}", JSON)

    def put(self, values: Mapping[str, Any]) -> None:
        """Replace sections, in one step for everybody."""
        self.version += 1
        for name, value in values.items():
            self.sections[name] = Section(name, value, self.version)
        body = b",".join(b'"%s":%s' % (it.name.encode(), it.document.body) for it in self.sections.values())
        self._all = Document(b"{%s}" % body, JSON)
        self._changed.set()
        self._changed = asyncio.Event()

    def get(self, name: str) -> Any:
        """The value of a section; an empty mapping while there is none."""
        section = self.sections.get(name)
        return section.value if section is not None else {}

    @property
    def everything(self) -> Document:
        return self._all

    async def follow(self) -> AsyncIterator[bytes]:
        """Events from now on: first all sections, then what changes, and a comment now and then to keep lines open."""
        seen = 0
        while True:
            news = [section.event for section in self.sections.values() if section.version > seen]
            seen = self.version
            yield b"".join(news) if news else b": still here\n\n"
            try:
                async with asyncio.timeout(KEEPALIVE_SECONDS):
                    while self.version == seen:
                        await self._changed.wait()
            except TimeoutError:
                pass
