"""A run without its coordinator, in memory: others lead, it comes back, two halves become one again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from configs import RunSpec
from peer.log.verify import verify
from tests.in_memory import Swarm, tiny_spec

pytestmark = pytest.mark.timeout(180)


def long_spec(**changes: dict[str, Any]) -> RunSpec:
    """Ends when the test says so; a silent leader is given up after a second and a half."""
    changes.setdefault("run", {"rounds": 0})
    changes.setdefault("timing", {"heartbeat_seconds": 0.1, "silence_seconds": 1.5, "first_deadline_seconds": 3})
    return tiny_spec(**changes)


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


async def stop_all(swarm: Swarm) -> None:
    for name in swarm.nodes:
        swarm.nodes[name].stop()
    await swarm.until(lambda: all(task.done() for task in swarm.tasks.values()), "peers have left")


@pytest.mark.parametrize("with_coordinator", [True, False], ids=["one half has the coordinator", "neither has"])
async def test_two_halves_train_on_and_become_one_again(tmp_path: Path, with_coordinator: bool) -> None:
    """Each half goes on by itself. Healed there is one chain, one state; no position is merged twice, the work of the
    side that lost is handed in again, and everybody ends up with credit for all of it."""
    async with Swarm(tmp_path, long_spec()) as swarm:
        names = ["one", "two", "three", "four"]
        swarm.start(*names)
        await swarm.begin(4)
        await swarm.until(lambda: swarm.head() >= 3, "round 3")
        if not with_coordinator:
            await swarm.kill_coordinator()
        swarm.part("one", "two")
        logs = [swarm.nodes[name].replica.log for name in names]
        parted = logs[0].head.round
        await swarm.until(lambda: min(log.head.round for log in logs) >= parted + 4, "both halves go on")
        assert logs[0].entries[parted + 2].hash != logs[3].entries[parted + 2].hash
        claimed = [log.accounts.tokens for log in logs]
        swarm.network.heal()
        await swarm.until(lambda: len({log.entries[parted + 2].hash for log in logs}) == 1, "one chain")
        if not with_coordinator:
            await swarm.start_coordinator()
        healed = swarm.nodes["one"].replica.log.head.round
        await swarm.until(lambda: swarm.leaders() == ["coordinator"], "the coordinator leads")
        await swarm.until(lambda: swarm.head() >= healed + 3, "rounds together")
        await one_log(swarm)
        log = swarm.coordinator.log
        both = claimed[0] + claimed[3] - sum(c.tokens for e in log.entries[: parted + 1] for _, c in e.contributions)
        assert log.accounts.tokens >= both, "what the losing side had merged is in the log again"
        assert len(log.accounts.accepted) * swarm.spec.data.sequence_length == log.accounts.tokens
        assert any("taken back" in event for event in swarm.events)
        await stop_all(swarm)
    for name in ("coordinator", *names):
        verdict = verify(tmp_path / name)
        assert verdict.ok, verdict.errors


async def test_a_leader_that_slept_looks_around_before_it_signs(tmp_path: Path) -> None:
    """Frozen like a stopped process: others take over. Awake again it signs nothing, follows, and is no liar."""
    async with Swarm(tmp_path, long_spec()) as swarm:
        swarm.start("one", "two", "three")
        await swarm.begin(3)
        await swarm.until(lambda: swarm.head() >= 2, "round 2")
        coordinator = swarm.coordinator
        swarm.network.freeze(coordinator.swarm.peer_id)
        coordinator.leader._stepped -= 100.0  # the clock went on
        coordinator.leader._is_awake()
        slept_at = swarm.head()
        node = swarm.nodes["one"]
        await swarm.until(lambda: node.replica.log.head.round >= slept_at + 3, "rounds under a peer")
        assert swarm.head() == slept_at or coordinator.log.head.signed.signer != coordinator.swarm.peer_id.public_key
        swarm.network.heal()
        await swarm.until(lambda: swarm.leaders() == ["coordinator"], "it leads again, after a handover")
        await swarm.until(lambda: swarm.head() >= slept_at + 6, "rounds")
        await one_log(swarm)
        assert not any("banned" in event for event in swarm.events)
        await stop_all(swarm)
