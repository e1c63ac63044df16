"""Error feedback: what a codec drops is not lost but added to the next pseudo-gradient.

Each round `e <- beta * e + delta`, `c = encode(e)`, `e <- e - decode(c)` (Seide et al. 2014; Karimireddy et al. 2019).
With beta = 1 everything a peer ever trained is sent sooner or later: the sum of what was decoded plus the buffer is the
sum of the deltas. beta < 1 forgets old leftovers, which helps the sparsest codecs when weights move on quickly.
Costs 4 bytes per parameter of host memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from peer.codecs import Payload, encode, open_payload
from peer.errors import CommonweightsError

_KEY = "error_feedback"
_PIECE = 1 << 18  # values at once: their temporaries stay in the processor's cache


class ErrorFeedback:
    """The buffer of one peer, fp32 [parameters] on CPU."""

    def __init__(self, parameters: int, decay: float = 1.0) -> None:
        self.decay = decay
        self.buffer = torch.zeros(parameters, dtype=torch.float32)

    def add(self, start: torch.Tensor, local: torch.Tensor, keep: float = 0.0) -> None:
        """e <- decay * e + (start - keep * e - local), for two flat fp32 vectors of the buffer's length.

        Raises:
            CommonweightsError: a value of the difference is not finite; the buffer is then unchanged.
        """
        if not start.shape == local.shape == self.buffer.shape:
            raise CommonweightsError(
                f"pseudo-gradient of shape {list(local.shape)} for a model of {self.buffer.numel()} parameters"
            )
        # A sum is finite only if all of its terms are; one that overflows although they are is as bad.
        if not all(torch.isfinite(delta.sum()) for _, delta in self._deltas(start, local, keep)):
            raise CommonweightsError("the pseudo-gradient is not finite: training diverged, lower the learning rate")
        for buffer, delta in self._deltas(start, local, keep):
            if self.decay != 1.0:
                buffer *= self.decay
            buffer += delta

    def _deltas(
        self, start: torch.Tensor, local: torch.Tensor, keep: float
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(piece of the buffer, start - keep * buffer - local there), all delta pieces in the same memory."""
        scratch = torch.empty(min(_PIECE, self.buffer.numel()))
        for buffer, before, after in zip(
            *(vector.split(_PIECE) for vector in (self.buffer, start, local)), strict=True
        ):
            delta = torch.sub(before, buffer, alpha=keep, out=scratch[: buffer.numel()])
            yield buffer, delta.sub_(after)

    def encode(self, codec: str) -> bytes:
        """Compress the buffer, and keep in it only what the payload does not say. See `peer.codecs.encode`."""
        payload = encode(codec, self.buffer)
        open_payload(payload, self.buffer.numel()).add_to(self.buffer, -1.0)
        return payload

    def put_back(self, payload: Payload) -> None:
        """Undo `encode` for a payload that the swarm did not accept: it is sent again with the next one."""
        payload.add_to(self.buffer, 1.0)

    def save(self, path: str | Path) -> None:
        """Write to a safetensors file; whoever reads it sees the old file or the whole new one."""
        path = Path(path)
        temporary = path.with_name(path.name + ".part")
        save_file({_KEY: self.buffer}, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)

    def load(self, path: str | Path) -> None:
        """Read what `save` wrote.

        Raises:
            CommonweightsError: the file is damaged or belongs to a model of another size.
        """
        try:
            with safe_open(path, framework="pt") as file:
                buffer = file.get_tensor(_KEY)
        except (OSError, SafetensorError) as error:
            raise CommonweightsError(
                f"{path}: cannot be read: {error}; delete it to start with empty error feedback"
            ) from None
        if buffer.shape != self.buffer.shape or buffer.dtype != torch.float32:
            raise CommonweightsError(
                f"{path}: holds {list(buffer.shape)} values, the model has {self.buffer.numel()} parameters; "
                "it belongs to another run: use another folder or delete it"
            )
        self.buffer = buffer
