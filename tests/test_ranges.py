"""Ranges behave as the sets of integers that they stand for."""

from hypothesis import given
from hypothesis import strategies as st

from peer.rounds.ranges import Ranges, well_formed
from protos import log_pb2

pairs = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=8)


def members(ranges: Ranges) -> set[int]:
    return {value for start, stop in ranges for value in range(start, stop)}


@given(pairs, pairs, st.integers(0, 40))
def test_operations_are_those_of_sets(
    left_pairs: list[tuple[int, int]], right_pairs: list[tuple[int, int]], count: int
) -> None:
    """Union, difference, intersection, length, stop and first agree with Python's sets."""
    left, right = Ranges.of(left_pairs), Ranges.of(right_pairs)
    assert members(left) == {value for start, stop in left_pairs for value in range(start, stop)}
    assert members(left | right) == members(left) | members(right)
    assert members(left - right) == members(left) - members(right)
    assert members(left & right) == members(left) & members(right)
    assert len(left) == len(members(left)) and bool(left) == bool(members(left))
    assert left.stop == max(members(left), default=-1) + 1
    assert members(left.first(count)) == set(sorted(members(left))[:count])


@given(pairs, pairs)
def test_results_are_sorted_and_disjoint(left_pairs: list[tuple[int, int]], right_pairs: list[tuple[int, int]]) -> None:
    """Every result is in the one form that well_formed accepts, so it survives the wire."""
    for result in (Ranges.of(left_pairs) | Ranges.of(right_pairs), Ranges.of(left_pairs) - Ranges.of(right_pairs)):
        assert well_formed(result.to_protos())
        assert Ranges.from_protos(result.to_protos()) == result


def test_well_formed_refuses_what_a_stranger_may_send() -> None:
    """Empty, reversed, unsorted and overlapping ranges are refused."""

    def spans(*items: tuple[int, int]) -> list[log_pb2.Range]:
        return [log_pb2.Range(start=start, stop=stop) for start, stop in items]

    assert well_formed(spans((0, 4), (4, 6), (9, 10)))
    for bad in ([(3, 3)], [(5, 2)], [(4, 6), (0, 2)], [(0, 5), (4, 8)]):
        assert not well_formed(spans(*bad))
