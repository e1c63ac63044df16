"""Showing a run while it goes on: a live screen on a terminal, one plain line per round anywhere else.

Everything goes to stderr, so that the last line of stdout can be JSON. The screen is redrawn by the caller's thread
when there is something new to show: no refresh thread, at the price of a clock that stands still in between.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from types import TracebackType
from typing import TextIO

from rich.console import Console as RichConsole
from rich.console import Group
from rich.live import Live
from rich.text import Text

from peer.terminal import screens
from peer.terminal.quantities import clean
from peer.terminal.views import JoinView, Summary, SwarmView

_KEPT_EVENTS = 100
_PLAINER = str.maketrans({"·": "-", "→": ">", "…": ".", "×": "x"})


class Console:
    """A context manager; on leaving it the terminal is as it was, with the last picture left standing.

    Args:
        stream: where to write; stderr if not given.
        live: redraw in place; if not given, whether the stream is a capable terminal.
    """

    def __init__(self, stream: TextIO | None = None, *, live: bool | None = None) -> None:
        self._rich = RichConsole(file=stream or sys.stderr, markup=False, highlight=False, emoji=False)
        capable = self._rich.is_terminal and not self._rich.is_dumb_terminal
        self._is_live = capable if live is None else live
        self._braille = self._rich.encoding.lower().startswith("utf")
        self._live: Live | None = None
        self._events: deque[screens.Event] = deque(maxlen=_KEPT_EVENTS)
        self._view: SwarmView | JoinView | None = None
        self._shown_round = -1

    def __enter__(self) -> Console:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop(keep=True)

    def show(self, view: SwarmView | JoinView) -> None:
        """Draw the view; without a terminal, a line when its round is another one than last time."""
        self._view = view
        if self._is_live:
            self._redraw()
        elif view.round != self._shown_round:
            self._shown_round = view.round
            self._line(screens.round_line(view) if isinstance(view, SwarmView) else screens.join_line(view))

    @property
    def join_view(self) -> JoinView | None:
        """What was shown last, by a peer."""
        return self._view if isinstance(self._view, JoinView) else None

    def event(self, text: str, *, warning: bool = False) -> None:
        """Something worth a line: it scrolls below the table, or is printed where there is no screen."""
        self._events.append(screens.Event(time.time(), text, "yellow" if warning else ""))
        if self._is_live and self._view is not None:
            self._redraw()
        else:
            self._line(("warning: " if warning else "") + text)

    def note(self, text: str) -> None:
        """An event for the screen only: where there is none, the lines of the rounds say it already."""
        if self._is_live:
            self.event(text)

    def summary(self, result: Summary) -> None:
        """Replace the live screen by the final one."""
        self._stop(keep=False)
        for line in self._writable(screens.summary(result, self._rich.width, braille=self._braille)):
            self._rich.print(line, soft_wrap=True)

    def log_handler(self) -> logging.Handler:
        """A handler whose lines go above the live screen instead of through it."""
        return _Handler(self)

    def _line(self, text: str) -> None:
        for line in self._writable([Text(clean(text, 2000))]):
            self._rich.print(line, soft_wrap=True)

    def _redraw(self) -> None:
        assert self._view is not None
        width, height = self._rich.size
        # The last line stays free: a terminal scrolls when it is written to the end.
        if isinstance(self._view, SwarmView):
            lines = screens.swarm(self._view, list(self._events), width, height - 1, braille=self._braille)
        else:
            lines = screens.join(self._view, list(self._events), width, height - 1, braille=self._braille)
        if self._live is None:
            # stdout is for results: it is not redirected into the screen.
            self._live = Live(console=self._rich, auto_refresh=False, redirect_stdout=False, vertical_overflow="crop")
            self._live.start()
        self._live.update(Group(*self._writable(lines)), refresh=True)

    def _writable(self, lines: list[Text]) -> list[Text]:
        """The same, character for character, in what the stream's encoding can express."""
        if not self._braille:
            for line in lines:
                plain = line.plain.translate(_PLAINER)
                line.plain = plain.encode(self._rich.encoding, "replace").decode(self._rich.encoding)
        return lines

    def _stop(self, *, keep: bool) -> None:
        if self._live is not None:
            self._live.transient = not keep
            self._live.stop()
            self._live = None


class _Handler(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            for line in self.format(record).splitlines():
                self._console._line(line)
        except Exception:
            self.handleError(record)
