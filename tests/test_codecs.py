"""Codecs: what survives a round trip, what it costs in bits, and that no bytes from outside can do harm."""

from __future__ import annotations

import math
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peer.codecs import CODECS, SEGMENT_PARAMETERS, encode, largest_payload_bytes, open_payload
from peer.codecs.lowbit import two_levels
from peer.errors import CommonweightsError, PayloadError

NAMES = list(CODECS)
SPARSE = [name for name in NAMES if name.startswith("sparse/")]
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def gaussian(count: int, seed: int = 0, size: float = 1e-3) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)) * size


def pseudo_gradient_like(count: int, seed: int = 0) -> torch.Tensor:
    """Heavy tails inside blocks and scales that differ between them, as in pseudo-gradients. [count]"""
    generator = np.random.default_rng(seed)
    scale = np.exp(generator.standard_normal(-(-count // 512))).repeat(512)[:count]
    return torch.from_numpy((generator.standard_t(4, count) * scale * 1e-4).astype(np.float32))


def round_trip(name: str, vector: torch.Tensor) -> torch.Tensor:
    return open_payload(encode(name, vector), vector.numel()).vector()


lengths = st.one_of(st.integers(1, 700), st.sampled_from([4095, 4096, 4097, 8192, 9000, 131072, 131073]))
magnitudes = st.sampled_from([1e-20, 1e-7, 1e-3, 1.0, 1e4, 1e20])


@quick
@given(name=st.sampled_from(NAMES), count=lengths, size=magnitudes, seed=st.integers(0, 1000))
def test_round_trip_keeps_length_and_never_overshoots(name: str, count: int, size: float, seed: int) -> None:
    """At any length and scale the decoded vector has the same length, is finite, and is no worse than sending zeros."""
    vector = gaussian(count, seed, size)
    decoded = round_trip(name, vector)
    assert decoded.shape == vector.shape
    assert torch.isfinite(decoded).all()
    error = (vector.double() - decoded.double()).norm()
    assert error <= vector.double().norm() * (1 + 1e-6)
    assert decoded.abs().max() <= vector.abs().max() * 1.01


@quick
@given(count=lengths, size=magnitudes, seed=st.integers(0, 1000))
def test_dense_codecs_stay_within_their_step(count: int, size: float, seed: int) -> None:
    """fp16 errs by half a unit in the eleventh place, dense8 by half a step, dense4 by a step at its far end."""
    vector = gaussian(count, seed, size)
    largest = float(vector.abs().max())
    half = (vector - round_trip("fp16", vector)).abs()
    assert torch.all(half <= vector.abs() * 2**-11 + largest * 2**-38)
    eight = (vector - round_trip("dense8", vector)).abs().max()
    assert eight <= largest / 127 * 0.57
    four = (vector - round_trip("dense4", vector)).abs().max()
    assert four <= largest / 8 * 1.01


@pytest.mark.parametrize("size", [1e-7, 1e4])
@pytest.mark.parametrize("name", NAMES)
def test_very_small_and_very_large_deltas_cost_no_precision(name: str, size: float) -> None:
    """Scaling a vector by a power of two scales the decoded vector by the same, far outside half precision's range."""
    vector = pseudo_gradient_like(10_000)
    factor = 2.0 ** round(math.log2(size / float(vector.abs().max())))
    assert torch.equal(round_trip(name, vector * factor), round_trip(name, vector) * factor)


def test_blocks_of_very_different_size_keep_their_own_levels() -> None:
    """A layer a million times smaller than its neighbour in the same segment is still sent with its own magnitude."""
    vector = torch.cat([gaussian(4096, 1, 1.0), gaussian(4096, 2, 1e-6)])
    for name in NAMES:
        small, decoded = vector[4096:], round_trip(name, vector)[4096:]
        assert float((small - decoded).norm() / small.norm()) < 0.95
        assert float(decoded.abs().max()) > 1e-7


def brute_force_two_levels(magnitudes: np.ndarray) -> float:
    """Least possible sum of squared errors of one block with two levels, every split tried, in float64."""
    ordered = np.sort(magnitudes.astype(np.float64))
    best = math.inf
    for split in range(1, ordered.size + 1):
        parts = (ordered[:split], ordered[split:])
        best = min(best, sum(float(((part - part.mean()) ** 2).sum()) for part in parts if part.size))
    return best


@quick
@given(
    rows=st.integers(1, 5), width=st.integers(1, 64), seed=st.integers(0, 10_000), tail=st.sampled_from([1, 2, 4, 30])
)
def test_two_levels_are_optimal(rows: int, width: int, seed: int, tail: int) -> None:
    """No pair of levels has a smaller squared error than the one found by the running-sum search."""
    matrix = np.abs(np.random.default_rng(seed).standard_t(tail, (rows, width))).astype(np.float32)
    low, high = two_levels(matrix)
    error = np.minimum((matrix - low[:, None]) ** 2, (matrix - high[:, None]) ** 2).sum(axis=1)
    for row in range(rows):
        best = brute_force_two_levels(matrix[row])
        assert error[row] <= best * (1 + 1e-3) + 1e-6 * float((matrix[row] ** 2).sum())


def published_four_bins(values: torch.Tensor) -> torch.Tensor:
    """The quantiser published with SparseLoCo: 4 bins over six standard deviations, bin means as the codebook."""
    mean = values.mean()
    scale = 6.0 * (values - mean).norm() / math.sqrt(values.numel() - 1) / 4
    bins = torch.clamp(torch.round((values - mean) / scale + 2), 0, 3).long()
    sums = torch.zeros(4).scatter_add_(0, bins, values)
    counts = torch.zeros(4).scatter_add_(0, bins, torch.ones_like(values))
    return (sums / counts.clamp(min=1))[bins]


@pytest.mark.parametrize("name", SPARSE)
def test_kept_values_are_as_good_as_two_optimal_levels_and_better_than_four_bins(name: str) -> None:
    """The squared error on kept values is the brute-force optimum's, less than half of the published quantiser's."""
    vector = pseudo_gradient_like(16 * 4096, 3)
    decoded = round_trip(name, vector)
    kept = decoded != 0
    error = float(((vector - decoded)[kept].double() ** 2).sum())
    optimum = sum(
        brute_force_two_levels(block[block_kept].abs().numpy())
        for block, block_kept in zip(vector.view(-1, 4096), kept.view(-1, 4096), strict=True)
    )
    assert error <= optimum * 1.001
    published = float(((vector[kept] - published_four_bins(vector[kept])).double() ** 2).sum())
    assert error < published / 2


def test_low_bit_error_is_the_optimum_of_its_block() -> None:
    """lowbit2 has the error of two optimal levels per block of 256, up to the rounding of the levels."""
    vector = pseudo_gradient_like(8 * 256, 4)
    error = float(((vector - round_trip("lowbit2", vector)).double() ** 2).sum())
    optimum = sum(brute_force_two_levels(block.abs().numpy()) for block in vector.view(-1, 256))
    assert error <= optimum * 1.001


@quick
@given(name=st.sampled_from(SPARSE), count=lengths, seed=st.integers(0, 1000), ties=st.booleans())
def test_sparse_keeps_the_largest_of_every_block(name: str, count: int, seed: int, ties: bool) -> None:
    """Every block, even the short last one, keeps ceil(length / density) values, none smaller than one it dropped."""
    vector = gaussian(count, seed)
    if ties:
        vector = vector.sign() * 1e-3
    decoded = round_trip(name, vector)
    for block, out in zip(vector.split(4096), decoded.split(4096), strict=True):
        kept = out != 0
        assert int(kept.sum()) == -(-block.numel() // int(name.split("/")[1]))
        if not kept.all():
            assert block[kept].abs().min() >= block[~kept].abs().max()
        assert torch.equal(out[kept].sign(), block[kept].sign())


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("fp16", 16.01),
        ("dense8", 8.08),
        ("dense4", 4.08),
        ("lowbit2", 2.15),
        ("ternary", 1.67),
        ("sign", 1.07),
        ("sparse/8", 0.84),
        ("sparse/16", 0.49),
        ("sparse/32", 0.285),
        ("sparse/64", 0.165),
    ],
)
def test_bits_per_parameter(name: str, most: float) -> None:
    """The whole payload, header and levels included, keeps to its rung's budget on a model of a million parameters."""
    vector = pseudo_gradient_like(1_000_003, 5)
    payload = encode(name, vector)
    assert open_payload(payload, vector.numel()).bits_per_parameter <= most
    assert len(payload) <= largest_payload_bytes(name, vector.numel())


def test_an_index_costs_little_more_than_its_entropy() -> None:
    """64 places of 4096 cost at most 7.6 bits each; log2(4096 choose 64) / 64 is 7.36."""
    count = 256 * 4096
    payload = encode("sparse/64", gaussian(count, 6))
    places = count // 64
    levels_and_heads = 8 * (32 + 5 + 5 + 4 * 256)
    assert (8 * len(payload) - levels_and_heads - 2 * places) / places <= 7.6


@pytest.mark.parametrize("name", NAMES)
def test_all_zeros(name: str) -> None:
    """A vector of zeros is a valid contribution of zeros."""
    assert torch.equal(round_trip(name, torch.zeros(5000)).abs(), torch.zeros(5000))


@pytest.mark.parametrize("name", NAMES)
def test_one_huge_value_among_tiny_ones(name: str) -> None:
    """An outlier of 1e20 among values of 1e-20 survives, and nothing overflows."""
    vector = gaussian(5000, 7, 1e-20)
    vector[1234] = 1e20
    decoded = round_trip(name, vector)
    assert torch.isfinite(decoded).all()
    assert decoded[1234] > (0.2e18 if name == "sign" else 0.9e20)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 2.0**101])
