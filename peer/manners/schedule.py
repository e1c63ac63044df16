"""Hours of the week, as people write them: "22:00-07:00", "Mon-Fri 19:00-08:00", "Sat,Sun 00:00-24:00".

Local time of day. A window that crosses midnight belongs to the day on which it begins.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_DAY_MINUTES = 24 * 60
_FORM = re.compile(r"(?:(?P<days>[A-Za-z,\- ]+?)\s+)?(\d{1,2}):(\d\d)\s*-\s*(\d{1,2}):(\d\d)")


@dataclass(frozen=True)
class Window:
    days: frozenset[int]  # 0: Monday; on which it begins
    start: int  # minutes since midnight, 0 to 1439
    minutes: int  # how long it lasts, 1 to 1440

    @classmethod
    def parse(cls, text: str) -> Window:
        """Raises ValueError, which says how it is written."""
        match = _FORM.fullmatch(text.strip())
        if match is None:
            raise ValueError(
                f'{text!r}: write "22:00-07:00", or with days: "Mon-Fri 22:00-07:00", "Sat,Sun 00:00-24:00"'
            )
        start, stop = _minute(match[2], match[3]), _minute(match[4], match[5])
        if start in (_DAY_MINUTES, stop):
            raise ValueError(f'{text!r}: no time at all; a whole day is "00:00-24:00"')
        return cls(_days(match["days"] or "Mon-Sun"), start, (stop - start) % _DAY_MINUTES or _DAY_MINUTES)

    def contains(self, now: datetime) -> bool:
        minute = now.hour * 60 + now.minute
        began_today = now.weekday() in self.days and self.start <= minute < self.start + self.minutes
        yesterday = (now.weekday() - 1) % 7
        return began_today or (yesterday in self.days and minute + _DAY_MINUTES < self.start + self.minutes)

    def next_start(self, now: datetime) -> datetime:
        """The first beginning after `now`."""
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        starts = (midnight + timedelta(days=day, minutes=self.start) for day in range(8))
        return next(start for start in starts if start > now and start.weekday() in self.days)


def is_open(windows: Sequence[Window], now: datetime) -> bool:
    """No window at all means always."""
    return not windows or any(window.contains(now) for window in windows)


def opens(windows: Sequence[Window], now: datetime) -> str:
    """When the next window begins, in words: "22:00", or "Sat 09:00" if that is not within a day."""
    start = min(window.next_start(now) for window in windows)
    clock = f"{start:%H:%M}"
    return clock if start - now < timedelta(days=1) else f"{DAYS[start.weekday()]} {clock}"


def _minute(hour: str, minute: str) -> int:
    value = int(hour) * 60 + int(minute)
    if int(minute) > 59 or value > _DAY_MINUTES:
        raise ValueError(f"{hour}:{minute} is no time of day")
    return value


def _days(text: str) -> frozenset[int]:
    found: set[int] = set()
    for part in text.replace(" ", "").split(","):
        first, _, last = part.partition("-")
        start, stop = _day(first), _day(last or first)
        found.update((start + offset) % 7 for offset in range((stop - start) % 7 + 1))
    return frozenset(found)


def _day(name: str) -> int:
    try:
        return DAYS.index(name[:3].capitalize())
    except ValueError:
        raise ValueError(f"{name!r} is no day; write {', '.join(DAYS)}") from None
