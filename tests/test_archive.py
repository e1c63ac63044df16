"""Checkpoints in a run's folder: sealed, checkable by strangers, kept by rule, and whole whatever kills the process."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import fsspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from coordinator.archive import superfluous
from coordinator.settings import CheckpointSettings
from coordinator.web import sections
from peer.checkpoints.fetch import local_copy
from peer.checkpoints.manifest import MANIFEST_FILE, Checkpoint, folder_name, seal
from peer.checkpoints.verification import load_state, verify_checkpoint
from peer.errors import UsageError, VerificationError
from peer.identity import Identity
from peer.log.chain import Log
from peer.training.checkpoint import MOMENTUM_FILE
from protos import log_pb2
from tests.checkpointed import Run
from tests.commands import run as command
from tests.web_server import web_server


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run at round 3 with a checkpoint of round 2, and outer momentum."""
    run = Run.make(tmp_path_factory.mktemp("template") / "run", outer={"learning_rate": 0.7, "momentum": 0.9})
    run.advance(2)
    run.make_checkpoint(run.archive())
    run.advance(1)
    return run.folder


@pytest.fixture
def made(template: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(template, tmp_path / "run"))


def checkpoint_of(folder: Path) -> Path:
    return folder / "checkpoints" / folder_name(2)


def test_a_checkpoint_is_what_the_log_says(made: Path) -> None:
    """Files, signature, weights, momentum and place in the log check out; a copy without the momentum does too."""
    log = Run.make(made).log
    verdict = verify_checkpoint(checkpoint_of(made), log)
    assert verdict.ok, verdict.errors
    assert verdict.round == 2 and verdict.state_digest == log.entries[3].record.base_digest.hex()
    assert verdict.coordinator == str(log.origin.coordinator)
    (checkpoint_of(made) / MOMENTUM_FILE).unlink()
    assert verify_checkpoint(checkpoint_of(made), log).ok
    assert verify_checkpoint(checkpoint_of(made)).ok


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def forge(folder: Path, change: Callable[[log_pb2.CheckpointManifest], None], identity: Identity) -> None:
    """Seal the folder again, as somebody could who is allowed to sign, or not."""
    manifest = log_pb2.CheckpointManifest()
    manifest.CopyFrom(Checkpoint.load(folder).manifest)
    del manifest.files[:]
    change(manifest)
    (folder / MANIFEST_FILE).unlink()
    seal(folder, manifest, identity)


@pytest.mark.parametrize("name", ["model.safetensors", "README.md", "config.json", MOMENTUM_FILE])
def test_a_changed_file_is_named(made: Path, name: str) -> None:
    """One flipped bit in any file, and the verdict names that file and nothing else."""
    flip(checkpoint_of(made) / name)
    assert verify_checkpoint(checkpoint_of(made)).errors == [f"{name}: changed"]


def test_added_and_missing_files_are_named(made: Path) -> None:
    """A file that was not signed, such as a pickle beside the weights, is an error; so is one that is gone."""
    (checkpoint_of(made) / "pytorch_model.bin").write_bytes(b"evil")
    (checkpoint_of(made) / "config.json").unlink()
    errors = verify_checkpoint(checkpoint_of(made)).errors
    assert errors == ["config.json: missing", "pytorch_model.bin: not part of the checkpoint"]


def test_only_the_coordinator_can_vouch(made: Path) -> None:
    """A manifest that somebody else signed is none, even though everything in it is right."""
    forge(checkpoint_of(made), lambda manifest: None, Identity.new())
    (error,) = verify_checkpoint(checkpoint_of(made)).errors
    assert "not the coordinator" in error


def move_to_round_9(manifest: log_pb2.CheckpointManifest) -> None:
    manifest.round = manifest.state.round = 9


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda manifest: setattr(manifest, "tokens", 7), "claims 7 tokens"),
        (lambda manifest: setattr(manifest, "record_hash", bytes(32)), "was given up"),
        (move_to_round_9, "ends with round 3"),
        (lambda manifest: manifest.state.chunk_hashes.append(bytes(32)), "state digest"),
        (lambda manifest: manifest.state.chunk_hashes.__setitem__(0, bytes(32)), "weights are not those"),
    ],
    ids=["tokens", "record", "round", "digest", "weights"],
)
def test_even_the_coordinator_cannot_contradict_the_log(
    made: Path, change: Callable[[log_pb2.CheckpointManifest], None], says: str
) -> None:
    """Signed by the right key, but not what the log gives: an error that says what differs."""
    run = Run.make(made)
    forge(checkpoint_of(made), change, run.identity)
    assert says in "; ".join(verify_checkpoint(checkpoint_of(made), run.log).errors)


