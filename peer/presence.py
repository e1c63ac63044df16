"""What a peer knows and says about itself."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Labels:
    """What a peer says about itself. Shown, never trusted."""

    name: str = ""
    team: str = ""
    hardware: str = ""


@dataclass
class Tally:
    """What this process did, for the summary at its end."""

    tokens: int = 0
    compute_seconds: float = 0.0
    started: float = field(default_factory=time.monotonic)
    loss: float = 0.0
    tokens_per_second: float = 0.0  # of the last steps, smoothed

    def add(self, tokens: int, loss: float, seconds: float, rest_seconds: float = 0.0) -> None:
        """One step; the rest after it belongs to this peer's speed, not to its work."""
        self.tokens += tokens
        self.compute_seconds += seconds
        self.loss = loss
        speed = tokens / (seconds + rest_seconds) if seconds > 0 else 0.0
        self.tokens_per_second = speed if not self.tokens_per_second else 0.8 * self.tokens_per_second + 0.2 * speed
