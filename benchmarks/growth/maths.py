"""One round's maths beside training, each size in a process of its own, so that the peak of its memory is known."""

from __future__ import annotations

import dataclasses
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from peer.codecs import open_payload
from peer.log.aggregate import OuterStep, apply, norm_of
from peer.log.state import State
from peer.rounds.feedback import ErrorFeedback

CONTRIBUTIONS = 8


@dataclasses.dataclass(frozen=True)
class Maths:
    """Wall seconds of each part, and processor seconds of all; `copies`: peak memory over the start's, in fp32 vectors
    of the model's size."""

    codec: str
    parameters: int
    settle: float  # e <- e + start - local
    encode: float  # and the error feedback without what was sent
    open: float  # check all contributions
    apply: float
    digest: float
    norm: float  # of one contribution; the sequencer alone computes it
    cpu: float
    copies: float

    @property
    def round_seconds(self) -> float:
        return self.settle + self.encode + self.open + self.apply + self.digest


def maths(codec: str, parameters: int) -> Maths:
    """One round's maths, in this process: theta, error feedback, and the local weights as the one working buffer."""
    torch.zeros(1 << 20).add_(1)  # libraries are loaded
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - started

    before_bytes, before_cpu = _peak_bytes(), time.process_time()
    theta = torch.zeros(parameters)
    theta.uniform_(-0.1, 0.1)
    feedback = ErrorFeedback(parameters)
    feedback.buffer.normal_(0, 1e-3)  # its pages exist, as in any round but the first
    local = theta + 0
    for part in local.split(1 << 20):
        part.add_(torch.randn(part.numel()), alpha=1e-3)
    before_cpu = time.process_time()
    with timed("settle"):
        feedback.add(theta, local, 0.5)
    with timed("encode"):
        payload = feedback.encode(codec)
    with timed("open"):
        opened = [open_payload(payload, parameters) for _ in range(CONTRIBUTIONS)]
    with timed("norm"):
        norm = norm_of(opened[0])
    with timed("apply"):
        parts = [(each, 100 + index, norm) for index, each in enumerate(opened)]
        apply(theta, None, parts, OuterStep(1.0))
    with timed("digest"):
        State(1, theta, None).digest()
    cpu = time.process_time() - before_cpu
    return Maths(codec, parameters, **seconds, cpu=cpu, copies=(_peak_bytes() - before_bytes) / (4 * parameters))


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def maths_elsewhere(codec: str, parameters: int) -> Maths:
    command = [sys.executable, "-m", "benchmarks.growth", "--one", codec, str(parameters)]
    out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stdout
    return Maths(**json.loads(out))
