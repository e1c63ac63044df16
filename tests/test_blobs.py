"""What the blob store promises: a name is its content's hash, nothing half-written is ever seen, downloads resume."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from peer.errors import CommonweightsError, DataError
from peer.exchange import blobs, recent
from peer.exchange.blobs import SEGMENT_BYTES, BlobStore


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


def test_a_blob_is_found_under_its_hash(store: BlobStore) -> None:
    """put names it by blake3; reading gives it back, whole or in part; a second put changes nothing."""
    content = os.urandom(100_000)
    blob = store.put(content)
    assert blob == blake3(content).digest() == store.put(content)
    assert store.has(blob) and store.size(blob) == len(content) == store.total_bytes
    assert store.read(blob) == content
    assert store.read(blob, 99_990, 50) == content[99_990:]
    view = store.view(blob)
    assert view == content and view.readonly
    assert list(store.hashes()) == [blob] and store.check(blob)
    assert store.path(blob).parts[-3:-1] == (blob.hex()[:2], blob.hex()[2:4])


def test_the_newest_small_blobs_need_no_disk(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was put or read a moment ago; the oldest makes room, a large one never takes any. A deletion is one."""
    monkeypatch.setattr(recent, "RECENT_BYTES", 250)
    first, second, third = (store.put(bytes([number]) * 100) for number in range(3))
    large = store.put(bytes(recent.SMALL_BYTES + 1))
    assert store.has_in_memory([second, third])
    assert not store.has_in_memory([second, first]) and not store.has_in_memory([large])
    assert store.view(first) == bytes(100) and store.has_in_memory([third, first]) and not store.has_in_memory([second])
    store.path(first).unlink()
    assert store.has(first) and store.view(first) == bytes(100) and not store.check(first)
    store.delete(first)
    assert not store.has(first)


def test_what_rotted_is_not_kept_in_memory(store: BlobStore) -> None:
    """Whoever checks shall see it."""
    blob = store.put(b"content")
    fresh = BlobStore(store.folder)
    fresh.path(blob).write_bytes(b"another")
    assert bytes(fresh.view(blob)) == b"another" and not fresh.has_in_memory([blob])


def test_the_empty_blob_is_a_blob(store: BlobStore) -> None:
    """Size 0 works everywhere: put, read, check, and as a finished download."""
    blob = store.put(b"")
    assert store.read(blob) == b"" == bytes(store.view(blob)) and store.check(blob)
    store.delete(blob)
    partial = store.partial(blob, 0)
    assert partial.missing_bytes == 0 and partial.finish() and store.has(blob)


def test_files_are_copied_in(store: BlobStore, tmp_path: Path) -> None:
    """put_file leaves the original alone; a file that cannot be read is named."""
    path = tmp_path / "shard.bin"
    path.write_bytes(os.urandom(3_000_000))
    blob = store.put_file(path)
    path.write_bytes(b"changed")
    assert store.check(blob) and store.size(blob) == 3_000_000
    assert store.put_file(path) == blake3(b"changed").digest()
    with pytest.raises(DataError, match=r"absent\.bin"):
        store.put_file(tmp_path / "absent.bin")


def test_what_is_missing_is_said(store: BlobStore) -> None:
    """Reading an absent blob is a DataError with its hash; deleting it is not an error."""
    blob = blake3(b"never stored").digest()
    for attempt in (store.read, store.open, store.size):
        with pytest.raises(DataError, match=blob.hex()):
            attempt(blob)
    store.delete(blob)
    assert not store.has(blob) and not store.check(blob)


def test_damage_is_found_by_check(store: BlobStore) -> None:
    """A flipped byte on disk is noticed when asked for."""
    blob = store.put(b"some content")
    path = store.path(blob)
    path.write_bytes(b"Some content")
    assert not store.check(blob)


def test_sizes_survive_reopening(store: BlobStore) -> None:
    """total_bytes is counted again at the start; deleted blobs are gone from it, an open one stays readable."""
    first, second = store.put(b"a" * 1000), store.put(b"b" * 500)
    with store.open(first) as file:
        store.delete(first)
        assert file.read() == b"a" * 1000
    assert store.total_bytes == 500 == BlobStore(store.folder).total_bytes
    assert BlobStore(store.folder).has(second)


