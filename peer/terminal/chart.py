"""Loss curves in a terminal: braille dots, two by four to a character, with labelled axes.

Where the terminal cannot show braille, one character per point. Curves share the characters of the canvas, so where two
cross, the later one gives the colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from peer.terminal.views import Curve

_ABSURD = 1e9
_BARS = "▁▂▃▄▅▆▇█"
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # by row, column; U+2800 is the empty cell


@dataclass(frozen=True)
class Line:
    points: Curve
    style: str
    mark: str = "*"  # without braille


def draw(lines: Sequence[Line], width: int, height: int, *, braille: bool = True) -> list[Text]:
    """`height` rows of at most `width` columns, the last row being the labels of the x axis.

    Points that are not finite, or absurd, are left out. Without any point, or without room, the list is empty.
    """
    kept = [(line, [(x, y) for x, y in line.points if abs(y) < _ABSURD]) for line in lines]
    points = [point for _, some in kept for point in some]
    if not points or height < 3:
        return []
    low, high = min(y for _, y in points), max(y for _, y in points)
    if high - low < 1e-6 * max(abs(high), 1.0):
        spread = 0.02 * max(abs(high), 1.0)
        low, high = low - spread, high + spread
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    labels = [f"{high:.2f}", f"{low:.2f}"]
    margin = max(map(len, labels))
    columns, rows = width - margin - 2, height - 1
    if columns < 8:
        return []

    canvas = _Canvas(columns, rows, braille)
    for line, some in kept:
        canvas.line(_thinned(some, 4 * columns), line, (first, last), (low, high))

    result = []
    for row in range(rows):
        label = labels[0] if row == 0 else labels[1] if row == rows - 1 else ""
        tick = ("┤" if label else "│") if braille else "|"
        result.append(Text(f"{label:>{margin}} {tick}", style="dim").append_text(canvas.row(row)))
    left, right = f"round {first}", f"{last}"
    gap = columns - len(left) - len(right)
    axis = left + " " * gap + right if gap > 0 and last > first else left
    result.append(Text(" " * (margin + 2) + axis[:columns], style="dim"))
    return result


def sparkline(points: Curve, most: int) -> str:
    """The last `most` values as one row of bars, the lowest and the highest filling the height."""
    values = [y for _, y in points if abs(y) < _ABSURD][-most:]
    if len(values) < 2:
        return ""
    low, high = min(values), max(values)
    top = len(_BARS) - 1
    return "".join(_BARS[round((value - low) / (high - low) * top) if high > low else 0] for value in values)


class _Canvas:
    """Dots, `columns` by `rows` characters."""

    def __init__(self, columns: int, rows: int, braille: bool) -> None:
        self._braille = braille
        self._across, self._down = (2, 4) if braille else (1, 1)
        self._columns, self._rows = columns, rows
        self._cells: dict[tuple[int, int], tuple[int, Line]] = {}  # (row, column) -> dots, owner

    def line(self, points: Curve, line: Line, across: tuple[int, int], up: tuple[float, float]) -> None:
        """Straight strokes from point to point; the ranges are those of the canvas' edges."""
        width, height = self._columns * self._across - 1, self._rows * self._down - 1
        before: tuple[int, int] | None = None
        for x, y in points:
            here = (
                round((x - across[0]) / max(across[1] - across[0], 1) * width),
                round((up[1] - y) / (up[1] - up[0]) * height),
            )
            start = before or here
            steps = max(abs(here[0] - start[0]), abs(here[1] - start[1]), 1)
            for step in range(steps + 1):
                share = step / steps
                self._dot(
                    round(start[0] + (here[0] - start[0]) * share), round(start[1] + (here[1] - start[1]) * share), line
                )
            before = here

    def _dot(self, x: int, y: int, line: Line) -> None:
        cell = (y // self._down, x // self._across)
        dots = self._cells.get(cell, (0, line))[0]
        self._cells[cell] = (dots | _DOTS[y % self._down][x % self._across], line)

    def row(self, row: int) -> Text:
        text = Text(no_wrap=True)
        for column in range(self._columns):
            cell = self._cells.get((row, column))
            if cell is None:
                text.append(" ")
            else:
                text.append(chr(0x2800 + cell[0]) if self._braille else cell[1].mark, style=cell[1].style)
        return text


def _thinned(points: Curve, most: int) -> Curve:
    """At most `most` points: the means of equal runs of them."""
    if len(points) <= most:
        return points
    run = -(-len(points) // most)
    groups = [points[start : start + run] for start in range(0, len(points), run)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]
