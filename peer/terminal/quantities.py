"""Numbers and strangers' text, written for people: short, with a unit, and never able to take over a terminal."""

from __future__ import annotations

import math


def count(value: float) -> str:
    """1234 -> '1,234'; 45678 -> '45.7k'; 1234567 -> '1.23M'. Three significant digits from 10,000 on."""
    if not math.isfinite(value):
        return "?"
    if abs(value) < 9_999.5:
        return f"{value:,.0f}"
    return _scaled(value, ("k", "M", "B", "T"))


def size(value_bytes: float) -> str:
    """Bytes, in decimal units as links are sold: 1234567 -> '1.23 MB'."""
    if not math.isfinite(value_bytes):
        return "?"
    if abs(value_bytes) < 999.5:
        return f"{value_bytes:.0f} B"
    return _scaled(value_bytes, (" kB", " MB", " GB", " TB", " PB"))


def link_rate(bytes_per_second: float) -> str:
    """As links are sold: 250000 -> '2.0 Mbit/s'."""
    if not math.isfinite(bytes_per_second):
        return "?"
    megabits = bytes_per_second * 8 / 1e6
    return f"{megabits:.1f} Mbit/s" if megabits < 99.95 else f"{megabits:,.0f} Mbit/s"


def duration(seconds: float) -> str:
    """75 -> '1:15'; 3.21 -> '3.2 s'; 100000 -> '1 d 3 h'."""
    if not math.isfinite(seconds) or seconds < 0:
        return "?"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours < 24:
        return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
    return f"{hours // 24} d {hours % 24} h"


def loss(value: float | None) -> str:
    """Nats per token: '3.214'; a dash when there is none."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.3f}"


def clean(text: str, limit: int = 500) -> str:
    """One line of printable characters: names, samples and refusals come from strangers, and terminals obey escapes."""
    shortened = text if len(text) <= limit else text[:limit] + "…"
    return "".join(
        character if character.isprintable() else " " if character.isspace() else "\N{REPLACEMENT CHARACTER}"
        for character in shortened
    )


def _scaled(value: float, units: tuple[str, ...]) -> str:
    exponent = min(max(1, int(math.log10(abs(value)) + 1e-9) // 3), len(units))
    scaled = value / 1000**exponent
    if abs(scaled) >= 999.5 and exponent < len(units):
        exponent, scaled = exponent + 1, scaled / 1000
    digits = 2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0
    return f"{scaled:.{digits}f}{units[exponent - 1]}"
