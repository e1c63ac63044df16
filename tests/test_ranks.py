"""Several local processes as one peer, over accelerate and gloo."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from tests.commands import free_port, journal, processes_with, running, tiny_config, until

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("ranks")]

# In a process of its own, because a launcher's variables hold for a whole process.
TRAIN = """
import sys, torch
from peer.training import ranks
from peer.training.tasks import load_task
from peer.training.trainer import Trainer
from tests.small_models import END_OF_TEXT, VOCAB_SIZE, small_model, small_spec, text_rows
torch.set_num_threads(1)
spec = small_spec()
team = ranks.start(int(sys.argv[1]), spec, VOCAB_SIZE, END_OF_TEXT, torch.device("cpu"))
trainer = Trainer(spec, load_task(spec.model.task), small_model(spec), torch.device("cpu"), team)
for step in range(6):
    if step == 2:
        trainer.parameters.write(trainer.parameters.read().mul_(0.9))
        trainer.forget_direction()
    result = trainer.step(text_rows(7 if step else 1, offset=step), 0)
    print("step", result.loss, result.tokens, flush=True)
    if step == 3 and len(sys.argv) > 3:
        team._processes[0].kill()
        team._processes[0].wait()
import safetensors.torch
safetensors.torch.save_file({"theta": trainer.parameters.read()}, sys.argv[2])
trainer.close()
# After network trouble at the start, a peer tries again with another team.
team = ranks.start(int(sys.argv[1]), spec, VOCAB_SIZE, END_OF_TEXT, torch.device("cpu"))
again = Trainer(spec, load_task(spec.model.task), small_model(spec), torch.device("cpu"), team)
print("again", again.step(text_rows(1, offset=0), 0).loss, flush=True)
again.close()
"""


def contributed(folder: Path) -> int:
    return max((line.get("rounds_contributed", 0) for line in journal(folder)), default=0)


def train(world: int, out: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", TRAIN, str(world), str(out), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of a coordinator that serves a run for both tests that join one."""
    folder = tmp_path_factory.mktemp("ranks")
    ports = ("--grpc-port", free_port(), "--swarm-port", free_port())
    serve = ("serve", tiny_config(folder, rounds=0), "--dir", folder / "run", "--host", "127.0.0.1", *ports)
    with running(*serve, program="coordinator.cli"):
        until((folder / "run" / "ticket.txt").is_file, "the ticket is written")
        yield folder / "run"


def test_two_ranks_train_like_one(tmp_path: Path) -> None:
    """The same losses, tokens and weights as one process, up to the order of sums: uneven shares, a batch smaller than
    the team, and weights that were rewritten in between included. No process stays."""
    from safetensors.torch import load_file

    found = []
    for world, process in [(world, train(world, tmp_path / str(world))) for world in (1, 2)]:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err[-2000:]
        assert "again" in out, world
        lines = [line.split() for line in out.splitlines() if line.startswith("step")]
        found.append(([float(line[1]) for line in lines], [int(line[2]) for line in lines]))
    assert found[0][1] == found[1][1], "tokens are those of the whole batch, once"
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-4)
    one, two = (load_file(tmp_path / str(world))["theta"] for world in (1, 2))
    assert torch.allclose(one, two, atol=2e-3) and (one - two).abs().mean() < 2e-5


def test_a_rank_that_dies_is_said_in_one_line(tmp_path: Path) -> None:
    """The step fails within seconds with what to do, instead of waiting for ever."""
    process = train(2, tmp_path / "out", "kill")
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0 and "processes ended" in err and "--processes 1" in err


def test_two_processes_are_one_peer(run_folder: Path, tmp_path: Path) -> None:
    """`join --processes 2` beside an ordinary peer: equal digests, credit for every token once, no process left."""
    ticket = run_folder / "ticket.txt"
    with (
        running("join", ticket, "--dir", tmp_path / "two", "--processes", 2, "--always", "--json") as two,
        running("join", ticket, "--dir", tmp_path / "one", "--always", "--json") as one,
    ):
        until(lambda: all(contributed(tmp_path / name) >= 2 for name in ("one", "two")), "two rounds of each")
        for command in (two, one):
            command.interrupt()
            assert command.code == 0, command.err
    assert two.json["rounds_contributed"] >= 2
    with contextlib.ExitStack() as stack:
        folders = (run_folder, tmp_path / "two", tmp_path / "one")
        replays = [stack.enter_context(running("verify", folder, "--json")) for folder in folders]
        verdict, *own = [replay.wait().json for replay in replays]
    assert verdict["ok"], verdict
    for command, replay in zip((two, one), own, strict=True):
        assert replay["ok"] and replay["state_digest"] == command.json["state_digest"]
        left = command.json["tokens"] - verdict["credit"].get(command.json["peer_id"], 0)
        assert 0 <= left <= 2 * 4 * 4 * 32, "every token is credited once, but for work that was not merged"
    assert not processes_with("peer.training.ranks")


def test_a_killed_peer_takes_its_ranks_along(run_folder: Path, tmp_path: Path) -> None:
    """SIGKILL of rank 0 while they train: the other process ends by itself."""
    with running("join", run_folder / "ticket.txt", "--dir", tmp_path / "two", "--processes", 2, "--always") as two:
        until(lambda: contributed(tmp_path / "two") >= 1, "a round")
        children = psutil.Process(two.process.pid).children()
        ranks = [child for child in children if "peer.training.ranks" in child.cmdline()]
        assert len(ranks) == 1
        os.kill(two.process.pid, signal.SIGKILL)
        until(lambda: not ranks[0].is_running(), "the rank ends", 20)
