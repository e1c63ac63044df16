"""The pure parts of the benchmark of real training: the pace of its devices, and how its curves are compared."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as some

from benchmarks.home_links.pace import step_end
from benchmarks.home_links.training import OURS, Setting
from benchmarks.home_links.training_report import seconds_to
from benchmarks.home_links.workload import SPEEDS

CURVE = [(0.0, 5.0), (10.0, 3.0), (20.0, 3.5), (30.0, 2.0)]


@given(some.lists(some.floats(0.01, 1.9), min_size=1, max_size=50))
def test_a_machine_that_is_late_now_and_then_keeps_the_pace_on_the_whole(compute_seconds: list[float]) -> None:
    """Steps back to back never run ahead of the device, and what is late is made up for, up to one step."""
    now, behind, lost = 0.0, 0.0, 0.0
    for compute in compute_seconds:
        end, late = step_end(now, now + compute, 1.0, behind)
        assert end >= now + compute
        lost += max(0.0, now + compute - (now - behind + 1.0) - 1.0)
        now, behind = end, late
    assert now - behind == pytest.approx(len(compute_seconds) + lost)


def test_time_spent_waiting_is_not_made_up_for() -> None:
    """A step that starts late because its peer waited takes its full time all the same."""
    assert step_end(started=100.0, computed=100.2, seconds=1.0, behind=0.0) == (101.0, 0.0)


def test_when_a_curve_reaches_a_loss_is_read_between_its_points() -> None:
    """The first crossing counts; a loss that is never reached takes for ever."""
    assert seconds_to(CURVE, 4.0) == pytest.approx(5.0)
    assert seconds_to(CURVE, 3.0) == pytest.approx(10.0)
    assert seconds_to(CURVE, 2.5) == pytest.approx(20.0 + 10.0 * 1.0 / 1.5)
    assert seconds_to(CURVE, 6.0) == 0.0
    assert math.isinf(seconds_to(CURVE, 1.0))


@pytest.mark.parametrize("sharing", ["steps", "batches", "equal"])
def test_peers_that_share_by_speed_are_done_at_the_same_time(sharing: str) -> None:
    """By steps or by batches nobody waits; with equal steps the fastest does for three quarters of the time."""
    setting = Setting(OURS, 1e-3, 15.0, sharing=sharing)  # type: ignore[arg-type]
    busy = [setting.steps(rank) * setting.step_seconds(rank) for rank in range(len(SPEEDS))]
    assert max(busy) == pytest.approx(15.0)
    assert min(busy) == pytest.approx(15.0 / 4 if sharing == "equal" else 15.0)
    assert sum(setting.share(rank) for rank in range(len(SPEEDS))) == pytest.approx(1.0)
