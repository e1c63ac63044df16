"""Merging contributions into the weights, to the same bits on every peer.

Everything here is a fixed sequence of IEEE operations: elementwise multiplications and additions as separate numpy
calls (nothing fused, nothing reduced in an order that depends on threads or vector width), sums only as a halving tree,
and scalars in Python's float64. That is slower than BLAS and the reason why replicas agree. Segments are worked on by
as many threads as torch has, each value by one thread in the record's order; beside the weights, every thread needs the
memory of two segments, however many contributions there are.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from peer.codecs import SEGMENT_PARAMETERS, Payload
from peer.codecs.payload import in_parallel
from peer.codecs.wire import Floats
from peer.errors import CommonweightsError

_TREE = 1 << 16  # values summed by one tree: small enough to stay in the processor's cache


class OuterStep(NamedTuple):
    """theta <- theta - learning_rate * mean, or with momentum as torch.optim.SGD has it, optionally Nesterov's."""

    learning_rate: float
    momentum: float = 0.0
    nesterov: bool = True


def norm_of(payload: Payload) -> float:
    """L2 norm of the decoded vector in float64, the same bits on every machine.

    Squares of fp32 values are exact in float64; they are summed by halving trees over 2^16 values, and the trees' sums
    by one more.
    """

    def sums_of(index: int) -> list[float]:
        values = payload.segment(index)[1].numpy()
        sums = []
        for start in range(0, values.size, _TREE):
            squares = values[start : start + _TREE].astype(np.float64)
            squares *= squares
            sums.append(_tree_sum(squares))
        return sums

    sums = [each for segment in in_parallel(sums_of, range(payload.segments)) for each in segment]
    return math.sqrt(_tree_sum(np.array(sums)))


def scales(contributions: Sequence[tuple[Payload, int, float]]) -> list[float]:
    """What each contribution is multiplied with: its share of the tokens, times min(1, allowed norm / its norm).

    Allowed is the median norm, which bounds what one peer can do to the weights; to those with more than the median's
    tokens as much more as their way is longer (`reach`). Otherwise the peers that train most would lose most of what
    they learnt, for being fast. Norms of zero do not count for the medians: they move nothing, and must not stop those
    that do.
    """
    total = sum(tokens for _, tokens, _ in contributions)
    moving = [(tokens, norm) for _, tokens, norm in contributions if norm > 0]
    if total == 0 or not moving:
        return [0.0] * len(contributions)
    usual_reach = reach(statistics.median(tokens for tokens, _ in moving))
    median = statistics.median(norm for _, norm in moving)

    def kept(tokens: int, norm: float) -> float:
        more = reach(tokens) / usual_reach if usual_reach > 0 else 1.0
        return min(1.0, median * max(1.0, more) / norm) if norm > 0 else 1.0

    return [tokens / total * kept(tokens, norm) for _, tokens, norm in contributions]


def reach(tokens: float) -> float:
    """How far the weights come with so many tokens, up to a factor: tokens^(3/4).

    Between a straight line (1) and a random walk (1/2): measured among peers of speeds 4:2:1:1 it was 0.71 to 0.75. Of
    square roots, which IEEE rounds exactly: other powers differ in the last bit from machine to machine.
    """
    root = math.sqrt(tokens)
    return root * math.sqrt(root)


def apply(
    theta: torch.Tensor,
    momentum: torch.Tensor | None,
    contributions: Sequence[tuple[Payload, int, float]],
    outer: OuterStep,
) -> None:
    """The outer step of one round, in place.

    mean = sum of scale_i * decode_i in the given order (the record's), see `scales`. Without contributions the mean is
    zero, and the momentum still decays and moves the weights.

    Args:
        contributions: (payload, tokens, norm) each; tokens are the weight, norm is `norm_of(payload)`, from the record.
        theta: flat fp32 [parameters] on CPU.
        momentum: flat fp32 [parameters] on CPU, zeros before the first round; needed if outer.momentum > 0.
    """
    if outer.momentum > 0 and momentum is None:
        raise CommonweightsError("an outer step with momentum needs a momentum buffer")
    for payload, _, _ in contributions:
        if payload.parameters != theta.numel():
            raise CommonweightsError(f"payload of {payload.parameters} parameters for {theta.numel()} weights")
    factors = [np.float32(scale) for scale in scales(contributions)]
    weights = theta.numpy()
    buffer = momentum.numpy() if momentum is not None and outer.momentum > 0 else None
    segments = _segments(theta.numel())

    def apply_to(index: int) -> None:
        start, stop = segments[index]
        mean = np.zeros(stop - start, dtype=np.float32)
        for (payload, _, _), factor in zip(contributions, factors, strict=True):
            if factor != 0:
                payload.add_segment(index, mean, factor)
        step = mean if buffer is None else _with_momentum(mean, buffer[start:stop], outer)
        np.multiply(step, np.float32(outer.learning_rate), out=step)
        np.subtract(weights[start:stop], step, out=weights[start:stop])

    in_parallel(apply_to, range(len(segments)))


def _with_momentum(mean: Floats, buffer: Floats, outer: OuterStep) -> Floats:
    """buffer <- mu * buffer + mean, in place; returns mean + mu * buffer (Nesterov) or a copy of the buffer."""
    decay = np.float32(outer.momentum)
    np.multiply(buffer, decay, out=buffer)
    np.add(buffer, mean, out=buffer)
    if not outer.nesterov:
        return buffer.copy()
    ahead: Floats = np.multiply(buffer, decay)
    np.add(mean, ahead, out=ahead)
    return ahead


def _segments(parameters: int) -> list[tuple[int, int]]:
    return [(start, min(start + SEGMENT_PARAMETERS, parameters)) for start in range(0, parameters, SEGMENT_PARAMETERS)]


def _tree_sum(values: npt.NDArray[np.float64]) -> float:
    """Sum in float64 by adding the second half to the first, again and again; odd lengths carry their last value over.

    Destroys `values`. numpy's own sum also works in pairs, but its unrolling is an implementation detail.
    """
    size = values.size
    while size > 1:
        half = size // 2
        np.add(values[:half], values[size - half : size], out=values[:half])
        size -= half
    return float(values[0])
