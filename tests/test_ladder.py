"""Peers go down the codec ladder as far as their uplink asks, and come back; whatever the mix, the weights are one."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.rungs import RUNGS, payload_bytes, rungs_between
from peer.exchange.blobs import BlobStore
from peer.exchange.exchange import Exchange
from peer.exchange.pace import Pace
from peer.exchange.uplink import Passage, Uplink
from peer.log.progress import round_seconds
from peer.log.verify import verify
from peer.rounds.ladder import CLIMB_SHARE, choose, patience_seconds, told
from peer.rounds.rung import Rung
from peer.swarm.memory import MemoryNetwork
from tests.grown_logs import ADA, COORDINATOR, GRACE, grow
from tests.in_memory import Swarm, tiny_spec
from tests.small_run import PARAMETERS, start_log

NAMES = list(RUNGS)
VOLUNTEER = 151_000_000  # parameters
WHOLE = rungs_between("fp16", "sparse/64")

ladders = st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES)).map(
    lambda pair: rungs_between(*sorted(pair, key=NAMES.index))
)
rates = st.floats(1.0, 1e10)
lengths = st.floats(0.01, 1e5)
sizes = st.integers(1, 10**11)


# --- the rule ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("megabits", "seconds", "deadline", "present", "expected"),
    [
        (10.0, 150.0, 600.0, "lowbit2", "lowbit2"),  # 32 s: 21 % of a round
        (8.0, 150.0, 600.0, "lowbit2", "ternary"),  # 40 s are too much, 31 s are not
        (5.0, 150.0, 600.0, "lowbit2", "sign"),
        (1.0, 150.0, 600.0, "lowbit2", "sparse/64"),
        (0.1, 150.0, 600.0, "lowbit2", "sparse/64"),  # nothing fits
        (10.0, 150.0, 600.0, "sparse/64", "sparse/32"),  # one rung at a time
        (10.0, 150.0, 600.0, "sparse/8", "sign"),
        (10.0, 150.0, 600.0, "ternary", "ternary"),  # lowbit2 would fit, without room to spare
        (20.0, 150.0, 600.0, "ternary", "lowbit2"),
        (20.0, 20.0, 600.0, "ternary", "sparse/16"),
        (10.0, 150.0, 50.0, "lowbit2", "sign"),  # half of the deadline is less than a quarter of the round
        (10_000.0, 150.0, 600.0, "lowbit2", "lowbit2"),  # the run's own is the richest
        (None, 150.0, 600.0, "lowbit2", "lowbit2"),
    ],
)
def test_the_richest_that_fits(
    megabits: float | None, seconds: float, deadline: float, present: str, expected: str
) -> None:
    """For the 151M model: by link, round length and deadline, from where the peer is; nothing moves before the link was
    measured."""
    uploads = [] if megabits is None else [megabits * 125_000]
    patience = patience_seconds(seconds, deadline)
    assert choose(rungs_between("lowbit2", "sparse/64"), VOLUNTEER, uploads, patience, present) == expected


@given(ladders, sizes, rates, lengths, st.data())
def test_a_steady_link_comes_to_rest_where_it_fits(
    ladder: tuple[str, ...], parameters: int, upload: float, length: float, data: st.DataObject
) -> None:
    """From any rung, in at most a ladder's length of rounds: within the share, or on the sparsest; and no richer rung
    has room to spare."""
    rung = data.draw(st.sampled_from(ladder))
    for _ in ladder:
        rung = choose(ladder, parameters, [upload], length, rung)
    assert choose(ladder, parameters, [upload], length, rung) == rung

    def share(name: str) -> float:
        return payload_bytes(name, parameters) / upload / length

    assert share(rung) <= 1.0 or rung == ladder[-1]
    richer = ladder[: ladder.index(rung)]
    assert not richer or share(richer[-1]) > CLIMB_SHARE


@given(ladders, sizes, rates, lengths, st.lists(st.floats(0.78, 1.28), min_size=2, max_size=30))
def test_a_link_that_wavers_does_not_flap(
    ladder: tuple[str, ...], parameters: int, upload: float, length: float, noise: list[float]
) -> None:
    """Measurements within a fourth of the truth never take a peer up and down again, nor down and up."""
    rung = ladder[0]
    for _ in ladder:
        rung = choose(ladder, parameters, [upload], length, rung)
    measured, moves = [upload], [rung]
    for factor in noise:
        measured.append(upload * factor)
        moves.append(choose(ladder, parameters, measured, length, moves[-1]))
    places = [ladder.index(name) for name in moves]
    assert places == sorted(places) or places == sorted(places, reverse=True), moves


@given(ladders, sizes, rates, lengths, st.floats(1.0, 100.0), st.data())
def test_a_faster_link_never_takes_a_sparser_rung(
    ladder: tuple[str, ...], parameters: int, upload: float, length: float, faster: float, data: st.DataObject
) -> None:
    """From the same rung; and a longer round is as good as a faster link."""
    present = data.draw(st.sampled_from(ladder))
    chosen = ladder.index(choose(ladder, parameters, [upload], length, present))
    assert ladder.index(choose(ladder, parameters, [upload * faster], length, present)) <= chosen
    assert ladder.index(choose(ladder, parameters, [upload], length * faster, present)) <= chosen


def test_down_takes_two_measurements_and_up_takes_four() -> None:
    """Slow once is not slow, fast once is not fast; the newest count."""
    fast, slow = 20 * 125_000.0, 1 * 125_000.0
    for measured, present, expected in [
        ([fast, slow], "ternary", "ternary"),
        ([fast, slow, slow], "ternary", "sparse/64"),
        ([slow, fast, fast, fast], "ternary", "ternary"),
        ([slow, fast, fast, fast, fast], "ternary", "lowbit2"),
    ]:
        assert choose(rungs_between("lowbit2", "sparse/64"), VOLUNTEER, measured, 30.0, present) == expected


def test_the_owner_is_told_why() -> None:
    """What it takes now, what it would have taken, of what round; and when even the sparsest is too much."""
    line = told("lowbit2", "sparse/16", VOLUNTEER, 125_000.0, 75.0)
    assert line.startswith("this uplink hides sparse/16: at 1.0 Mbit/s a contribution takes 1:12 (as lowbit2 5:21)")
    assert line.endswith("rounds leave 1:15 for it")
    assert told("lowbit2", "sparse/64", VOLUNTEER, 12_500.0, 75.0).startswith("this uplink hides not even sparse/64")


# --- what is measured -------------------------------------------------------------------------------------------------


def test_a_passage_is_as_fast_as_its_link_and_as_the_pace_that_is_the_links() -> None:
    """Only the watched blob's way to the watched taker counts, and what is stuck counts too; a burst that leaves at
    once does not make a link faster than the pace that holds back the rest."""
    now, taker, other = [0.0], ADA.peer_id, GRACE.peer_id
    uplink = Uplink(lambda: now[0])

    def wait(passage: Passage, amount_bytes: int, seconds: float) -> None:
        with passage.leaving(amount_bytes):
            now[0] += seconds

    assert uplink.take() is None
    uplink.watch(b"blob", taker)
    wait(uplink.passage(b"blob", taker), 200, 2.0)
    uplink.watch(b"blob", taker)
    wait(uplink.passage(b"blob", other), 500, 50.0)
    wait(uplink.passage(b"other", taker), 500, 50.0)
    with uplink.passage(b"blob", taker).leaving(600):
        now[0] += 2.0
        assert uplink.take() == 200.0
    assert uplink.take() is None, "told once"

    uplink.watch(b"paced", taker)
    wait(uplink.passage(b"paced", taker), 600, 0.0)
    uplink.passage(b"paced", taker).held(4.0, 100.0)
    wait(uplink.passage(b"paced", taker), 400, 0.0)
    assert uplink.take() == 100.0


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[MemoryNetwork, Exchange, Exchange]]:
    network = MemoryNetwork()
    giver, taker = (Exchange(network.node(), BlobStore(tmp_path / name)) for name in ("giver", "taker"))
    yield network, giver, taker


SLOW = 100e3  # bytes per second


@pytest.mark.parametrize(
    ("link", "pace", "slow"),
    [(SLOW, Pace(1e9), True), (None, Pace(SLOW / 2), False), (None, Pace(SLOW, is_new=False), True)],
    ids=["a slow link", "a pace that probes", "a pace that was measured"],
)
async def test_a_link_that_was_never_full_is_not_slow(
    pair: tuple[MemoryNetwork, Exchange, Exchange], link: float | None, pace: Pace, slow: bool
) -> None:
    """What the link takes counts, and what a pace holds back that the link has shown to be its own; what holds pieces
    back while it still looks for the link does not."""
    network, giver, taker = pair
    giver._pacer._paces[0], taker._pacer._paces[1] = pace, Pace(1e9)
    maker, asker = giver._swarm.peer_id, taker._swarm.peer_id
    if link is not None:
        network.limit(link, maker)
    content = bytes(200_000)  # three times the burst of the pace's bucket
    blob = giver.store.put(content)
    giver.uplink.watch(blob, asker)
    await taker.fetch(blob, len(content), [maker], deadline_seconds=20)
    measured = giver.uplink.take()
    assert measured is not None and (measured < 1.6 * SLOW) == slow, measured
    await giver.close()
    await taker.close()


def test_rounds_are_as_long_as_the_log_says() -> None:
    """The median of the last ones; the time before the first record, when the swarm gathered, is none."""
    log = start_log(COORDINATOR)
    assert round_seconds(log) is None
    for seconds, expected in ((900.0, None), (910.0, None), (930.0, 15.0), (5000.0, 20.0)):
        grow(log, (ADA, 4), time_seconds=seconds)
        assert round_seconds(log) == expected


LADDER = {"name": "fp16", "down_to": "sparse/64"}


async def test_a_peers_place_follows_its_measurements(pair: tuple[MemoryNetwork, Exchange, Exchange]) -> None:
    """What contributions measure moves it, at once if one was not merged; what the owner allows counts without being
    measured, and a restart goes on from the log."""
    _, exchange, _ = pair
    log = start_log(COORDINATOR, codec=LADDER)
    for codec in ("fp16", "sign", "fp16"):
        grow(log, (ADA, 4), codec=codec)  # rounds of a second
    rung = Rung(log, exchange, ADA.peer_id.public_key)
    rung.resume()
    whole = payload_bytes("fp16", PARAMETERS)

    def measure(rate: float) -> None:
        exchange.uplink.watch(b"", GRACE.peer_id)
        passage = exchange.uplink.passage(b"", GRACE.peer_id)
        passage.sent_bytes, passage._leaving_seconds = int(rate * 100), 100.0

    def moved(rate: float) -> str:
        measure(rate)
        return rung.move() and rung.present

    assert rung.move() == "" and rung.present == "fp16", "nothing was measured"
    assert [moved(rate * whole) for rate in (8.0, 1.1, 1.1)] == ["", "", "dense4"]
    assert [moved(8.0 * whole) for _ in range(5)] == ["", "", "", "dense8", "fp16"]
    measure(1.1 * whole)
    rung.missed()
    assert rung.move().startswith("this uplink hides dense4") and rung.uploads_bytes_per_second == [1.1 * whole]
    measure(0.5 * whole)
    rung.missed()
    assert rung.move().startswith("this uplink hides ternary") and rung.uploads_bytes_per_second == [0.5 * whole]

    capped = Rung(log, exchange, ADA.peer_id.public_key)
    exchange.upload.set_rate(1.1 * whole)
    assert capped.move() and capped.present == "dense4" and capped.uploads_bytes_per_second == [1.1 * whole]

    grow(log, (GRACE, 4), (ADA, 4), codec="sparse/8")
    grow(log, (GRACE, 4), codec="fp16")
    again = Rung(log, exchange, ADA.peer_id.public_key)
    again.resume()
    assert again.present == "sparse/8"
    fixed = Rung(start_log(COORDINATOR), exchange, ADA.peer_id.public_key)
    assert fixed.move() == "" and fixed.ladder == (fixed.present,)


# --- a swarm ----------------------------------------------------------------------------------------------------------


def codecs_of(swarm: Swarm, name: str) -> list[str]:
    """Of a peer's merged contributions, by round."""
    own = swarm.peer_id(name).public_key
    return [item.codec for entry in swarm.coordinator.log.entries for key, item in entry.contributions if key == own]


