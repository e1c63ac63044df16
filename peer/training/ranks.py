"""Several local devices as one peer: a process for each, led by the peer's own.

The peer itself is rank 0. It starts the others (`python -m peer.training.ranks`), tells them over a pipe what to train
on, and shares out every batch; each rank accumulates the gradient of its rows, accelerate sums the gradients, and all
of them take the same step. To the swarm they are one peer: tokens are counted once, by rank 0.

Not DistributedDataParallel: nothing is exchanged before a rank's gradient is whole, so that one which runs out of
memory halves its micro-batch by itself while the others wait. The price is that the sum does not overlap the backward
pass. A rank that dies ends the peer with one line; the pipe's end tells the ranks that their peer is gone.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any, Protocol

import torch

from peer.errors import CommonweightsError

if TYPE_CHECKING:
    from configs import RunSpec
    from peer.training.trainer import Trainer

logger = logging.getLogger(__name__)

BUCKET_PARAMETERS = 16 << 20  # whose gradients are summed in one go: 64 MiB
END_SECONDS = 5.0


class Team(Protocol):
    """The ranks that train one model together, as one of them sees it."""

    rank: int

    def share(self, trainer: Trainer, rows: torch.Tensor, tokens_before: int) -> torch.Tensor:
        """This rank's part of a batch [rows, T]; all ranks then hold the same weights."""

    def add_up(self, trainer: Trainer, loss: torch.Tensor) -> torch.Tensor:
        """Sum the gradients, and the loss, over all ranks."""

    def touched(self, what: str) -> None:
        """Rank 0 changed "weights", optimizer "state" or "direction" outside of a step."""

    def close(self) -> None: ...


class Alone:
    """One device, one process."""

    rank = 0

    def share(self, trainer: Trainer, rows: torch.Tensor, tokens_before: int) -> torch.Tensor:
        return rows

    def add_up(self, trainer: Trainer, loss: torch.Tensor) -> torch.Tensor:
        return loss

    def touched(self, what: str) -> None:
        pass

    def close(self) -> None:
        pass


