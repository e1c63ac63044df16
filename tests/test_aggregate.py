"""Aggregation: what one contribution can do, and that every replica computes the same bits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peer.codecs import CODECS, SEGMENT_PARAMETERS, Payload, encode, open_payload
from peer.errors import CommonweightsError
from peer.log.aggregate import OuterStep, apply, norm_of, scales

PLAIN = OuterStep(learning_rate=1.0, momentum=0.0)


def payload_of(vector: torch.Tensor, codec: str = "fp16") -> Payload:
    return open_payload(encode(codec, vector), vector.numel())


def contribution(vector: torch.Tensor, tokens: int, codec: str = "fp16") -> tuple[Payload, int, float]:
    payload = payload_of(vector, codec)
    return payload, tokens, norm_of(payload)


def noise(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)) * 1e-3


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 5000), seed=st.integers(0, 1000))
def test_norm_is_the_l2_norm(count: int, seed: int) -> None:
    """The halving tree gives the norm of the decoded vector to float64 precision, at any length."""
    payload = payload_of(noise(count, seed), "dense8")
    exact = math.sqrt(math.fsum(float(value) ** 2 for value in payload.vector()))
    assert norm_of(payload) == pytest.approx(exact, rel=1e-14)


def test_norm_of_several_segments_and_of_zeros() -> None:
    """Trees of trees: the norm runs over all segments; zeros have norm 0."""
    count = SEGMENT_PARAMETERS + 70_000
    payload = payload_of(torch.ones(count), "sign")
    assert norm_of(payload) == math.sqrt(count)
    assert norm_of(payload_of(torch.zeros(10))) == 0.0


def test_a_single_peer_is_plain_descent() -> None:
    """One contribution is neither clipped nor scaled: theta moves by exactly its decoded vector."""
    delta = noise(5000, 1)
    theta = noise(5000, 2)
    expected = theta - payload_of(delta).vector()
    apply(theta, None, [contribution(delta, 123)], PLAIN)
    assert torch.equal(theta, expected)


def test_weights_are_shares_of_tokens() -> None:
    """Equal norms, three times the tokens: three times the influence, and the shares add up to one."""
    one, other = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    theta = torch.zeros(2)
    apply(theta, None, [contribution(one, 300), contribution(other, 100)], PLAIN)
    assert theta.tolist() == [-0.75, -0.25]


def test_a_giant_is_cut_to_the_median_norm() -> None:
    """A contribution a million times too large moves the weights no further than an honest one of median norm."""
    honest = [noise(1000, seed) for seed in range(4)]
    giant = noise(1000, 9) * 1e6
    parts = [contribution(vector, 10) for vector in [*honest, giant]]
    theta = torch.zeros(1000)
    apply(theta, None, parts, PLAIN)
    median = sorted(norm for _, _, norm in parts)[2]
    honest_mean = sum(payload_of(vector).vector() for vector in honest) / 5
    assert float((theta + honest_mean).norm()) <= median / 5 * 1.1


@given(st.lists(st.tuples(st.integers(1, 10**9), st.floats(0, 1e10, allow_subnormal=False)), min_size=1, max_size=20))
def test_no_scaled_norm_exceeds_the_median(parts: list[tuple[int, float]]) -> None:
    """scale * norm <= share * median, and more only as tokens exceed their median; no scale exceeds its share."""
    payload = payload_of(torch.ones(1))
    total = sum(tokens for tokens, _ in parts)
    moving = [part for part in parts if part[1] > 0] or [(1, 0.0)]
    usual_tokens, median = (float(np.median(column)) for column in zip(*moving, strict=True))
    for (tokens, norm), scale in zip(parts, scales([(payload, *part) for part in parts]), strict=True):
        assert 0 <= scale <= tokens / total
        assert scale * norm <= tokens / total * median * max(1.0, tokens / usual_tokens) ** 0.75 * (1 + 1e-9)


def test_a_fast_peer_is_not_cut_for_being_fast() -> None:
    """Speeds 4:2:1:1, norms as they were in a real run: a peer's influence is its share of the tokens, or nearly."""
    payload = payload_of(torch.ones(1))
    parts = [(payload, 21_504, 7.6), (payload, 10_752, 4.8), (payload, 5_376, 2.9), (payload, 5_376, 2.8)]
    assert scales(parts) == pytest.approx([0.5, 0.25, 0.125, 0.125], rel=0.03)


def test_peers_that_send_zeros_do_not_stop_the_others() -> None:
    """Two silent contributions dilute the third by its share of tokens; they do not clip it away."""
    zeros, delta = torch.zeros(100), torch.ones(100)
    theta = torch.zeros(100)
    apply(theta, None, [contribution(zeros, 1), contribution(zeros, 1), contribution(delta, 2)], PLAIN)
    assert torch.equal(theta, torch.full((100,), -0.5))


def test_an_empty_round_leaves_the_weights() -> None:
    """No contributions, or only zeros, or no tokens: nothing moves without momentum."""
    theta = noise(100, 3)
    before = theta.clone()
    apply(theta, None, [], PLAIN)
    apply(theta, None, [contribution(torch.zeros(100), 5)], PLAIN)
    apply(theta, None, [contribution(torch.ones(100), 0)], PLAIN)
    assert torch.equal(theta, before)