def test_a_full_disk_is_a_sentence(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSPC while writing says how much is free and what to do; nothing half-written stays."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CommonweightsError, match="disk is full.*make room"):
        store.put(b"content")
    assert list(store.hashes()) == [] and os.listdir(store.folder / "partial") == []


def test_a_partial_blob_becomes_visible_only_when_right(store: BlobStore) -> None:
    """Wrong bytes: finish says no and starts over. Right bytes: it is a blob and nothing is left beside it."""
    content = os.urandom(SEGMENT_BYTES + 1000)
    blob = blake3(content).digest()
    partial = store.partial(blob, len(content))
    partial.write(0, 0, b"x" * SEGMENT_BYTES)
    partial.write(1, 0, content[SEGMENT_BYTES:])
    assert partial.missing_bytes == 0 and not store.has(blob)
    assert not partial.finish() and partial.missing_bytes == len(content)
    partial.write(0, 0, content[:SEGMENT_BYTES])
    partial.write(1, 0, content[SEGMENT_BYTES:])
    assert partial.finish()
    assert store.check(blob) and store.total_bytes == len(content)
    assert os.listdir(store.folder / "partial") == []


def test_a_partial_blob_resumes(store: BlobStore) -> None:
    """What was there when it was closed is there in the next process; lies in the progress file are not believed."""
    content = os.urandom(2 * SEGMENT_BYTES)
    blob = blake3(content).digest()
    partial = store.partial(blob, len(content))
    partial.write(1, 0, content[SEGMENT_BYTES : SEGMENT_BYTES + 5000])
    partial.close()
    again = BlobStore(store.folder).partial(blob, len(content))
    assert again.filled == [0, 5000]
    again.close()
    progress = store.folder / "partial" / f"{blob.hex()}-{len(content)}.json"
    lies: list[object] = [{"filled": [0, SEGMENT_BYTES + 1]}, {"filled": [1]}, {"filled": "x"}, [], {"filled": [-1, 0]}]
    for lie in lies:
        progress.write_text(json.dumps(lie))
        partial = store.partial(blob, len(content))
        assert partial.filled == [0, 0]
        partial._file.close()
    progress.write_text("not json")
    assert store.partial(blob, len(content)).filled == [0, 0]


def test_a_file_of_the_wrong_length_is_no_beginning(store: BlobStore) -> None:
    """What was cut on disk is started over; a wrong size announced for a blob does not disturb the right one."""
    content = os.urandom(1000)
    blob = blake3(content).digest()
    wrong = store.partial(blob, 2000)
    wrong.write(0, 0, b"y" * 2000)
    wrong.close()
    right = store.partial(blob, 1000)
    right.write(0, 0, b"z" * 500)
    right.close()
    os.truncate(store.folder / "partial" / f"{blob.hex()}-1000", 900)
    right = store.partial(blob, 1000)
    assert right.filled == [0]
    right.write(0, 0, content)
    assert right.finish() and store.check(blob)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 1500)), max_size=20))
def test_pieces_from_several_places_fill_a_segment_once(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[int, int]]
) -> None:
    """Overlapping, early and overlong pieces never write wrong bytes: what is filled is always a right beginning."""
    content = os.urandom(2500)
    store = BlobStore(tmp_path_factory.mktemp("blobs"))
    partial = store.partial(blake3(content).digest(), len(content))
    source = content + b"\xff" * 5000
    for offset, length in pieces:
        before = partial.filled[0]
        fresh = partial.write(0, offset, source[offset : offset + length])
        assert partial.filled[0] == before + fresh
    assert partial.filled[0] <= len(content)
    partial.write(0, partial.filled[0], source[partial.filled[0] :])
    assert partial.finish()


def test_old_leftovers_are_swept(store: BlobStore) -> None:
    """Abandoned downloads go after a day, unfinished writes of a killed process at the next start."""
    folder = store.folder / "partial"
    (folder / "abc.new").write_bytes(b"x")
    old, young = folder / ("0" * 64), folder / ("1" * 64)
    old.write_bytes(b"x")
    young.write_bytes(b"x")
    os.utime(old, (1.0, 1.0))
    BlobStore(store.folder)
    assert os.listdir(folder) == [young.name]


def test_abandoned_downloads_make_room(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the process runs: beginnings that nobody is at go when they are old or too many; the one in use stays."""
    monkeypatch.setattr(blobs, "MAX_PARTIAL_BYTES", 150_000)
    names = [bytes([number]) * 32 for number in range(4)]
    used = store.partial(names[0], 100_000)
    for name in names[1:]:
        store.partial(name, 100_000).close()
    held = {path.name[:2] for path in (store.folder / "partial").iterdir()}
    assert held == {"00", "02", "03"}
    monkeypatch.setattr(blobs, "UNUSED_SECONDS", -1.0)
    store.partial(names[0], 100_000).close()
    assert {path.name[:2] for path in (store.folder / "partial").iterdir()} == {"00"}
    used.close()


def test_a_checked_file_becomes_a_blob_without_a_copy(store: BlobStore, tmp_path: Path) -> None:
    """Shards lie in the cache and in the store under two names; either may be deleted."""
    file = tmp_path / "shard"
    file.write_bytes(b"tokens")
    blob = blake3(b"tokens").digest()
    store.adopt(file, blob)
    store.adopt(file, blob)
    assert store.check(blob) and store.total_bytes == 6 and file.stat().st_nlink == 2
    file.unlink()
    assert store.read(blob) == b"tokens"