class Together:
    """One of several ranks. Rank 0 holds the pipes to the others."""

    def __init__(self, rank: int, world: int, processes: list[subprocess.Popen[bytes]]) -> None:
        self.rank, self.world = rank, world
        self._processes = processes
        self._touched = {"weights", "state"}  # at first nobody has anything
        self.told: dict[str, Any] = {}  # what rank 0 said about this step

    def share(self, trainer: Trainer, rows: torch.Tensor, tokens_before: int) -> torch.Tensor:
        if self.rank == 0:
            self.told = {"tokens_before": tokens_before, "rows": list(rows.shape), "touched": sorted(self._touched)}
            self._touched = set()
            content = rows.to("cpu", torch.int32).numpy().tobytes()
            with self._lost():
                for process in self._processes:
                    _tell(_pipe(process), self.told, content)
        with self._lost():
            self._align(trainer, self.told["touched"])
        return rows.tensor_split(self.world)[self.rank]

    def add_up(self, trainer: Trainer, loss: torch.Tensor) -> torch.Tensor:
        with self._lost():
            for bucket in _buckets(trainer.trainable):
                gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in bucket]
                total = trainer.accelerator.reduce(torch.cat([gradient.reshape(-1) for gradient in gradients]))
                for parameter, part in zip(bucket, total.split([p.numel() for p in bucket]), strict=True):
                    parameter.grad = part.view_as(parameter)
            summed: torch.Tensor = trainer.accelerator.reduce(loss)
            return summed

    def touched(self, what: str) -> None:
        self._touched.add(what)

    def close(self) -> None:
        from accelerate.state import AcceleratorState

        for process in self._processes:
            with contextlib.suppress(OSError):
                _pipe(process).close()  # its end of work
        for process in self._processes:
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self.rank == 0 and self._processes and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
            AcceleratorState._reset_state(reset_partial_state=True)  # the next team of this process has another group
            _environment(None)
        self._processes = []

    def _align(self, trainer: Trainer, touched: list[str]) -> None:
        """Take over from rank 0 what it changed."""
        from accelerate.utils import broadcast

        if "direction" in touched and self.rank:
            trainer.forget_direction()
        tensors = [p.data for p in trainer.trainable] if "weights" in touched else []
        if "state" in touched:
            tensors += [value for state in trainer.optimizer_states() for value in state.values()]
        for tensor in tensors:  # AdamW counts its steps on the CPU
            tensor.copy_(broadcast(tensor.to(trainer.device), from_process=0))

    @contextlib.contextmanager
    def _lost(self) -> Iterator[None]:
        """A rank that is gone shows as a broken pipe or a failed sum."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            codes = [code for process in self._processes if (code := process.poll()) is not None]
            logger.exception("rank %d of %d", self.rank, self.world)
            raise CommonweightsError(
                f"one of this peer's {self.world} processes ended ({codes or type(error).__name__}); start it again,"
                " or with --processes 1"
            ) from None


def start(world: int, spec: RunSpec, vocab_size: int, end_of_text: int, device: torch.device) -> Team:
    """The team of a peer with so many local processes; this one becomes rank 0. Before the trainer is made."""
    if world < 2:
        return Alone()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    task = {"spec": spec.model_dump(mode="json"), "vocab_size": vocab_size, "end_of_text": end_of_text}
    processes = []
    for rank in range(1, world):
        process = subprocess.Popen(
            [sys.executable, "-m", "peer.training.ranks"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env={**os.environ, **_variables(rank, world, port)},
            start_new_session=True,  # Ctrl-C is for the peer, which then ends them
        )
        _tell(_pipe(process), {**task, "device": device.type, "threads": torch.get_num_threads()})
        processes.append(process)
    _environment(_variables(0, world, port))
    return Together(0, world, processes)


def main() -> None:
    """A rank other than 0: train on what comes over the pipe, until it ends."""
    from configs import RunSpec
    from peer.training.tasks import load_task
    from peer.training.trainer import Trainer

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe = sys.stdin.buffer
    task = _hear(pipe)
    if task is None:
        return
    torch.set_num_threads(task["threads"])
    spec = RunSpec.model_validate(task["spec"])
    kind = load_task(spec.model.task)
    end = task["end_of_text"]
    model = kind.build_model(spec, task["vocab_size"], bos_token_id=end, eos_token_id=end)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = torch.device("cpu") if task["device"] == "cpu" else torch.device(task["device"], rank)
    team = Together(rank, world, [])
    trainer = Trainer(spec, kind, model, device, team)
    while (told := _hear(pipe)) is not None:
        rows, length = told["rows"]
        content = pipe.read(4 * rows * length)
        if len(content) < 4 * rows * length:
            break
        team.told = told
        trainer.step(torch.frombuffer(bytearray(content), dtype=torch.int32).view(rows, length), told["tokens_before"])
    os._exit(0)  # rank 0 is gone: there is nobody to take the process group apart with


def _variables(rank: int, world: int, port: int) -> dict[str, str]:
    """What a launcher tells its processes."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
    }


def _environment(variables: dict[str, str] | None) -> None:
    if variables is None:
        for name in _variables(0, 0, 0):
            os.environ.pop(name, None)
    else:
        os.environ.update(variables)


def _buckets(parameters: list[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    bucket: list[torch.nn.Parameter] = []
    for parameter in parameters:
        bucket.append(parameter)
        if sum(p.numel() for p in bucket) >= BUCKET_PARAMETERS:
            yield bucket
            bucket = []
    if bucket:
        yield bucket


def _pipe(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdin is not None
    return process.stdin


def _tell(pipe: IO[bytes], what: dict[str, Any], content: bytes = b"") -> None:
    pipe.write(json.dumps(what).encode() + b"\n" + content)
    pipe.flush()


def _hear(pipe: IO[bytes]) -> dict[str, Any] | None:
    """None at the end of the pipe."""
    line = pipe.readline()
    value: dict[str, Any] | None = json.loads(line) if line.endswith(b"\n") else None
    return value


if __name__ == "__main__":
    main()
