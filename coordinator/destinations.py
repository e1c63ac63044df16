"""Where copies of checkpoints go: any file system of fsspec, or a repository on the Hugging Face Hub.

Both promise the same: a reader that finds the manifest finds everything that it names. On a file system the manifest is
written last and deleted first; on the Hub a checkpoint is one commit, and a tag names its round and record.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import fsspec

from coordinator.settings import CheckpointSettings
from peer.checkpoints.manifest import MANIFEST_FILE, Checkpoint, folder_name
from peer.errors import CommonweightsError, UsageError, VerificationError

PIECE_BYTES = 1 << 20
HUB = "hf://"


class Stopped(CommonweightsError):
    """The process is about to end, in the middle of an upload."""


class OtherRun(CommonweightsError):
    """Something is there already, and it is not of this run."""


@dataclass(frozen=True)
class Stored:
    """A complete checkpoint at a destination."""

    round: int
    record_hash: str  # hex, or the beginning of it


class Destination(Protocol):
    """Called from one thread at a time. What fails raises whatever the library behind it raises."""

    name: str  # for people, without secrets

    def stored(self, run_id: bytes) -> list[Stored]:
        """The complete checkpoints of the run that are there. Raises OtherRun."""
        ...

    def put(self, folder: Path, checkpoint: Checkpoint, on_bytes: Callable[[int], None]) -> None:
        """Copy a checkpoint. `on_bytes` is told the bytes of each piece that was sent, and may raise `Stopped`."""
        ...

    def drop(self, stored: Stored) -> None:
        """Remove a checkpoint."""
        ...


def without_secrets(text: str) -> str:
    """What may be shown: passwords and query strings of the URLs in it are blotted out."""
    text = re.sub(r"(?<=://)([^\s/:@]*):[^\s/]*@", r"\1:***@", text)
    return re.sub(r"(://[^\s?]*\?)[^\s'\"]*", r"\1***", text)


def destination(url: str, settings: CheckpointSettings) -> Destination:
    """What a URL of the settings means.

    Raises:
        UsageError: nothing that is known or installed here, or a token is missing.
    """
    if url.startswith(HUB):
        return HubDestination(url, settings.private)
    name, (scheme, _, _) = without_secrets(url), url.partition("://")
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise UsageError(f"checkpoints.upload: {name}: {error}; install it with pip") from None
    except ValueError as error:
        raise UsageError(f"checkpoints.upload: {name}: {error}") from None
    return FolderDestination(url, settings.upload_mbit)


class FolderDestination:
    """A folder per checkpoint below `url`, named as in the run's own folder.

    Connected at the first use, and again after an error: a place that is away keeps no coordinator from starting.
    """

    def __init__(self, url: str, upload_mbit: float) -> None:
        self.url = url.rstrip("/")
        self.name = without_secrets(url)
        self.bytes_per_second = upload_mbit * 1e6 / 8
        self._place: tuple[fsspec.AbstractFileSystem, str] | None = None

    @contextlib.contextmanager
    def connected(self) -> Iterator[tuple[fsspec.AbstractFileSystem, str]]:
        """The file system, and the path of `url` in it."""
        if self._place is None:
            self._place = fsspec.core.url_to_fs(self.url, skip_instance_cache=True)
        try:
            yield self._place
        except Exception:
            self._place = None
            raise

    def stored(self, run_id: bytes) -> list[Stored]:
        with self.connected() as (files, root):
            files.invalidate_cache()
            try:
                paths = files.ls(root, detail=False)
            except FileNotFoundError:
                return []
            names = sorted(str(path).rstrip("/") for path in paths)
            folders = [path for path in names if path.rpartition("/")[2].startswith("round-")]
            return [stored for path in folders if (stored := self._complete(files, path, run_id))]

    def _complete(self, files: fsspec.AbstractFileSystem, path: str, run_id: bytes) -> Stored | None:
        try:
            checkpoint = Checkpoint.parse(files.cat_file(f"{path}/{MANIFEST_FILE}"))
        except (FileNotFoundError, VerificationError):
            return None  # half a checkpoint: written again, or left alone
        _check_run(self.name, checkpoint, run_id)
        return Stored(checkpoint.round, checkpoint.manifest.record_hash.hex())

    def put(self, folder: Path, checkpoint: Checkpoint, on_bytes: Callable[[int], None]) -> None:
        with self.connected() as (files, root):
            target = f"{root}/{folder_name(checkpoint.round)}"
            _remove(files, f"{target}/{MANIFEST_FILE}")
            for file in checkpoint.manifest.files:
                path = f"{target}/{file.name}"
                files.makedirs(path.rpartition("/")[0], exist_ok=True)
                with (folder / file.name).open("rb") as source, files.open(path, "wb") as out:
                    for piece in self._pieces(source):
                        out.write(piece)
                        on_bytes(len(piece))
            files.pipe_file(f"{target}/{MANIFEST_FILE}", checkpoint.content)

    def drop(self, stored: Stored) -> None:
        with self.connected() as (files, root):
            target = f"{root}/{folder_name(stored.round)}"
            _remove(files, f"{target}/{MANIFEST_FILE}")
            files.rm(target, recursive=True)

    def _pieces(self, source: Any) -> Iterator[bytes]:
        started, sent = time.monotonic(), 0
        while piece := source.read(PIECE_BYTES):
            yield piece
            sent += len(piece)
            if self.bytes_per_second:
                time.sleep(max(0.0, started + sent / self.bytes_per_second - time.monotonic()))


class HubDestination:
    """A repository whose `main` is the newest checkpoint, with a tag for each that is kept.

    The library uploads large files by itself, so there is no limit and no progress within a file.
    """

    def __init__(self, name: str, private: bool) -> None:
        from huggingface_hub import HfApi, get_token

        self.name = name
        self.repository = name.removeprefix(HUB).strip("/")
        if self.repository.count("/") != 1:
            raise UsageError(f"checkpoints.upload: {name}: write {HUB}NAME/REPOSITORY")
        if not get_token():
            raise UsageError(f"checkpoints.upload: {name}: needs a token of the Hugging Face Hub; set HF_TOKEN")
        self.private = private
        self.api = HfApi(library_name="commonweights", endpoint=os.environ.get("HF_ENDPOINT"))

    def stored(self, run_id: bytes) -> list[Stored]:
        self.api.create_repo(self.repository, private=self.private, exist_ok=True)
        if self.api.file_exists(self.repository, MANIFEST_FILE):
            with tempfile.TemporaryDirectory() as folder:
                path = self.api.hf_hub_download(self.repository, MANIFEST_FILE, local_dir=folder)
                _check_run(self.name, Checkpoint.parse(Path(path).read_bytes()), run_id)
        return [stored for tag in self.api.list_repo_refs(self.repository).tags if (stored := _from_tag(tag.name))]

    def put(self, folder: Path, checkpoint: Checkpoint, on_bytes: Callable[[int], None]) -> None:
        """One commit: `upload_folder` would make several of a large folder, with half a checkpoint in between."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        manifest = checkpoint.manifest
        names = [MANIFEST_FILE, *(file.name for file in manifest.files if not file.resuming)]
        left_over = set(self.api.list_repo_files(self.repository)) - {*names, ".gitattributes"}
        self.api.create_commit(
            self.repository,
            [
                *(CommitOperationDelete(name) for name in sorted(left_over)),
                *(CommitOperationAdd(name, folder / name) for name in names),
            ],
            commit_message=f"Round {manifest.round}: {manifest.tokens:,} tokens, loss {manifest.eval_loss:.4f}",
        )
        stored = Stored(manifest.round, manifest.record_hash.hex())
        self.api.create_tag(self.repository, tag=_tag(stored), exist_ok=True)
        on_bytes(checkpoint.size_bytes)

    def drop(self, stored: Stored) -> None:
        """The tag goes; the Hub keeps what it named in the history of `main`."""
        self.api.delete_tag(self.repository, tag=_tag(stored))


def _remove(files: fsspec.AbstractFileSystem, path: str) -> None:
    if files.exists(path):
        files.rm_file(path)


def _tag(stored: Stored) -> str:
    return f"{folder_name(stored.round)}-{stored.record_hash[:8]}"


def _from_tag(tag: str) -> Stored | None:
    kind, _, rest = tag.partition("-")
    round_, _, record = rest.partition("-")
    if kind != "round" or not round_.isdecimal() or len(record) != 8:
        return None
    return Stored(int(round_), record)


def _check_run(name: str, checkpoint: Checkpoint, run_id: bytes) -> None:
    if checkpoint.origin.run_id != run_id:
        raise OtherRun(
            f"{name} holds checkpoints of another run ({checkpoint.origin.spec.run.name}); nothing is uploaded there,"
            " choose another place in checkpoints.upload"
        )