@pytest.mark.parametrize("changes", [{}, {"outer": {"learning_rate": 0.7, "momentum": 0.9}}], ids=["plain", "momentum"])
async def test_a_slow_uplink_goes_down_the_ladder_and_comes_back(tmp_path: Path, changes: dict[str, Any]) -> None:
    """One of three peers has a link that a contribution as fp16 fills for seconds: its contributions become sparser
    and go on being merged, beside the others' richer ones, into the same weights everywhere. When the link is good, it
    comes back up, rung by rung."""
    spec = tiny_spec(run={"rounds": 0}, codec=LADDER, **changes)
    async with Swarm(tmp_path, spec) as swarm:
        swarm.start("ada", "grace", "slow")
        await swarm.until(lambda: "slow" in swarm.nodes, "the slow one is there")
        whole = payload_bytes("fp16", swarm.coordinator.log.origin.genesis.parameters)
        swarm.network.limit(whole / 2.0, swarm.peer_id("slow"))
        await swarm.begin(3)
        await swarm.until(
            lambda: sum(codec != "fp16" for codec in codecs_of(swarm, "slow")) >= 3, "three sparser contributions"
        )
        assert any("slow: this uplink hides" in event for event in swarm.events)
        swarm.network.heal(swarm.peer_id("slow"))
        await swarm.until(lambda: codecs_of(swarm, "slow")[-1] == "fp16", "it is back on the run's codec")
        swarm.coordinator.leader.finish()
        await swarm.finish()
        assert {node.replica.digest for node in swarm.nodes.values()} == {swarm.coordinator.replica.digest}
    places = [NAMES.index(codec) for codec in codecs_of(swarm, "slow")]
    assert all(before - after <= 1 for before, after in pairwise(places)), f"up rung by rung: {places}"
    assert set(codecs_of(swarm, "ada")) == set(codecs_of(swarm, "grace")) == {"fp16"}
    verdict = verify(tmp_path / "coordinator")
    assert verdict.ok and verdict.state_digest == swarm.coordinator.replica.digest.hex(), verdict.errors
