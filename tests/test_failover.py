"""A run without its coordinator, in memory: others lead, it comes back, two halves become one again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from peer.log.verify import verify
from tests.in_memory import Swarm, tiny_spec

pytestmark = pytest.mark.timeout(180)


def long_spec(**changes: dict[str, Any]) -> Any:
    """Ends when the test says so; a silent leader is given up after a second and a half."""
    timing = {"heartbeat_seconds": 0.1, "silence_seconds": 1.5, "first_deadline_seconds": 3}
    return tiny_spec(**{"run": {"rounds": 0}, "timing": timing, **changes})


async def one_log(swarm: Swarm) -> None:
    """Everybody has the same head and the same weights, some time soon."""

    def same() -> bool:
        replicas = [swarm.coordinator.replica, *(node.replica for node in swarm.nodes.values())]
        return len({(it.log.head.hash, it.digest, it.state.round == it.log.head.round) for it in replicas}) == 1

    swarm.coordinator.leader.pause(True)
    await swarm.until(same, "one log, one state")


async def test_rounds_go_on_without_the_coordinator_and_it_leads_again_when_it_is_back(tmp_path: Path) -> None:
    """Killed in mid-run: a peer takes over, everybody's credit grows, the coordinator follows, asks and leads."""
    async with Swarm(tmp_path, long_spec()) as swarm:
        swarm.start("one", "two", "three")
        await swarm.begin(3)
        await swarm.until(lambda: swarm.head() >= 2, "round 2")
        before = dict(swarm.coordinator.log.accounts.credit)
        await swarm.kill_coordinator()
        node = swarm.nodes["one"]
        killed_at = node.replica.log.head.round
        await swarm.until(lambda: node.replica.log.head.round >= killed_at + 4, "rounds under a peer")
        assert len(swarm.leaders()) == 1 and swarm.leaders() != ["coordinator"]
        await swarm.start_coordinator()
        await swarm.until(lambda: swarm.leaders() == ["coordinator"], "the coordinator leads again")
        returned_at = swarm.head()
        await swarm.until(lambda: swarm.head() >= returned_at + 3, "rounds under the coordinator")
        await one_log(swarm)
        log = swarm.coordinator.log
        signers = [entry.signed.signer for entry in log.entries]
        own = swarm.coordinator.swarm.peer_id.public_key
        assert signers[1] == signers[-1] == own and len(set(signers)) == 2
        terms = [entry.record.term for entry in log.entries]
        assert terms == sorted(terms) and len(set(terms[1:])) == 3
        assert all(log.accounts.credit[key] > tokens for key, tokens in before.items())
        for name in swarm.nodes:
            swarm.nodes[name].stop()
        await swarm.until(lambda: all(task.done() for task in swarm.tasks.values()), "peers have left")
    for name in ("coordinator", "one", "two", "three"):
        verdict = verify(tmp_path / name)
        assert verdict.ok, verdict.errors