@pytest.mark.parametrize("nesterov", [True, False])
def test_momentum_is_that_of_torch_sgd(nesterov: bool) -> None:
    """Over several rounds theta and momentum follow torch.optim.SGD fed with the mean as its gradient."""
    count = 3000
    theta = noise(count, 4)
    momentum = torch.zeros(count)
    reference = torch.nn.Parameter(theta.clone())
    sgd = torch.optim.SGD([reference], lr=0.7, momentum=0.9, nesterov=nesterov)
    for seed in range(5):
        delta = noise(count, 10 + seed)
        reference.grad = payload_of(delta).vector()
        sgd.step()
        apply(theta, momentum, [contribution(delta, 7)], OuterStep(0.7, 0.9, nesterov))
    assert torch.allclose(theta, reference.detach(), rtol=1e-5, atol=1e-9)


def test_momentum_without_a_buffer_is_refused() -> None:
    """The caller must keep the buffer: it is part of the state."""
    with pytest.raises(CommonweightsError, match="momentum"):
        apply(torch.zeros(3), None, [], OuterStep(1.0, 0.9))


def test_a_payload_of_another_model_is_refused() -> None:
    """Sizes are checked before anything is changed."""
    theta = torch.zeros(3)
    with pytest.raises(CommonweightsError, match="4 parameters"):
        apply(theta, None, [contribution(torch.ones(4), 1)], PLAIN)


def plainly(
    theta: torch.Tensor, momentum: torch.Tensor, parts: list[tuple[Payload, int, float]], outer: OuterStep
) -> None:
    """The outer step as it is defined, on whole vectors: what every faster way must equal to the last bit."""
    mean = np.zeros(theta.numel(), dtype=np.float32)
    for (payload, _, _), scale in zip(parts, scales(parts), strict=True):
        mean += payload.vector().numpy() * np.float32(scale)
    weights, buffer = theta.numpy(), momentum.numpy()
    buffer[:] = buffer * np.float32(outer.momentum) + mean
    ahead = mean + buffer * np.float32(outer.momentum)
    weights[:] = weights - ahead * np.float32(outer.learning_rate)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.view(torch.int32), other.view(torch.int32))


@settings(max_examples=60, deadline=None)
@given(
    names=st.lists(st.sampled_from(list(CODECS)), min_size=1, max_size=6),
    count=st.sampled_from([1, 3, 255, 257, 4095, 4096, 4097, 9001]),
    magnitude=st.sampled_from([1e-30, 1e-3, 1e20]),
    seed=st.integers(0, 1000),
)
def test_streamed_is_as_defined(names: list[str], count: int, magnitude: float, seed: int) -> None:
    """Adding contributions piece by piece, and only what is not zero, gives the bits of the plain formula."""
    outer = OuterStep(0.9, 0.5)
    parts = [contribution(noise(count, seed + index) * magnitude, 7 + index, name) for index, name in enumerate(names)]
    theta, momentum = noise(count, seed), torch.zeros(count)
    plain, plain_momentum = theta.clone(), momentum.clone()
    for _ in range(2):
        apply(theta, momentum, parts, outer)
        plainly(plain, plain_momentum, parts, outer)
    assert same_bits(theta, plain) and same_bits(momentum, plain_momentum)


def test_same_bits_whatever_the_threads_and_however_payloads_are_held() -> None:
    """Replicas with other thread counts, other memory and other buffers for the payloads reach the same bits."""
    count = SEGMENT_PARAMETERS + 12_345
    payloads = [encode(codec, noise(count, seed)) for seed, codec in enumerate(CODECS)]
    outer = OuterStep(0.9, 0.5)
    before = torch.get_num_threads()
    states = []
    try:
        for threads, shift in ((1, 0), (3, 7)):
            torch.set_num_threads(threads)
            parts = []
            for index, data in enumerate(payloads):
                held = bytearray(shift + len(data))
                held[shift:] = data
                payload = open_payload(memoryview(held)[shift:], count)
                parts.append((payload, 100 + index, norm_of(payload)))
            theta, momentum = noise(count + shift, 99)[shift:].clone(), torch.zeros(count + shift)[shift:]
            theta.copy_(noise(count, 98))
            for _ in range(2):
                apply(theta, momentum, parts, outer)
            states.append((theta, momentum, [norm for _, _, norm in parts]))
    finally:
        torch.set_num_threads(before)
    theta, momentum = noise(count, 98), torch.zeros(count)
    for _ in range(2):
        plainly(theta, momentum, parts, outer)
    for other_theta, other_momentum, norms in states:
        assert same_bits(theta, other_theta) and same_bits(momentum, other_momentum)
        assert norms == states[0][2]


def test_order_of_contributions_is_the_records() -> None:
    """Reordering may change last bits (hence the record fixes the order) but nothing more."""
    parts = [contribution(noise(2000, seed), 10 + seed) for seed in range(5)]
    forward, backward = torch.zeros(2000), torch.zeros(2000)
    apply(forward, None, parts, PLAIN)
    apply(backward, None, parts[::-1], PLAIN)
    assert torch.allclose(forward, backward, rtol=1e-5, atol=1e-10)
