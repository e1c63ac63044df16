"""The bookkeeping of a peer's unmerged work: no token or position is lost or counted twice, whatever the order."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from peer.rounds.ranges import Ranges
from peer.rounds.work import Backlog, Work
from protos import log_pb2

TOKENS = 32  # of a sequence


class AnyOrder(RuleBasedStateMachine):
    """Steps, settlements, hand-ins, merges, refusals and lost leases."""

    def __init__(self) -> None:
        super().__init__()
        self.backlog = Backlog()
        self.next = 0
        self.merged = Ranges()
        self.lost = Ranges()

    @rule(sequences=st.integers(1, 5))
    def train(self, sequences: int) -> None:
        positions = Ranges.of([(self.next, self.next + sequences)])
        self.next += sequences
        tokens = sequences * TOKENS
        self.backlog = self.backlog.train(Work(positions, tokens, 1, 2.0 * tokens, 1.0))

    @rule()
    def hand_in(self) -> None:
        if self.backlog.submitted is None and self.backlog.unsent.tokens:
            self.backlog = self.backlog.read().settle().hand_in(1, b"", b"")

    @rule(merged=st.booleans())
    def decide(self, merged: bool) -> None:
        if (submitted := self.backlog.submitted) is not None:
            self.merged |= submitted.work.positions if merged else Ranges()
            self.backlog = self.backlog.merged() if merged else self.backlog.returned()

    @rule(start=st.integers(0, 50), length=st.integers(1, 20))
    def lose(self, start: int, length: int) -> None:
        gone = Ranges.of([(start, start + length)])
        self.lost |= gone & self.backlog.unsent.positions
        self.backlog = self.backlog.without(gone, TOKENS)

    @invariant()
    def every_position_is_somewhere_once(self) -> None:
        parts = (self.backlog.positions, self.merged, self.lost)
        assert sum(map(len, parts)) == self.next
        assert self.backlog.tokens == len(self.backlog.positions) * TOKENS
        assert self.backlog.unsent.mean_loss == pytest.approx(2.0) or not self.backlog.unsent.tokens


TestAnyOrder = AnyOrder.TestCase


def test_work_without_any_lease_left_is_no_work() -> None:
    """Its steps must not count either: a peer at its cap of steps with nothing to hand in would wait for ever."""
    work = Work(Ranges.of([(0, 4)]), 128, 3, 256.0, 1.0)
    assert work.without(Ranges.of([(0, 9)]), TOKENS) == Work()
    assert work.without(Ranges.of([(0, 2)]), TOKENS).inner_steps == 3


def test_a_backlog_survives_its_file_and_a_damaged_file_is_an_empty_one(tmp_path: Path) -> None:
    """Whatever is in the file."""
    path = tmp_path / "backlog.json"
    work = Work(Ranges.of([(0, 4), (8, 9)]), 160, 2, 320.0, 1.5)
    header = log_pb2.Signed(body=b"header").SerializeToString()
    backlog = Backlog(settled=work).hand_in(7, b"\1" * 32, header).train(work).read().settle()
    backlog.save(path)
    assert Backlog.load(path) == backlog
    for damage in ("", "{}", "[]", "null", '{"settled": 3, "submitted": null}', path.read_text()[:50]):
        path.write_text(damage)
        assert Backlog.load(path) == Backlog()