def test_values_that_are_not_finite_are_refused_by_encode(bad: float) -> None:
    """A diverged pseudo-gradient is an error where it arises, not a payload that others refuse."""
    vector = torch.ones(300)
    vector[17] = bad
    with pytest.raises(CommonweightsError, match="not all values are finite"):
        encode("lowbit2", vector)


def test_unknown_codec_and_empty_vector_are_refused_by_encode() -> None:
    """The error lists the codecs that exist."""
    with pytest.raises(CommonweightsError, match="sparse/64"):
        encode("sparse/65", torch.ones(3))
    with pytest.raises(CommonweightsError, match="empty"):
        encode("fp16", torch.ones(0))


def test_segments_decode_alone_and_cover_the_vector() -> None:
    """A vector longer than a segment comes back in pieces at the right offsets, equal to the whole."""
    count = SEGMENT_PARAMETERS + 4096 + 100
    vector = gaussian(count, 8)
    for name in ("lowbit2", "sparse/64"):
        payload = open_payload(encode(name, vector), count)
        assert payload.segments == 2
        offset, values = payload.segment(1)
        assert offset == SEGMENT_PARAMETERS
        assert values.numel() == 4196
        tail = round_trip(name, vector[SEGMENT_PARAMETERS:])
        assert torch.equal(values, tail)


