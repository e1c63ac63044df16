"""Measured tables inside hand-written documents."""

from __future__ import annotations

from pathlib import Path

MARKERS = ("<!-- measured: begin -->\n", "<!-- measured: end -->\n")


def write_between_markers(path: Path, text: str) -> None:
    """Replace what stands between the two markers of a Markdown file."""
    before, rest = path.read_text(encoding="utf-8").split(MARKERS[0])
    after = rest.split(MARKERS[1])[1]
    path.write_text(before + MARKERS[0] + text + MARKERS[1] + after, encoding="utf-8")
