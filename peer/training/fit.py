"""The micro-batch that was measured on this machine, kept in the peer's folder for the next start."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

FILE_NAME = "micro-batch.json"


def recall(folder: Path, key: str) -> int:
    """Sequences; 0 when nothing was measured under the same circumstances."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        value = json.loads((folder / FILE_NAME).read_text())
        if value.get("for") == key and isinstance(value.get("sequences"), int):
            return max(0, int(value["sequences"]))
    return 0


def keep(folder: Path, key: str, sequences: int) -> None:
    """`key`: device, memory, precision, model: whatever another micro-batch would follow from."""
    with contextlib.suppress(OSError):  # then it is measured again
        (folder / FILE_NAME).write_text(json.dumps({"for": key, "sequences": sequences}) + "\n")
