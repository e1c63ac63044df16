"""The learning rate as a function of the run's tokens."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import RunSpec
from peer.training.schedule import learning_rate
from tests.small_models import small_spec

BATCH = 8 * 32
PEAK = 0.01


def spec(run_tokens: int = 0, **train: Any) -> RunSpec:
    made = small_spec(learning_rate=PEAK, minimum_learning_rate_fraction=0.1, **train)
    return made.model_copy(update={"run": made.run.model_copy(update={"tokens": run_tokens})})


def test_warm_up_is_linear_and_never_zero() -> None:
    """The first batch already moves the weights; the peak is reached with the batch that ends the warm-up."""
    run = spec(warmup_tokens=10 * BATCH)
    rates = [learning_rate(run, step * BATCH) for step in range(12)]
    assert rates[:10] == pytest.approx([PEAK * (step + 1) / 10 for step in range(10)])
    assert rates[10:] == [PEAK, PEAK]


def test_no_warm_up_starts_at_the_peak() -> None:
    """Without warm-up tokens the first step has the full learning rate."""
    assert learning_rate(spec(schedule="cosine", decay_tokens=1000), 0) == PEAK


@pytest.mark.parametrize(("schedule", "middle"), [("cosine", 0.55), ("linear", 0.55)])
def test_decay_ends_at_the_minimum(schedule: str, middle: float) -> None:
    """Decay goes from the peak over the mean of both ends to the minimum at `decay_tokens`, and stays there."""
    run = spec(schedule=schedule, warmup_tokens=1000, decay_tokens=11_000)
    assert learning_rate(run, 1000) == PEAK
    assert learning_rate(run, 6000) == pytest.approx(PEAK * middle)
    assert learning_rate(run, 11_000) == pytest.approx(PEAK * 0.1)
    assert learning_rate(run, 10**15) == pytest.approx(PEAK * 0.1)


def test_cosine_is_above_linear_at_first() -> None:
    """The cosine decays later than the straight line: higher in the first half, lower in the second."""
    cosine, linear = (spec(schedule=name, decay_tokens=1000) for name in ("cosine", "linear"))
    assert learning_rate(cosine, 250) > learning_rate(linear, 250)
    assert learning_rate(cosine, 750) < learning_rate(linear, 750)


def test_decay_length_comes_from_the_run() -> None:
    """Without `decay_tokens` the decay lasts the run's tokens; without those either, the rate stays at its peak."""
    run = spec(run_tokens=2000, schedule="cosine")
    assert learning_rate(run, 2000) == pytest.approx(PEAK * 0.1)
    assert learning_rate(spec(schedule="cosine"), 10**12) == PEAK
    assert learning_rate(spec(run_tokens=2000, schedule="constant"), 2000) == PEAK


def test_warm_up_longer_than_the_decay() -> None:
    """A warm-up that ends after the decay is no division by zero: it goes to the minimum directly."""
    run = spec(schedule="linear", warmup_tokens=2000, decay_tokens=1000)
    assert learning_rate(run, 1999) <= PEAK
    assert learning_rate(run, 2001) == pytest.approx(PEAK * 0.1)


@given(
    tokens=st.integers(0, 10**16),
    schedule=st.sampled_from(["constant", "cosine", "linear"]),
    warmup=st.integers(0, 10**6),
    decay=st.integers(0, 10**12),
)
def test_rate_is_positive_and_at_most_the_peak(tokens: int, schedule: str, warmup: int, decay: int) -> None:
    """Whatever the run spec says, the rate lies above zero and never above the peak."""
    assert 0 < learning_rate(spec(schedule=schedule, warmup_tokens=warmup, decay_tokens=decay), tokens) <= PEAK


@given(tokens=st.integers(0, 20_000), later=st.integers(0, 20_000), schedule=st.sampled_from(["cosine", "linear"]))
def test_rate_falls_after_the_warm_up(tokens: int, later: int, schedule: str) -> None:
    """After the warm-up the rate never rises."""
    run = spec(schedule=schedule, warmup_tokens=1000, decay_tokens=15_000)
    first = learning_rate(run, 1000 + tokens)
    assert learning_rate(run, 1000 + tokens + later) <= first * (1 + 1e-12)