def test_other_weights_under_a_good_signature_are_found(made: Path) -> None:
    """The coordinator swaps the weights and signs again: the digest in the log gives it away."""
    run, path = Run.make(made), checkpoint_of(made) / "model.safetensors"
    tensors = load_file(path)
    first = next(iter(tensors))
    tensors[first] = tensors[first] + 1e-3
    save_file(tensors, path, metadata={"format": "pt"})
    forge(checkpoint_of(made), lambda manifest: None, run.identity)
    assert verify_checkpoint(checkpoint_of(made), run.log).errors == ["the weights are not those of the manifest"]


@given(st.data())
def test_a_damaged_manifest_is_refused(template: Path, data: st.DataObject) -> None:
    """Cut anywhere or with any byte changed: VerificationError, never another exception and never a pass."""
    content = (checkpoint_of(template) / MANIFEST_FILE).read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        damaged = content[:place]
    else:
        damaged = content[:place] + bytes([content[place] ^ data.draw(st.integers(1, 255))]) + content[place + 1 :]
    with pytest.raises(VerificationError):
        Checkpoint.parse(damaged)


def test_the_state_comes_back_whole(made: Path) -> None:
    """Weights and momentum of a checkpoint are the state the log names, to lead the run on from."""
    run = Run.make(made)
    state = load_state(checkpoint_of(made), Checkpoint.load(checkpoint_of(made)))
    assert state is not None and state.round == 2
    assert state.digest() == run.log.entries[3].record.base_digest
    assert state.momentum is not None and torch.equal(state.theta, run.state.theta)
    (checkpoint_of(made) / MOMENTUM_FILE).unlink()
    assert load_state(checkpoint_of(made), Checkpoint.load(checkpoint_of(made))) is None


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_verify_on_the_command_line(made: Path) -> None:
    """A folder in the run, a copy elsewhere, a URL: exit code 0; one flipped bit: 3; nothing there: 2, in one line."""
    inside = command("verify", checkpoint_of(made), "--json")
    assert inside.code == 0 and inside.json["ok"] and inside.json["log_checked"] and inside.json["round"] == 2
    elsewhere = Path(shutil.copytree(checkpoint_of(made), made.parent / "elsewhere"))
    assert "it is what the run's log says" in command("verify", f"file://{elsewhere}", "--run", made).out
    flip(elsewhere / "model.safetensors")
    changed = command("verify", f"file://{elsewhere}", "--json")
    assert changed.code == 3 and changed.json["errors"] == ["model.safetensors: changed"]
    nothing = command("verify", f"file://{made.parent}/none")
    assert nothing.code == 2 and "no checkpoint is there" in nothing.err and nothing.err.count("\n") == 1


def test_a_checkpoint_is_fetched_from_anywhere(made: Path) -> None:
    """From a store that is not a disk, by the names in the manifest alone; where there is none, one line says so."""
    memory = fsspec.filesystem("memory")
    memory.put(f"{checkpoint_of(made)}/", "/there/", recursive=True)
    with local_copy("memory://there") as folder:
        assert verify_checkpoint(folder, Run.make(made).log).ok
    assert not folder.exists()
    memory.rm("/there/model.safetensors")
    with local_copy("memory://there") as folder:
        assert verify_checkpoint(folder).errors == ["model.safetensors: missing"]
    memory.rm("/there", recursive=True)
    with pytest.raises(UsageError, match="no checkpoint is there"), local_copy("memory://there"):
        pass
    with pytest.raises(UsageError, match="Protocol not known"), local_copy("gopher://there"):
        pass


def test_the_page_is_a_place_to_fetch_from(made: Path) -> None:
    """What it links is a whole checkpoint under one URL, over plain HTTP; where there is none, one line says so."""
    run = Run.make(made)
    with web_server(made / "checkpoints") as server:
        server.show(checkpoints=sections.checkpoints(cast(Any, SimpleNamespace(archive=run.archive()))))
        with local_copy(f"{server.address}/checkpoints/{folder_name(2)}/") as folder:
            assert verify_checkpoint(folder, run.log).ok
        with (
            pytest.raises(UsageError, match="no checkpoint is there"),
            local_copy(f"{server.address}/checkpoints/{folder_name(1)}"),
        ):
            pass


@given(st.sets(st.integers(1, 60)).map(sorted), st.integers(1, 5), st.integers(0, 20))
def test_retention_keeps_exactly_what_it_says(rounds: list[int], keep_last: int, keep_every: int) -> None:
    """The newest n, and for each multiple of k the first checkpoint at or after it; asking again drops nothing more."""
    settings = CheckpointSettings(keep_last=keep_last, keep_every=keep_every)
    gone = superfluous(rounds, settings)
    kept = [round_ for round_ in rounds if round_ not in gone]
    first_after = set()
    if keep_every:
        for multiple in range(keep_every, 61, keep_every):
            first_after |= set([r for r in rounds if multiple <= r < multiple + keep_every][:1])
    assert set(kept) == set(rounds[-keep_last:]) | first_after
    assert superfluous(kept, settings) == []


