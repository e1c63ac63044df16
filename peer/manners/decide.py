"""May this peer train now, and why not. Pure: settings, facts and times come in, a verdict with its reason goes out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime

from peer.manners import schedule
from peer.manners.orders import Order
from peer.manners.settings import Settings


@dataclass(frozen=True)
class Facts:
    """What the machine is doing. None: it has no such thing, or does not tell."""

    on_battery: bool | None = None
    cpu_celsius: float | None = None
    gpu_celsius: float | None = None
    gpu_user: str | None = None  # another program that uses the GPU
    metered: bool | None = None


@dataclass(frozen=True)
class Verdict:
    reason: str = ""  # why not to train; empty: go on
    offline: bool = False  # nor move anything large over the link
    lingers: bool = False  # comes and goes by itself: wait until it has been gone for a while


FREE = Verdict()


@dataclass(frozen=True)
class Conduct:
    """What holds now, and when it was last found so (monotonic seconds)."""

    verdict: Verdict = FREE
    seen_seconds: float = 0.0


def judge(settings: Settings, facts: Facts, order: Order | None, now: datetime) -> Verdict:
    """The first reason against training; `now` is local time. The owner's word comes first."""
    if order is not None and order.holds(now.timestamp()):
        return Verdict(f"by your order{_until(order, now)}; `commonweights resume` ends it")
    metered = settings.network.metered
    if metered == "yes" or (metered == "auto" and facts.metered):
        return Verdict("the network is metered", offline=True, lingers=metered == "auto")
    hours = settings.schedule.hours
    if not schedule.is_open(hours, now):
        return Verdict(f"outside its hours; goes on at {schedule.opens(hours, now)}")
    return _about_the_machine(settings, facts)


def _about_the_machine(settings: Settings, facts: Facts) -> Verdict:
    pause = settings.pause
    if pause.on_battery and facts.on_battery:
        return Verdict("the machine runs on its battery", lingers=True)
    if pause.gpu_in_use and facts.gpu_user is not None:
        return Verdict(f"another program uses the GPU ({facts.gpu_user})", lingers=True)
    for name, limit, found in (
        ("processor", pause.cpu_celsius, facts.cpu_celsius),
        ("GPU", pause.gpu_celsius, facts.gpu_celsius),
    ):
        if limit and found is not None and found >= limit:
            return Verdict(f"the {name} is hot ({limit:.0f} °C or more)", lingers=True)
    return FREE


def follow(before: Conduct, verdict: Verdict, calm_seconds: float, now_seconds: float) -> Conduct:
    """What holds after this verdict: a lingering reason must have been gone for `calm_seconds`."""
    if verdict.reason:
        return Conduct(verdict, now_seconds)
    if before.verdict.lingers and now_seconds - before.seen_seconds < calm_seconds:
        return before
    return Conduct(FREE, now_seconds)


def rest_seconds(duty_percent: int, worked_seconds: float) -> float:
    """How long to rest after so much work, that work is `duty_percent` of both together."""
    return worked_seconds * (100 / duty_percent - 1)


def _until(order: Order, now: datetime) -> str:
    if order.until_seconds is None:
        return ""
    day = "" if order.until_seconds - now.timestamp() < 24 * 3600 else "%a "
    return time.strftime(f" until {day}%H:%M", time.localtime(order.until_seconds))
