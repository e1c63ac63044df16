"""Weights that a run leaves behind now and then, to be measured when it is over. Imports nothing of the project."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

EVERY_SECONDS = 9.5


class Keeper:
    """A file per kept vector, named after the time of the machine's clock."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._next = 0.0
        folder.mkdir(parents=True, exist_ok=True)

    def is_due(self) -> bool:
        return time.monotonic() >= self._next

    def keep(self, vector: np.ndarray[Any, Any], at: float | None = None) -> None:
        """`vector`: fp32 [parameters], as they were at `at` (default: now)."""
        at = time.monotonic() if at is None else at
        self._next = at + EVERY_SECONDS
        partial = self._folder / "partial"
        with partial.open("wb") as file:
            np.save(file, vector)
        os.replace(partial, self._folder / f"{at:.3f}.npy")


def kept(folder: Path) -> list[tuple[float, Path]]:
    """Times and files, the oldest first."""
    return sorted((float(path.stem), path) for path in folder.glob("*.npy"))
