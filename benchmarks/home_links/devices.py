"""Which device a plan asks for: the pretended one, or one that trains for real. Imports nothing of the project."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.home_links.device import Device, Model, Notes

if TYPE_CHECKING:
    from benchmarks.home_links.student import Student


def device_of(plan: dict[str, Any], notes: Notes) -> Device | Student:
    if "workload" not in plan:
        return Device(Model(), plan["rank"], notes)
    from benchmarks.home_links.student import Student  # wants transformers

    return Student(plan, notes)
