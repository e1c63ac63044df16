"""Copies of checkpoints: complete where the manifest is, kept up through failures, and never another run's."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from coordinator import upload
from coordinator.destinations import FolderDestination, Stopped, destination
from coordinator.settings import CheckpointSettings
from coordinator.upload import Uploads
from peer.checkpoints.fetch import local_copy
from peer.checkpoints.manifest import MANIFEST_FILE, Checkpoint, folder_name
from peer.checkpoints.verification import verify_checkpoint
from peer.errors import UsageError
from peer.training.checkpoint import MOMENTUM_FILE
from tests.checkpointed import Run
from tests.hub_server import TOKEN, hub


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints of rounds 1, 2 and 3, and outer momentum."""
    run = Run.make(tmp_path_factory.mktemp("template") / "run", outer={"learning_rate": 0.7, "momentum": 0.9})
    archive = run.archive()
    for _ in range(3):
        run.advance()
        run.make_checkpoint(archive)
    return run.folder


@pytest.fixture
def run(template: Path, tmp_path: Path) -> Run:
    return Run.make(Path(shutil.copytree(template, tmp_path / "run")))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Retry soon; leave no file in the process-wide memory file system."""
    monkeypatch.setattr(upload, "FIRST_PAUSE_SECONDS", 0.01)
    yield
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@contextlib.asynccontextmanager
async def uploading(run: Run, url: str, **settings: Any) -> AsyncIterator[Uploads]:
    archive = run.archive(**settings)
    events: list[str] = []
    async with Uploads(archive, [destination(url, archive.settings)], events.append) as uploads:
        uploads.events = events  # type: ignore[attr-defined]
        yield uploads


async def finish(uploads: Uploads) -> None:
    async with asyncio.timeout(60):
        await uploads.finish()


def there(url: str) -> list[str]:
    files, root = fsspec.core.url_to_fs(url)
    return sorted(str(path).rstrip("/").rpartition("/")[2] for path in files.ls(root, detail=False))


@pytest.mark.parametrize("scheme", ["file", "memory"])
async def test_every_checkpoint_arrives_whole(run: Run, tmp_path: Path, scheme: str) -> None:
    """Each checkpoint of the archive is at the URL, and verifies there against the log, momentum included."""
    url = f"file://{tmp_path}/away/run" if scheme == "file" else "memory://away/run"
    async with uploading(run, url) as uploads:
        await finish(uploads)
    assert there(url) == [folder_name(round_) for round_ in (1, 2, 3)]
    for round_ in (1, 2, 3):
        with local_copy(f"{url}/{folder_name(round_)}") as folder:
            assert verify_checkpoint(folder, run.log).ok and (folder / MOMENTUM_FILE).is_file()


async def test_retention_is_the_same_elsewhere(run: Run) -> None:
    """What the rule does not keep goes there too; a round that is only there stays as long as the rule keeps it."""
    async with uploading(run, "memory://away", keep_last=2, keep_every=2) as uploads:
        await finish(uploads)
        assert there("memory://away") == [folder_name(round_) for round_ in (2, 3)]
        shutil.rmtree(uploads.archive.folder_of(2))  # the organiser makes room by hand
    async with uploading(run, "memory://away", keep_last=1, keep_every=2) as uploads:
        run.advance()
        run.make_checkpoint(uploads.archive)
        await finish(uploads)
    assert there("memory://away") == [folder_name(round_) for round_ in (2, 4)]


async def test_an_abandoned_checkpoint_is_replaced(run: Run) -> None:
    """After the log took another way, what is there of rounds that were lost is overwritten or removed."""
    async with uploading(run, "memory://away") as uploads:
        await finish(uploads)
    for round_ in (2, 3):
        (run.folder / "log" / f"{round_:08d}.record").unlink()
    other = Run.make(run.folder)
    other.advance(2, time_seconds=2.0)
    async with uploading(other, "memory://away") as uploads:
        other.make_checkpoint(uploads.archive)
        uploads.archive.prune()
        await finish(uploads)
    assert there("memory://away") == [folder_name(round_) for round_ in (1, 3)]
    with local_copy(f"memory://away/{folder_name(3)}") as folder:
        assert verify_checkpoint(folder, other.log).ok


class Unreliable(FolderDestination):
    """Breaks off after every eleventh piece; a checkpoint here has eight or nine."""

    def __init__(self, name: str) -> None:
        super().__init__(name, 0.0)
        self.pieces = 0
        self.half: list[str] = []  # what passed for a checkpoint and was none

    def put(self, folder: Path, checkpoint: Checkpoint, on_bytes: Callable[[int], None]) -> None:
        def piece(count: int) -> None:
            on_bytes(count)
            self.pieces += 1
            self.see()
            if self.pieces % 11 == 0:
                raise OSError("connection reset")

        super().put(folder, checkpoint, piece)

    def see(self) -> None:
        """Whatever has a manifest at this moment has everything."""
        files, root = fsspec.core.url_to_fs(self.url)
        for path in files.glob(f"{root}/*/{MANIFEST_FILE}"):
            checkpoint = Checkpoint.parse(files.cat_file(path))
            places = {f"{path.rpartition('/')[0]}/{file.name}": file.bytes for file in checkpoint.manifest.files}
            self.half += [it for it, size in places.items() if not (files.exists(it) and files.size(it) == size)]


async def test_a_failing_destination_is_tried_again(run: Run) -> None:
    """An upload that breaks off is begun again until it is through; at no moment is there half a checkpoint."""
    archive, events = run.archive(), list[str]()
    place = Unreliable("memory://away")
    async with Uploads(archive, [place], events.append) as uploads:
        async with asyncio.timeout(60):
            while not uploads.lines[0].settled:
                await asyncio.sleep(0.01)
    assert there("memory://away") == [folder_name(round_) for round_ in (1, 2, 3)]
    assert place.half == [] and place.pieces > 11
    assert "connection reset" in " ".join(events) and "trying again" in " ".join(events)


async def test_a_dead_destination_does_not_hold_up_the_end(run: Run) -> None:
    """After a few failures in a row `finish` returns and says that something is missing."""
    (run.folder / "blocked").write_text("a file where a folder should be")
    async with uploading(run, f"file://{run.folder}/blocked") as uploads:
        await finish(uploads)
        assert "the next start goes on" in uploads.events[-1]  # type: ignore[attr-defined]


async def test_another_runs_checkpoints_are_left_alone(run: Run, tmp_path: Path) -> None:
    """A URL that holds another run is refused with its name, and nothing there changes."""
    async with uploading(run, "memory://away") as uploads:
        await finish(uploads)
    before = dict(MemoryFileSystem.store)
    other = Run.make(tmp_path / "other")
    other.advance()
    other.make_checkpoint(other.archive())
    async with uploading(other, "memory://away") as uploads:
        await finish(uploads)
        assert "another run" in uploads.events[0]  # type: ignore[attr-defined]
    assert MemoryFileSystem.store.keys() == before.keys()


async def test_stopping_gives_up_what_is_under_way(run: Run) -> None:
    """A slow upload does not keep the coordinator from ending, and leaves no manifest behind."""
    archive = run.archive()
    files, root = fsspec.core.url_to_fs("memory://away")
    slow = FolderDestination("memory://away", upload_mbit=0.01)
    async with asyncio.timeout(20):
        async with Uploads(archive, [slow]) as uploads:
            while uploads.busy_rounds != {1}:
                await asyncio.sleep(0.01)
    assert not files.glob(f"{root}/*/{MANIFEST_FILE}")


def test_stopped_is_heard_between_pieces(run: Run) -> None:
    """What on_bytes raises ends the copy before the manifest is written."""
    archive = run.archive()
    place = destination("memory://away", archive.settings)

    def stop(count: int) -> None:
        raise Stopped("now")

    with pytest.raises(Stopped):
        place.put(archive.folder_of(1), archive.checkpoints[0], stop)
    assert place.stored(run.log.run_id) == []


@pytest.mark.parametrize(
    ("url", "says"), [("gopher://x/y", "Protocol not known"), ("hf://only-a-name", "NAME/REPOSITORY")]
)
def test_wrong_destinations_are_named_at_the_start(url: str, says: str) -> None:
    """A scheme that nobody knows, a repository without an owner: one line with the key."""
    with pytest.raises(UsageError, match=rf"checkpoints.upload: .*{says}"):
        destination(url, CheckpointSettings())


class Refusing(MemoryFileSystem):  # type: ignore[misc]
    """Lets nobody in, and repeats the URL that it was given, as some libraries do."""

    protocol = "refusing"
    url = "refusing://me:hunter2@host/run?sig=hunter2"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        raise OSError(f"{self.url}: permission denied")


async def test_passwords_in_urls_are_shown_nowhere(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """Neither the events that everybody sees on the page, nor the log, nor a complaint at the start has one; the place
    can still be told, and that it lets nobody in is no reason not to start."""
    caplog.set_level("DEBUG")
    fsspec.register_implementation("refusing", Refusing, clobber=True)
    async with uploading(run, Refusing.url) as uploads:
        await finish(uploads)
        events = uploads.events  # type: ignore[attr-defined]
        assert any("refusing://me:***@host/run?*** permission denied" in event for event in events)
        shown = [*events, caplog.text, uploads.lines[0].destination.name]
    with pytest.raises(UsageError, match="//me:") as refused:
        destination("gopher://me:hunter2@host/run", CheckpointSettings())
    assert not [text for text in [*shown, str(refused.value)] if "hunter2" in text]


def test_the_hub_needs_a_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without one the start is refused, and the cure named."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UsageError, match="set HF_TOKEN"):
        destination("hf://me/model", CheckpointSettings())


TO_THE_HUB = """
import asyncio, sys
from pathlib import Path
from coordinator import upload
from coordinator.destinations import destination
from coordinator.upload import Uploads
from tests.checkpointed import Run
upload.FIRST_PAUSE_SECONDS = 0.01
async def main():
    archive = Run.make(Path(sys.argv[1])).archive(keep_last=int(sys.argv[2]))
    archive.prune()
    async with Uploads(archive, [destination("hf://me/model", archive.settings)], print) as uploads:
        await uploads.finish()
asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_checkpoints_go_to_the_hub(run: Run) -> None:
    """huggingface_hub itself, against a server on this machine that fails at first: one commit per checkpoint, the
    manifest in it, a tag for each that is kept, no momentum, and the token on no line."""
    with hub() as server:
        server.failures = 1
        environment = {
            **os.environ,
            "HF_ENDPOINT": server.address,
            "HF_TOKEN": TOKEN,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

        def go(keep_last: int) -> str:
            arguments = [sys.executable, "-c", TO_THE_HUB, str(run.folder), str(keep_last)]
            done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=120, check=False)
            assert done.returncode == 0, done.stderr
            return done.stdout + done.stderr

        said = go(3)
        newest = Checkpoint.parse(server.tree[MANIFEST_FILE])
        assert newest.origin.run_id == run.log.run_id and TOKEN not in said
        assert server.repository == "me/model" and server.private is True and server.faults == []
        for number, tree in enumerate(server.commits):
            checkpoint = Checkpoint.parse(tree[MANIFEST_FILE])
            assert set(tree) == {MANIFEST_FILE, *(it.name for it in checkpoint.manifest.files if not it.resuming)}
            record = checkpoint.manifest.record_hash.hex()[:8]
            assert server.tags[f"{folder_name(checkpoint.round)}-{record}"] == number
        go(1)
        assert [tag[:12] for tag in server.tags] == [folder_name(3)]
        before = len(server.commits)
        run.advance()
        run.make_checkpoint(run.archive())
        go(1)
        assert Checkpoint.parse(server.tree[MANIFEST_FILE]).round == 4 and len(server.commits) == before + 1
        folder = run.folder.parent / "from the hub"
        for name, data in server.tree.items():
            folder.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)
        assert verify_checkpoint(folder, Run.make(run.folder).log).ok


@pytest.mark.slow
async def test_checkpoints_go_to_object_storage(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real S3 client against an S3 server on this machine: whole checkpoints, dropped by the rule."""
    pytest.importorskip("s3fs")
    server_module = pytest.importorskip("moto.server")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        files = fsspec.filesystem("s3", skip_instance_cache=True)
        await asyncio.to_thread(files.mkdir, "models")
        async with uploading(run, "s3://models/run", keep_last=2) as uploads:
            await finish(uploads)
        names = await asyncio.to_thread(files.find, "models/run")
        assert {name.split("/")[2] for name in names} == {folder_name(2), folder_name(3)}

        def fetched() -> bool:
            with local_copy(f"s3://models/run/{folder_name(3)}") as folder:
                return verify_checkpoint(folder, run.log).ok

        assert await asyncio.to_thread(fetched)
    finally:
        server.stop()