def test_threads_change_neither_payload_nor_values() -> None:
    """With one thread and with three the payload and the decoded bits are the same."""
    count = SEGMENT_PARAMETERS + 5000
    vector = pseudo_gradient_like(count, 9)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append([(payload := encode(name, vector), open_payload(payload, count).vector()) for name in NAMES])
    finally:
        torch.set_num_threads(before)
    for (one, one_values), (three, three_values) in zip(*results, strict=True):
        assert one == three
        assert torch.equal(one_values, three_values)


def assert_refused_or_sane(payload: bytes, count: int) -> None:
    """The only outcomes for bytes from outside: PayloadError, or a finite vector of the right length."""
    try:
        opened = open_payload(payload, count)
    except PayloadError as error:
        assert str(error)
        return
    decoded = opened.vector()
    assert decoded.shape == (count,)
    assert torch.isfinite(decoded).all()


@quick
@given(name=st.sampled_from(NAMES), count=st.integers(1, 9000), data=st.data())
def test_truncated_payloads_are_refused(name: str, count: int, data: st.DataObject) -> None:
    """No proper prefix of a payload, and no payload with bytes appended, is valid."""
    payload = encode(name, gaussian(count))
    cut = data.draw(st.integers(0, len(payload) - 1))
    with pytest.raises(PayloadError):
        open_payload(payload[:cut], count)
    with pytest.raises(PayloadError):
        open_payload(payload + b"\0", count)