def test_retention_on_disk(made: Path) -> None:
    """Of checkpoints of rounds 2 to 9 the last two and the first from 4 and 8 on stay, and nothing else lies about."""
    run = Run.make(made)
    archive = run.archive(keep_last=2, keep_every=4)
    run.make_checkpoint(archive)
    for _ in range(6):
        run.advance()
        run.make_checkpoint(archive)
        archive.prune()
    assert [checkpoint.round for checkpoint in archive.checkpoints] == [4, 8, 9]
    assert sorted(path.name for path in archive.folder.iterdir()) == [folder_name(round_) for round_ in (4, 8, 9)]
    assert [checkpoint.round for checkpoint in run.archive().checkpoints] == [4, 8, 9]


def test_what_somebody_reads_is_dropped_later(made: Path) -> None:
    """A checkpoint that is being copied stays until the next time."""
    run = Run.make(made)
    archive = run.archive(keep_last=1)
    run.make_checkpoint(archive)
    archive.prune(busy={2})
    assert [checkpoint.round for checkpoint in archive.checkpoints] == [2, 3]
    archive.prune()
    assert [checkpoint.round for checkpoint in archive.checkpoints] == [3]


def test_an_abandoned_checkpoint_does_not_count(made: Path) -> None:
    """After the log took another way its checkpoint is not listed, and is dropped."""
    for record in ("00000002.record", "00000003.record"):
        (made / "log" / record).unlink()
    run = Run.make(made)
    run.advance(2, time_seconds=2.0)  # another record 2, and 3
    archive = run.archive()
    assert archive.newest is None and archive.due(10)
    assert "was given up" in verify_checkpoint(checkpoint_of(made), run.log).errors[0]
    archive.prune()
    assert not checkpoint_of(made).exists()


def test_a_missed_checkpoint_is_made_up_for(made: Path) -> None:
    """Due is the first round at or after each multiple, whether or not there was time at the multiple itself."""
    run = Run.make(made)
    archive = run.archive(every_rounds=4)
    assert not archive.due(3) and archive.due(4) and archive.due(5)
    run.advance(2)  # to 5
    run.make_checkpoint(archive)
    assert not archive.due(7) and archive.due(8)


# For every line on stdin, a process that does nothing but export, forked when everything is imported (and nothing has
# started a thread yet); its id on stdout.
EXPORT_FOREVER = """
import os, sys
from pathlib import Path
from tests.checkpointed import Run
for _ in sys.stdin:
    if child := os.fork():
        print(child, flush=True)
        os.waitpid(child, 0)
        print("gone", flush=True)
        continue
    run = Run.make(Path(sys.argv[1]))
    archive = run.archive(keep_last=1)
    while True:
        run.advance()
        run.make_checkpoint(archive)
        archive.prune()
"""


@contextlib.contextmanager
def exporting(folder: Path) -> Iterator[Callable[[float], None]]:
    """A function that exports for so many seconds and kills the process that does it."""
    arguments = [sys.executable, "-c", EXPORT_FOREVER, str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(arguments, text=True, bufsize=1, start_new_session=True, **pipes) as process:  # type: ignore[call-overload]

        def export_for(seconds: float) -> None:
            process.stdin.write("go\n")
            child = int(process.stdout.readline())
            time.sleep(seconds)  # not a wait for something: the moment is the point
            os.kill(child, signal.SIGKILL)
            assert process.stdout.readline() == "gone\n"

        try:
            yield export_for
        finally:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_sigkill_at_any_moment_leaves_only_whole_checkpoints(made: Path) -> None:
    """A process that does nothing but export is killed 30 times: whatever has a manifest is a checkpoint, in full; what
    was begun is cleared away by the next start."""
    chance = random.Random(0)
    leftovers = 0
    with exporting(made) as export_for:
        for _ in range(30):
            export_for(chance.uniform(0.2, 1.0))
            found = list((made / "checkpoints").iterdir())
            whole = [path for path in found if (path / MANIFEST_FILE).exists() and not path.name.startswith(".")]
            log = Log.load(made / "log")
            assert whole and [error for path in whole for error in verify_checkpoint(path, log).errors] == []
            leftovers += len(found) - len(whole)
            listed = Run.make(made).archive().checkpoints
            assert {folder_name(it.round) for it in listed} == {path.name for path in whole}
            assert {path.name for path in (made / "checkpoints").iterdir()} == {path.name for path in whole}
    assert leftovers > 3, f"only {leftovers} kills hit an export: that shows little"
