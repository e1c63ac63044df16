"""The learning rate as a pure function of the run's global token count.

It is computed, never transmitted: every peer, also one that joins late, is on the run's schedule because it knows the
log.
"""

from __future__ import annotations

import math

from configs.schema import RunSpec


def learning_rate(spec: RunSpec, tokens: int) -> float:
    """The inner learning rate after `tokens` tokens of the whole run (accepted in the log, plus own ones since).

    Linear warm-up from peak/warm-up-steps (never 0, so that the first step moves), then constant, linear or cosine
    decay (Loshchilov & Hutter, 2017, without restarts) to `minimum_learning_rate_fraction` of the peak at
    `decay_tokens`, which counts from the run's start; afterwards constant. Steps are counted in tokens of one peer's
    batch.
    """
    train = spec.train
    end = train.decay_tokens or spec.run.tokens
    if tokens < train.warmup_tokens:
        return train.learning_rate * min(1.0, (tokens + spec.batch_tokens) / train.warmup_tokens)
    if train.schedule == "constant" or end == 0:
        return train.learning_rate
    progress = min(1.0, (tokens - train.warmup_tokens) / max(1, end - train.warmup_tokens))
    remaining = 1.0 - progress if train.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    floor = train.minimum_learning_rate_fraction
    return train.learning_rate * (floor + (1.0 - floor) * remaining)
