"""How fast things move, from figures that only grow."""

from __future__ import annotations

from collections import deque

WINDOW_SECONDS = 10.0


class Pace:
    """Bytes per second over the last seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int, int]] = deque()

    def look(self, now: float, sent: int, received: int) -> tuple[float, float]:
        """Totals as they are now; bytes per second up and down since the oldest look within the window."""
        self._seen.append((now, sent, received))
        while len(self._seen) > 2 and now - self._seen[1][0] >= WINDOW_SECONDS:
            self._seen.popleft()
        then, sent_then, received_then = self._seen[0]
        elapsed = now - then
        return ((sent - sent_then) / elapsed, (received - received_then) / elapsed) if elapsed > 0 else (0.0, 0.0)
