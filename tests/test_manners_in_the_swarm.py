"""A peer that pauses costs the swarm nothing: whole swarms in one process, real training, the in-memory network."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from peer.manners import orders, steward
from peer.manners.settings import ALWAYS
from peer.rounds.ranges import Ranges
from tests.in_memory import Swarm, tiny_spec

pytestmark = [pytest.mark.timeout(300)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steward, "LOOK_SECONDS", 0.05)


async def test_a_paused_peer_costs_no_deadline_and_goes_on(tmp_path: Path) -> None:
    """Paused in mid-round it hands in what it has, gives its leases back, is not waited for and follows the run; after
    `resume` it contributes again; what it trained on is credited once."""
    async with Swarm(tmp_path, tiny_spec(run={"rounds": 0}, timing={"first_deadline_seconds": 60.0})) as swarm:
        swarm.start("anna", "bert")
        await swarm.begin(2)
        await swarm.until(lambda: swarm.head() >= 2, "two rounds")
        anna = swarm.nodes["anna"]
        orders.pause(tmp_path / "anna")
        await swarm.until(lambda: anna.phase == "paused" and not anna.contributor.backlog.tokens, "paused, all merged")
        assert any("anna: paused: by your order" in event for event in swarm.events)
        assert not anna.feed.stock
        trained, head = anna.tally.tokens, swarm.head()
        started = asyncio.get_running_loop().time()
        await swarm.until(lambda: swarm.head() >= head + 4, "four rounds without it")
        assert asyncio.get_running_loop().time() - started < 60.0, "a deadline was waited for"
        await swarm.until(lambda: anna.replica.state.round >= head + 3, "it follows the run")
        assert anna.tally.tokens == trained
        member = swarm.coordinator.leader.state.members[anna.contributor.identity.peer_id.public_key]
        assert member.phase == "paused" and member.round_tokens == 0

        orders.resume(tmp_path / "anna")
        merged = anna.contributor.merged_rounds
        await swarm.until(lambda: anna.contributor.merged_rounds > merged + 1, "it contributes again")
        for node in swarm.nodes.values():
            node.stop()
        await swarm.until(lambda: all(task.done() for task in swarm.tasks.values()), "peers have left")
        accounts = swarm.coordinator.log.accounts
        own = anna.contributor.identity.peer_id.public_key
        left = anna.contributor.backlog.unsent.tokens  # what was handed in at the end comes into the log after it left
        await swarm.until(lambda: accounts.credit[own] + left == anna.tally.tokens, "all of it is credited, once")
        assert len(accounts.accepted) * swarm.spec.data.sequence_length == accounts.tokens


async def test_on_a_metered_link_nothing_large_moves(tmp_path: Path) -> None:
    """No payload comes or goes while the network is metered, nobody is sent to the peer, and it would not lead; when it
    is not any more, the peer catches up and contributes."""
    async with Swarm(tmp_path, tiny_spec(run={"rounds": 0})) as swarm:
        swarm.start("anna", "bert")
        await swarm.begin(2)
        await swarm.until(lambda: swarm.head() >= 2, "two rounds")
        anna = swarm.nodes["anna"]
        settings = tmp_path / "anna" / "settings.toml"
        # The overrides of these tests say "no"; they go before the file.
        anna_steward = anna.permission
        assert isinstance(anna_steward, steward.Steward)
        anna_steward._overrides = {**ALWAYS, "network": {}}
        settings.write_text('[network]\nmetered = "yes"\n')
        await swarm.until(lambda: anna.permission.verdict.offline and anna.phase == "paused", "offline")
        own = anna.contributor.identity.peer_id.public_key
        await asyncio.sleep(0.2)  # what was under way when it became metered may come to its end
        exchange = anna.replica.exchange
        before, head = (exchange.bytes_sent, exchange.bytes_received), swarm.head()
        await swarm.until(lambda: swarm.head() >= head + 3, "three rounds without it")
        assert (exchange.bytes_sent, exchange.bytes_received) == before
        assert anna.feed.stock == Ranges()
        assert own not in swarm.coordinator.leader.view().sources and own not in anna.helm._line()

        settings.write_text('[network]\nmetered = "no"\n')
        merged = anna.contributor.merged_rounds
        await swarm.until(lambda: anna.contributor.merged_rounds > merged, "it contributes again")
        assert exchange.bytes_received > before[1]
        assert own in swarm.coordinator.leader.view().sources and own in anna.helm._line()


async def test_a_peer_that_starts_paused_is_there_and_does_not_train(tmp_path: Path) -> None:
    """An order given before the start holds: it syncs, is paused, and the others go on."""
    orders.pause(tmp_path / "anna")
    async with Swarm(tmp_path, tiny_spec(run={"rounds": 4})) as swarm:
        swarm.start("anna", "bert")
        await swarm.begin(2)
        await swarm.until(lambda: swarm.lead.done(), "the run is finished")
        anna = swarm.nodes["anna"]
        assert anna.tally.tokens == 0
        await swarm.until(lambda: anna.replica.digest == swarm.coordinator.replica.digest, "the same weights")
