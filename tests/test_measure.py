"""Measuring the line between two peers."""

from __future__ import annotations

import pytest

from peer.errors import Refused
from peer.exchange import measure
from peer.exchange.measure import Measuring
from peer.exchange.ratelimit import RateLimiter
from peer.identity import Identity
from peer.swarm.memory import MemoryNetwork


async def test_what_is_measured_is_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 2 MB/s up at one side and 1 MB/s at the other, each direction is measured near its cap."""
    monkeypatch.setattr(measure, "SAMPLE_SECONDS", 2.0)
    network = MemoryNetwork()
    here, there = network.node(Identity.new()), network.node(Identity.new())
    mine = Measuring(here, RateLimiter(1e6), cool_down_seconds=0)
    Measuring(there, RateLimiter(2e6), cool_down_seconds=0)
    # What a full bucket lets through at once is part of a short sample.
    assert await mine.down(there.peer_id) == pytest.approx(2e6, rel=0.2)
    assert await mine.up(there.peer_id) == pytest.approx(1e6, rel=0.2)


async def test_nobody_is_kept_busy_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same peer is refused a second measurement soon after, with a reason."""
    monkeypatch.setattr(measure, "SAMPLE_SECONDS", 0.1)
    network = MemoryNetwork()
    here, there = network.node(Identity.new()), network.node(Identity.new())
    mine = Measuring(here, RateLimiter(None))
    Measuring(there, RateLimiter(None))
    await mine.down(there.peer_id)
    with pytest.raises(Refused, match="busy"):
        await mine.down(there.peer_id)
