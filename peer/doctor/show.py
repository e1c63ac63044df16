"""The doctor's findings for people, and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from peer.doctor.finding import Finding
from peer.terminal.quantities import clean

_SIGNS = {
    "ok": ("ok", "green"),
    "warn": ("warning", "yellow"),
    "fail": ("problem", "bold red"),
    "skipped": ("-", "dim"),
}
_NAME, _SIGN = 13, 9  # columns


def as_dict(findings: Sequence[Finding], seconds: float) -> dict[str, Any]:
    """What `doctor --json` prints."""
    return {"ok": is_well(findings), "seconds": round(seconds, 1), "checks": [vars(finding) for finding in findings]}


def is_well(findings: Sequence[Finding]) -> bool:
    return all(finding.status != "fail" for finding in findings)


def show(findings: Sequence[Finding], console: Console | None = None) -> None:
    """One line each, and the cure below it."""
    console = console or Console(highlight=False, markup=False, emoji=False)
    for finding in findings:
        sign, style = _SIGNS[finding.status]
        line = Text(f"{finding.name:<{_NAME}}").append(f"{sign:<{_SIGN}}", style=style)
        console.print(line.append(clean(finding.message, 1000)), soft_wrap=True)
        if finding.cure:
            console.print(Text(" " * (_NAME + _SIGN) + "→ " + clean(finding.cure, 1000), style="bold"), soft_wrap=True)
    problems = sum(finding.status == "fail" for finding in findings)
    warnings = sum(finding.status == "warn" for finding in findings)
    if problems or warnings:
        console.print(f"{problems} problem(s), {warnings} warning(s)")
    else:
        console.print("all is well")
