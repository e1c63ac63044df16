"""What a check finds, in one line, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail", "skipped"]


@dataclass(frozen=True)
class Finding:
    name: str
    status: Status
    message: str
    cure: str = ""  # what to do; empty when there is nothing to do

    def __post_init__(self) -> None:
        assert self.cure or self.status in ("ok", "skipped"), f"{self.name}: a complaint without a cure helps nobody"


def ok(name: str, message: str) -> Finding:
    return Finding(name, "ok", message)


def warn(name: str, message: str, cure: str) -> Finding:
    return Finding(name, "warn", message, cure)


def fail(name: str, message: str, cure: str) -> Finding:
    return Finding(name, "fail", message, cure)


def skipped(name: str, message: str) -> Finding:
    return Finding(name, "skipped", message)