@settings(quick, max_examples=300)
@given(name=st.sampled_from(NAMES), count=st.sampled_from([1, 7, 300, 4096, 5003]), data=st.data())
def test_flipped_bits_are_refused_or_harmless(name: str, count: int, data: st.DataObject) -> None:
    """Whatever bits are flipped, the payload is refused with a reason or decodes to finite values."""
    payload = bytearray(encode(name, gaussian(count)))
    places = st.integers(0, 8 * len(payload) - 1)
    header_places = st.integers(0, 8 * min(len(payload), 60) - 1)
    for place in data.draw(st.lists(places | header_places, min_size=1, max_size=20)):
        payload[place // 8] ^= 1 << place % 8
    assert_refused_or_sane(bytes(payload), count)


@settings(quick, max_examples=200)
@given(name=st.sampled_from(NAMES), count=st.sampled_from([1, 300, 4096, 5003]), data=st.data())
def test_garbage_behind_a_good_header_is_refused_or_harmless(name: str, count: int, data: st.DataObject) -> None:
    """A body of random bytes under a header that announces its length correctly does no harm either."""
    payload = encode(name, gaussian(count))
    size = data.draw(st.sampled_from([len(payload) - 37, 0, 1, 17, largest_payload_bytes(name, count) - 37]))
    body = np.random.default_rng(data.draw(st.integers(0, 10_000))).bytes(size)
    exponent = data.draw(st.integers(-128, 127))
    assert_refused_or_sane(payload[:32] + struct.pack("<Ib", size, exponent) + body, count)


@quick
@given(st.binary(max_size=200), st.integers(1, 10_000))
def test_garbage_is_refused(payload: bytes, count: int) -> None:
    """Random bytes are not a payload."""
    with pytest.raises(PayloadError):
        open_payload(payload, count)


def test_each_refusal_says_why() -> None:
    """Wrong magic, version, codec, model, exponent, level, code and index each have their own reason."""
    count = 4096
    good = encode("sparse/64", gaussian(count))
    sign = encode("sign", gaussian(count))
    ternary = encode("ternary", gaussian(count))

    def changed(payload: bytes, at: int, new: bytes) -> bytes:
        return payload[:at] + new + payload[at + len(new) :]

    cases = [
        (b"PICKLE" + good[6:], "not a payload"),
        (changed(good, 4, b"\x02"), "version 2"),
        (changed(good, 8, b"sparse/65"), "unknown codec"),
        (changed(good, 24, b"\x01"), "the model has 4096"),
        (changed(good, 36, b"\x7f"), "exponent"),
        (changed(good, 37, b"\xff"), "Rice parameter"),
        (changed(good, 38, b"\xff\xff\xff\xff"), "unary"),
        (changed(sign, 37, b"\xff\xff"), "not finite"),
        (changed(ternary, len(ternary) - 1, b"\xff"), "above 242"),
        (changed(good, len(good) - 12, b"\xff\xff"), "index codes"),
    ]
    for payload, reason in cases:
        with pytest.raises(PayloadError, match=reason):
            open_payload(payload, count)


def test_an_index_beyond_its_block_is_refused() -> None:
    """Gaps that add up to more than the block's length are refused even if every plane has the right length."""
    count, kept = 100, 2  # one short block; sparse/64 keeps two
    head = encode("sparse/64", gaussian(count))[:32]

    def body(gaps: tuple[int, int], rice: int = 5) -> bytes:
        unary = "".join("0" * (gap >> rice) + "1" for gap in gaps)
        low = "".join(f"{gap & 31:05b}"[::-1] for gap in gaps)
        planes = b"".join(
            int(bits[::-1], 2).to_bytes(-(-len(bits) // 8), "little") for bits in ("00", "00", low, unary)
        )
        return struct.pack("<BI", rice, len(unary)) + np.ones(2, "<f2").tobytes() + planes

    def payload(gaps: tuple[int, int]) -> bytes:
        return head + struct.pack("<Ib", len(body(gaps)), 0) + body(gaps)

    last = open_payload(payload((0, 98)), count).vector()
    assert last.nonzero().flatten().tolist() == [0, 99]
    assert int((last != 0).sum()) == kept
    with pytest.raises(PayloadError, match="outside its block"):
        open_payload(payload((0, 99)), count)
    with pytest.raises(PayloadError, match="outside its block"):
        open_payload(payload((50, 50)), count)


@pytest.mark.parametrize("name", ["lowbit2", "sparse/8"])
def test_opening_hostile_lengths_takes_no_more_memory_than_the_model(name: str) -> None:
    """A header that announces 2^60 parameters or planes of 2^32 bits is refused before anything is allocated for it."""
    count = 1 << 20
    payload = bytearray(encode(name, gaussian(count)))
    tracemalloc.start()
    try:
        for at, new in ((24, struct.pack("<Q", 1 << 60)), (32, b"\xff" * 4), (38, b"\xff" * 4)):
            hostile = bytes(payload[:at] + new + payload[at + len(new) :])
            with pytest.raises(PayloadError):
                open_payload(hostile, count)
        open_payload(bytes(payload), count)
        assert tracemalloc.get_traced_memory()[1] < 16 * count
    finally:
        tracemalloc.stop()


def test_gaps_that_add_up_beyond_32_bits_are_refused() -> None:
    """Every gap as large as its bits allow, in a whole segment: the sum must not wrap round to a valid place."""
    count = SEGMENT_PARAMETERS
    kept, blocks, rice = count // 8, count // 4096, 12
    ones = b"\xff" * (kept // 8)
    body = struct.pack("<BI", rice, kept) + bytes(4 * blocks) + 2 * ones + rice * ones + ones
    with pytest.raises(PayloadError, match="outside its block"):
        CODECS["sparse/8"].check(memoryview(body), count)
