"""Measured tables inside hand-written documents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

MARKERS = ("<!-- measured: begin -->\n", "<!-- measured: end -->\n")


def write_between_markers(path: Path, text: str) -> None:
    """Replace what stands between the two markers of a Markdown file."""
    before, rest = path.read_text(encoding="utf-8").split(MARKERS[0])
    after = rest.split(MARKERS[1])[1]
    path.write_text(before + MARKERS[0] + text + MARKERS[1] + after, encoding="utf-8")


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown; all columns but the first to the right."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (heading, *rows)]
    return "\n".join([lines[0], "|---" + "|---:" * (len(heading) - 1) + "|", *lines[1:]]) + "\n"
