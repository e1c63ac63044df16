"""A run without its coordinator, in memory: others lead, it comes back, two halves become one again."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any, cast

import pytest

from configs import RunSpec
from coordinator.api.admin import AdminService
from peer.errors import VerificationError
from peer.identity import PeerId
from peer.log.verify import verify
from peer.swarm import Handler
from protos import coordinator_pb2, log_pb2, swarm_pb2
from protos.signing import body_hash, open_signed, sign
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


async def test_what_the_organiser_orders_while_another_leads_happens_when_the_coordinator_does(tmp_path: Path) -> None:
    """A coordinator that comes back is asked for the end at once: it says when, leads, and signs the last record."""
    async with Swarm(tmp_path, long_spec()) as swarm:
        swarm.start("one", "two")
        await swarm.begin(2)
        await swarm.until(lambda: swarm.head() >= 2, "round 2")
        await swarm.kill_coordinator()
        killed_at = swarm.nodes["one"].replica.log.head.round
        await swarm.until(lambda: swarm.nodes["one"].replica.log.head.round > killed_at, "a round under a peer")
        await swarm.start_coordinator()
        reply = await AdminService(swarm.coordinator).Finish(coordinator_pb2.FinishRequest(), None)
        assert "another node leads" in reply.message and not swarm.coordinator.log.finished
        await swarm.finish()
        log = swarm.coordinator.log
        assert log.head.record.final and log.head.signed.signer == swarm.coordinator.swarm.peer_id.public_key
        assert {node.replica.log.head.hash for node in swarm.nodes.values()} == {log.head.hash}


async def test_who_is_far_behind_applies_all_of_the_log_before_it_leads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when that takes longer than a leader may be silent: nothing that was accepted is given up for it."""
    async with Swarm(tmp_path, long_spec()) as swarm:
        swarm.start("one")
        await swarm.begin(1)
        await swarm.until(lambda: swarm.head() >= 8, "round 8")
        await swarm.kill("one")
        coordinator = swarm.coordinator
        await swarm.until(lambda: coordinator.replica.state.round == swarm.head(), "it is applied")
        apply, head = coordinator.apply, coordinator.log.head

        async def slowly() -> None:
            await asyncio.sleep(2.0 if coordinator.replica.state.round == 0 else 0.2)  # one record alone takes too long
            await apply()

        monkeypatch.setattr(coordinator, "apply", slowly)
        coordinator.leader.resign()
        await coordinator.replica.roll_back(0)
        await swarm.until(lambda: swarm.leaders() == ["coordinator"], "it leads again")
        assert coordinator.log.head is head and coordinator.replica.state.round == head.round


@pytest.mark.parametrize("with_coordinator", [True, False], ids=["one half has the coordinator", "neither has"])
async def test_two_halves_train_on_and_become_one_again(tmp_path: Path, with_coordinator: bool) -> None:
    """Each half goes on by itself. Healed there is one chain, one state; no position is merged twice, the work of the
    side that lost is handed in again, and everybody ends up with credit for all of it."""
    # Rounds long enough that those who were left behind can catch up with one that goes on alone.
    async with Swarm(tmp_path, long_spec(round={"inner_steps": 24})) as swarm:
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
        log = swarm.coordinator.log
        both = claimed[0] + claimed[3] - sum(c.tokens for e in log.entries[: parted + 1] for _, c in e.contributions)
        await swarm.until(lambda: swarm.head() >= healed + 3, "rounds together")
        await swarm.until(lambda: log.accounts.tokens >= both, "what the losing side had merged is in the log again")
        await one_log(swarm)
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
        coordinator.leader.stepped -= 100.0  # the clock went on
        coordinator.leader.is_awake()
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


def tell_two_tales(swarm: Swarm, victim: PeerId, round_: int) -> None:
    """From `round_` on the coordinator shows `victim` another record of that round than everybody else."""
    replica, leader = swarm.coordinator.replica, swarm.coordinator.leader
    tale: list[log_pb2.Signed] = []

    def retold(signed: log_pb2.Signed) -> log_pb2.Signed:
        record = open_signed(signed, log_pb2.Record)
        if record.round == round_ and not tale:
            record.time_seconds += 1.0
            tale.append(sign(record, leader.identity.private_key))
        return tale[0] if record.round == round_ else signed

    async def records(sender: PeerId, body: bytes) -> bytes:
        reply = swarm_pb2.RecordsReply.FromString(await replica._on_records(sender, body))
        if sender == victim:
            reply = swarm_pb2.RecordsReply(records=[retold(signed) for signed in reply.records])
        return reply.SerializeToString()

    async def watch(sender: PeerId, body: bytes) -> bytes:
        view = swarm_pb2.WatchReply.FromString(await honest(sender, body))
        if sender == victim and view.head_round == round_:
            view.head_hash = body_hash(retold(replica.log.entries[round_].signed))
        return view.SerializeToString()

    own = swarm.ticket.coordinator
    node = swarm.network.find(own, own)
    honest = cast(Handler, node.services._services["watch"].handler)
    for method, handler in {"records": records, "watch": watch}.items():
        del node.services._services[method]
        node.serve(method, handler, max_request_bytes=1024)


