"""What the page remembers of the last rounds: from the sequencer's events to moments, incidents and samples."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from coordinator.web.eta import eta
from coordinator.web.timeline import (
    INCIDENTS_KEPT,
    ROUNDS_KEPT,
    SAMPLES_KEPT,
    Incident,
    Marks,
    Sample,
    Timeline,
)
from peer.rounds.events import Checked, Closing, Heard, Offered, Publish, Refusal, Submission
from peer.rounds.ranges import Ranges

ADA, BOB = b"a" * 32, b"b" * 32
NAMES = {ADA: "ada", BOB: "bob"}


def timeline() -> Timeline:
    return Timeline(1, 100.0, lambda peer: NAMES.get(peer, "somebody"))


def heard(peer: bytes, head: int = 0, tokens: int = 0, phase: str = "training") -> Heard:
    return Heard(peer, head, tokens, 10.0, phase, Ranges(), 0, Ranges())


def submission(peer: bytes) -> Submission:
    return Submission(peer, peer[:8], 640, Ranges())


def one_round(line: Timeline, *, refused: tuple[Refusal, ...] = ()) -> None:
    """Ada in time, Bob late."""
    line.step(heard(ADA), [], 101, 1)
    line.step(heard(BOB), [], 102, 1)
    line.step(heard(ADA, tokens=600), [Closing(1, 30)], 110, 1)
    line.step(Offered(submission(ADA)), [], 111, 1)
    line.step(Offered(submission(BOB)), [], 112, 1)
    line.step(Checked(ADA, ADA[:8], norm=1.0), [Publish(1, (submission(ADA),), refused, 10, 30)], 115, 1)
    line.step(heard(ADA, head=1), [], 117, 2)


def test_a_rounds_moments_are_those_of_its_events() -> None:
    """Start, hand-in, arrival, close, record and application stand where the sequencer saw them."""
    line = timeline()
    one_round(line, refused=(Refusal(BOB, BOB[:8], 640, "its payload had not arrived at the deadline"),))
    found = line.rounds[1]
    assert (found.opened, found.closing, found.published) == (100, 110, 115)
    assert found.peers[ADA] == Marks(101, 111, 115, 117, 640, "accepted")
    assert found.peers[BOB] == Marks(102, 112, None, None, 0, "late")
    assert line.rounds[2].opened == 115 and line.rounds[2].peers[ADA].started == 117


def test_a_refused_payload_is_not_a_late_one() -> None:
    """What was looked at and refused says so, and why."""
    line = timeline()
    line.step(heard(BOB), [], 101, 1)
    line.step(Offered(submission(BOB)), [], 102, 1)
    line.step(Checked(BOB, BOB[:8], reason="values that are not finite"), [], 103, 1)
    line.step(
        Checked(ADA, ADA[:8], norm=1.0),
        [Publish(1, (submission(ADA),), (Refusal(BOB, BOB[:8], 640, "values that are not finite"),), 10, 30)],
        104,
        1,
    )
    assert line.rounds[1].peers[BOB].outcome == "refused"


def test_rounds_that_others_led_leave_a_gap_and_a_lost_chain_leaves_nothing() -> None:
    """After a failover the open round is a later one; after a rollback an earlier one, and those beyond it are gone."""
    line = timeline()
    one_round(line)
    line.step(heard(ADA, head=7), [], 200, 8)
    assert sorted(line.rounds) == [1, 2, 8] and line.rounds[8].opened == 200
    line.step(heard(ADA, head=1), [], 210, 2)
    assert sorted(line.rounds) == [1, 2]


def test_what_was_before_the_process_stands_before_what_it_saw() -> None:
    """Incidents and samples of the database come first, in their order."""
    line = timeline()
    line.tell(101, "joined", 1, "ada joined")
    line.sample(101, 5.0, 1)
    line.recall([Incident(1, "left", 1, "bob left"), Incident(2, "note", 1, "x")], [Sample(1, 2.0, 3)])
    assert [it.time for it in line.incidents] == [1, 2, 101] and [it.time for it in line.samples] == [1, 101]
    assert line.counts == {"joined": 1}


def test_memory_is_bounded() -> None:
    """Whatever strangers do for however long, rounds, incidents and samples stay within their limits."""
    line = timeline()
    for number in range(1, 400):
        for peer in range(3):
            line.step(heard(bytes([peer]) * 32, head=number - 1), [], number * 10.0, number)
            line.tell(number * 10.0, "joined", number, "somebody joined")
        line.step(Checked(ADA, b""), [Publish(number, (), (), 0, 30)], number * 10.0 + 2, number)
    for second in range(0, 100_000, 5):
        line.sample(float(second), 1.0, 2)
    assert len(line.rounds) <= ROUNDS_KEPT and max(line.rounds) == 400
    assert len(line.incidents) == INCIDENTS_KEPT and len(line.samples) <= SAMPLES_KEPT + 1
    assert line.samples[0].time == 0 and line.samples[-1].time > 99_000  # the whole time, at a coarser pace


def test_eta_at_a_steady_pace_is_what_is_left_at_that_pace() -> None:
    """Both estimates agree when every round took the same time; rounds and tokens limit, whichever is first."""
    records = [(10.0 * number, 1000 * number) for number in range(10)]
    assert eta(records, 5000, None) == (50.0, 50.0)
    assert eta(records, 5000, 2) == (20.0, 20.0)
    assert eta(records, None, None) == (math.inf, math.inf)
    assert eta(records[:1], 5000, 3) == (math.inf, math.inf)


@given(st.lists(st.tuples(st.floats(0.1, 1e4), st.integers(1, 10**9)), min_size=2, max_size=80), st.integers(0, 10**12))
def test_the_cautious_estimate_is_never_the_shorter_one(rounds: list[tuple[float, int]], left: int) -> None:
    """p90 >= p50 >= 0, for rounds of any length."""
    records, time, tokens = [(0.0, 0)], 0.0, 0
    for seconds, more in rounds:
        time, tokens = time + seconds, tokens + more
        records.append((time, tokens))
    usual, slow = eta(records, left, None)
    assert 0 <= usual <= slow < math.inf
