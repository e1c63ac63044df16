"""Measured tables inside hand-written documents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path


def write_between_markers(path: Path, text: str, name: str = "measured") -> None:
    """Replace what stands between the lines `<!-- NAME: begin -->` and `<!-- NAME: end -->` of a Markdown file."""
    begin, end = (f"<!-- {name}: {which} -->\n" for which in ("begin", "end"))
    before, rest = path.read_text(encoding="utf-8").split(begin)
    after = rest.split(end)[1]
    path.write_text(before + begin + text + end + after, encoding="utf-8")


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown; all columns but the first to the right."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (heading, *rows)]
    return "\n".join([lines[0], "|---" + "|---:" * (len(heading) - 1) + "|", *lines[1:]]) + "\n"