async def test_a_sequencer_that_tells_two_tales_is_banned_and_the_run_goes_on(tmp_path: Path) -> None:
    """Different records to different peers: they compare heads, prove it, ban the signer, and one of them leads. The
    proof is in the log, where late joiners and `verify` find it."""
    async with Swarm(tmp_path, long_spec()) as swarm:
        swarm.start("one", "two", "three")
        await swarm.begin(3)
        await swarm.until(lambda: swarm.head() >= 2, "round 2")
        tell_two_tales(swarm, swarm.peer_id("two"), swarm.head() + 2)
        liar = swarm.ticket.coordinator
        logs = [node.replica.log for node in swarm.nodes.values()]
        await swarm.until(
            lambda: all(liar.public_key in log.accounts.banned for log in logs), "the proof is in the log"
        )
        banned_at = logs[0].head.round
        await swarm.until(lambda: min(log.head.round for log in logs) >= banned_at + 3, "rounds go on")
        assert len({log.entries[banned_at].hash for log in logs}) == 1
        assert any(f"{liar.short} signed two different records" in event for event in swarm.events)
        await stop_all(swarm)
    for name in ("one", "two", "three"):
        verdict = verify(tmp_path / name)
        assert verdict.ok, verdict.errors


async def test_a_peer_that_starts_while_the_coordinator_is_away_joins_through_others(tmp_path: Path) -> None:
    """It knew some of them before; it catches up from whoever leads and has credit in new rounds."""
    async with Swarm(tmp_path, long_spec()) as swarm:
        swarm.start("one", "two", "three")
        await swarm.begin(3)
        await swarm.until(lambda: swarm.head() >= 2, "round 2")
        contacts = swarm.nodes["three"].helm.contacts.addresses
        await swarm.until(lambda: len(contacts) >= 2, "it knows the others")
        swarm.nodes["three"].stop()
        await swarm.until(lambda: swarm.tasks["three"].done(), "three has left")
        await swarm.kill_coordinator()
        log = swarm.nodes["one"].replica.log
        left_at = log.head.round
        await swarm.until(lambda: log.head.round >= left_at + 3, "rounds under a peer")
        swarm.start("three")
        key, back_at = swarm.peer_id("three").public_key, log.head.round
        await swarm.until(lambda: log.accounts.peers[key].last_round > back_at, "three contributes again")
        await stop_all(swarm)


async def test_a_coordinator_whose_folder_is_lost_begins_it_again_from_the_peers(tmp_path: Path) -> None:
    """Nothing is left but its key: log, state and ledger come back from the peers, and it leads again."""
    async with Swarm(tmp_path, long_spec(snapshots={"every_rounds": 2})) as swarm:
        swarm.start("one", "two")
        await swarm.begin(2)
        await swarm.until(lambda: swarm.head() >= 3, "round 3")
        await swarm.kill_coordinator()
        log = swarm.nodes["one"].replica.log
        lost_at, credit = log.head.round, dict(log.accounts.credit)
        await swarm.until(lambda: log.head.round >= lost_at + 6, "rounds under a peer")
        folder = tmp_path / "coordinator"
        key = (folder / "identity.key").read_bytes()
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / "identity.key").write_bytes(key)
        (folder / "identity.key").chmod(0o600)
        await swarm.start_coordinator(recover=True)
        await swarm.until(lambda: swarm.leaders() == ["coordinator"], "the coordinator leads again")
        returned_at = swarm.head()
        await swarm.until(lambda: swarm.head() >= returned_at + 2, "rounds")
        await one_log(swarm)
        accounts = swarm.coordinator.log.accounts
        assert all(accounts.credit[peer] > tokens for peer, tokens in credit.items())
        assert not any("taken back" in event for event in swarm.events if event.startswith("coordinator: "))
        await stop_all(swarm)
    verdict = verify(tmp_path / "coordinator")
    assert verdict.ok, verdict.errors


@pytest.mark.parametrize("damage", ["damaged", "missing"])
async def test_a_log_that_lost_its_end_is_completed_from_peers(tmp_path: Path, damage: str) -> None:
    """The coordinator's last records are torn, or gone: it fetches them again, and forks nothing."""
    async with Swarm(tmp_path, long_spec()) as swarm:
        swarm.start("one", "two")
        await swarm.begin(2)
        await swarm.until(lambda: swarm.head() >= 4, "round 4")
        log = swarm.nodes["one"].replica.log
        await swarm.until(lambda: swarm.nodes["one"].helm.contacts.addresses != {}, "they know each other")
        await swarm.kill_coordinator()
        last = sorted((tmp_path / "coordinator" / "log").glob("*.record"))[-2:]
        for path in last:
            path.write_bytes(b"torn") if damage == "damaged" else path.unlink()
        known = log.entries[min(log.head.round, int(last[0].stem))]
        await swarm.start_coordinator()
        await swarm.until(lambda: swarm.leaders() == ["coordinator"], "the coordinator leads")
        at = swarm.head()
        await swarm.until(lambda: swarm.head() >= at + 2, "rounds")
        assert swarm.coordinator.log.entries[known.round].hash == known.hash
        await one_log(swarm)
        assert not any("banned" in event for event in swarm.events)
        await stop_all(swarm)
    assert verify(tmp_path / "coordinator").ok


async def test_a_damaged_log_and_nobody_to_ask_is_refused_and_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the round, and what to do."""
    monkeypatch.setattr("peer.rounds.helm.DAMAGED_SECONDS", 0.2)
    async with Swarm(tmp_path, long_spec()) as swarm:
        swarm.start("one")
        await swarm.begin(1)
        await swarm.until(lambda: swarm.head() >= 2, "round 2")
        await swarm.kill("one")
        await swarm.kill_coordinator()
        folder = tmp_path / "coordinator" / "log"
        (folder / "00000001.record").write_bytes(b"torn")
        before = sorted(path.name for path in folder.iterdir())
        await swarm.start_coordinator()
        with pytest.raises(VerificationError, match="round 1: .*restore the folder"):
            await swarm.lead
        assert sorted(path.name for path in folder.iterdir()) == before
