"""The order of the data, manifests and the reader of shards: on real files, with real hashes."""

from __future__ import annotations

import asyncio
import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.load import parse
from coordinator.prepare import prepare
from peer.data.manifest import FileEntry, Manifest
from peer.data.order import order_key, position_to_row, positions_to_rows
from peer.data.private import PrivateRows
from peer.data.reader import ShardReader
from peer.data.sources import BlobSource, LocationSource, Source
from peer.errors import DataError, UnreachableError
from peer.exchange.blobs import BlobStore
from tests.texts import copy_stdlib, run_config

KEY = order_key(7)


# --- the order


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 700), window=st.integers(0, 800), epoch=st.integers(0, 1 << 40), seed=st.integers(0, 1 << 63)
)
def test_every_epoch_visits_every_row_once(rows: int, window: int, epoch: int, seed: int) -> None:
    """Within any epoch, for any key, number of rows and window, the order is a bijection."""
    visited = positions_to_rows(order_key(seed), range(epoch * rows, (epoch + 1) * rows), rows, window)
    assert np.array_equal(np.sort(visited), np.arange(rows))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_random_access_agrees_with_ranges(data: st.DataObject) -> None:
    """A single position gives the row that a range over it gives, also across epochs and windows, in any order."""
    rows, window = data.draw(st.integers(1, 300)), data.draw(st.integers(0, 100))
    positions = data.draw(st.lists(st.integers(0, 5 * rows), max_size=12))
    many = positions_to_rows(KEY, positions, rows, window)
    assert many.tolist() == [position_to_row(KEY, position, rows, window) for position in positions]


def test_epochs_and_keys_give_different_orders() -> None:
    """The second epoch is shuffled anew, another seed gives another order, and neither is the order of the file."""
    first, second = (positions_to_rows(KEY, range(start, start + 1000), 1000) for start in (0, 1000))
    other = positions_to_rows(order_key(8), range(1000), 1000)
    for a, b in ((first, second), (first, other), (first, np.arange(1000))):
        assert (a == b).mean() < 0.05


def test_the_shuffle_leaves_no_trace_of_the_order() -> None:
    """Position and row are uncorrelated, and neighbours end up a third of the rows apart, as by chance."""
    rows = positions_to_rows(KEY, range(20_000), 20_000)
    assert abs(np.corrcoef(np.arange(20_000), rows)[0, 1]) < 0.03
    assert np.abs(np.diff(rows)).mean() == pytest.approx(20_000 / 3, rel=0.03)


def test_a_lease_stays_within_few_windows() -> None:
    """Positions of one window lie in one window of rows: a lease does not need every shard."""
    rows = positions_to_rows(KEY, range(2048, 4096), 100_000, window=2048)
    assert len(np.unique(rows // 2048)) == 1


def test_the_order_is_part_of_the_protocol() -> None:
    """These rows were computed once: an implementation that gives others would read other data than the log says."""
    assert positions_to_rows(order_key(0), range(8), 1000, 100).tolist() == [564, 560, 532, 524, 518, 593, 554, 523]


# --- the manifest


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of a few modules of the standard library, as bytes, in shards of 64 rows."""
    root = tmp_path_factory.mktemp("prepared")
    copy_stdlib(root / "text")
    prepare(parse(run_config(root / "text"), "test"), root / "data")
    return root / "data"


@pytest.fixture
def manifest(prepared: Path) -> Manifest:
    return Manifest.load(prepared)


def test_a_manifest_survives_its_json(manifest: Manifest) -> None:
    """Reading what was written gives an equal manifest with the same hash."""
    again = Manifest.from_json(manifest.to_json())
    assert again == manifest
    assert again.hash() == manifest.hash()


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/../../x", "", "a//b", "a\\..\\b", ".hidden", "a/b/c", "x\n"]
)
def test_file_names_that_leave_the_folder_are_refused(manifest: Manifest, name: str) -> None:
    """A manifest comes from strangers: no file name of it can point outside the cache."""
    text = manifest.to_json().replace(
        manifest.shards[0].name.encode(), name.replace("\\", "\\\\").replace("\n", "\\n").encode()
    )
    with pytest.raises(DataError, match="unsafe file name"):
        Manifest.from_json(text)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rows", 1),
        ("held_out_rows", 10**6),
        ("dtype", "uint32"),
        ("dtype", "float16"),
        ("end_of_text", 10**6),
        ("version", 2),
        ("more", 1),
    ],
)
def test_manifests_that_do_not_add_up_are_refused(manifest: Manifest, field: str, value: object) -> None:
    """Sums, sizes, types and unknown keys are checked on reading."""
    import json

    changed = {**json.loads(manifest.to_json()), field: value}
    with pytest.raises(DataError, match="not a data manifest"):
        Manifest.from_json(json.dumps(changed).encode())


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b'{"a":' * 100_000, b"\xff"])
def test_garbage_is_not_a_manifest(text: bytes) -> None:
    """Anything that is not a manifest is refused in one line."""
    with pytest.raises(DataError, match="not a data manifest"):
        Manifest.from_json(text)


def test_a_folder_without_manifest_says_so(tmp_path: Path) -> None:
    """The error names the folder and the command that fills it."""
    with pytest.raises(DataError, match="no prepared data here.*prepare"):
        Manifest.load(tmp_path)


# --- the reader


def all_rows(folder: Path, manifest: Manifest) -> np.ndarray:
    files = [np.fromfile(folder / shard.name, dtype=manifest.numpy_dtype) for shard in manifest.shards]
    return np.concatenate(files).reshape(-1, manifest.sequence_length)


async def test_rows_are_those_of_the_order(prepared: Path, manifest: Manifest, tmp_path: Path) -> None:
    """Rows at positions, fetched from a folder into a cache, are the rows of the files in the order of the key."""
    expected = all_rows(prepared, manifest)
    async with ShardReader(manifest, tmp_path, [LocationSource(str(prepared))], key=KEY) as reader:
        for positions in (range(40), range(manifest.rows - 5, manifest.rows + 5), [3, 1, 3], range(0)):
            rows = await reader.rows(positions)
            assert rows.shape == (len(positions), manifest.sequence_length)
            assert np.array_equal(rows, expected[positions_to_rows(KEY, positions, manifest.rows, manifest.window)])


async def test_an_epoch_covers_the_text(prepared: Path, manifest: Manifest) -> None:
    """All rows of an epoch together are exactly the rows of the data set."""
    async with ShardReader(manifest, prepared, key=KEY) as reader:
        epoch = await reader.rows(range(manifest.rows))
    assert sorted(map(bytes, epoch)) == sorted(map(bytes, all_rows(prepared, manifest)))


async def test_only_the_shards_that_are_needed_are_fetched(prepared: Path, manifest: Manifest, tmp_path: Path) -> None:
    """One row costs one shard, and the second reader on the same cache fetches nothing."""
    async with ShardReader(manifest, tmp_path, [LocationSource(str(prepared))], key=KEY) as reader:
        await reader.rows([0])
        assert reader.bytes_fetched == max(shard.bytes for shard in manifest.shards)
    async with ShardReader(manifest, tmp_path, key=KEY) as reader:
        await reader.rows([0])
        assert reader.bytes_fetched == 0


async def test_held_out_rows_are_the_same_for_everybody(prepared: Path, manifest: Manifest, tmp_path: Path) -> None:
    """The held-out sample does not depend on the key, and more of it begins with less of it."""
    async with (
        ShardReader(manifest, prepared, key=KEY) as one,
        ShardReader(manifest, prepared, key=order_key(99)) as two,
    ):
        few, many = await one.held_out(3), await two.held_out(10**6)
    assert len(many) == manifest.held_out_rows
    assert np.array_equal(few, many[:3])


@pytest.fixture(params=["path", "file", "http", "swarm"])
def source(request: pytest.FixtureRequest, prepared: Path) -> Iterator[LocationSource | BlobSource]:
    """The prepared folder, by every kind of source that can be tried on one machine."""
    if request.param == "path":
        yield LocationSource(str(prepared))
    elif request.param == "file":
        yield LocationSource(prepared.as_uri() + "/")
    elif request.param == "swarm":
        names = {entry.blake3: entry.name for entry in Manifest.load(prepared).files()}

        async def fetch(hash: bytes, size: int) -> Path:
            return prepared / names[hash.hex()]

        yield BlobSource(fetch)
    else:
        handler = functools.partial(_QuietHandler, directory=str(prepared))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield LocationSource(f"http://127.0.0.1:{server.server_address[1]}")
            server.shutdown()


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        return None


async def test_every_kind_of_source_serves_the_data(
    source: LocationSource | BlobSource, prepared: Path, manifest: Manifest, tmp_path: Path
) -> None:
    """Folder, file URL, HTTP and the swarm give the same rows and the same tokenizer."""
    async with ShardReader(manifest, tmp_path, [source], key=KEY) as reader:
        assert np.array_equal(
            await reader.rows(range(4)),
            all_rows(prepared, manifest)[positions_to_rows(KEY, range(4), manifest.rows, manifest.window)],
        )
        folder = await reader.tokenizer_folder()
    assert (folder / "tokenizer.json").read_bytes() == (prepared / "tokenizer" / "tokenizer.json").read_bytes()
    if isinstance(source, LocationSource):
        assert await source.manifest() == manifest


@pytest.mark.parametrize("damage", ["truncated", "longer", "flipped", "empty", "gone"])
async def test_a_damaged_shard_is_refused_and_the_next_source_asked(
    damage: str, prepared: Path, manifest: Manifest, tmp_path: Path
) -> None:
    """No byte of a damaged shard reaches training; nothing of it stays in the cache; another source mends it."""
    bad = tmp_path / "bad"
    shutil.copytree(prepared, bad)
    for shard in manifest.shards:
        path = bad / shard.name
        data = path.read_bytes()
        if damage == "gone":
            path.unlink()
        else:
            changed = {
                "truncated": data[:-2],
                "longer": data + b"xx",
                "flipped": bytes([data[0] ^ 1]) + data[1:],
                "empty": b"",
            }
            path.write_bytes(changed[damage])
    cache = tmp_path / "cache"
    async with ShardReader(manifest, cache, [LocationSource(str(bad))], key=KEY) as reader:
        with pytest.raises(DataError, match=r"no source has a sound copy of shards/train-\d+.bin: .*bad"):
            await reader.rows([0])
    assert not list(cache.rglob("*.bin*"))
    async with ShardReader(
        manifest, cache, [LocationSource(str(bad)), LocationSource(str(prepared))], key=KEY
    ) as reader:
        row = positions_to_rows(KEY, [0], manifest.rows, manifest.window)
        assert np.array_equal(await reader.rows([0]), all_rows(prepared, manifest)[row])


async def test_damage_in_the_cache_is_found_and_mended(prepared: Path, manifest: Manifest, tmp_path: Path) -> None:
    """A shard that rotted on disk between two starts is fetched again."""
    sources = [LocationSource(str(prepared))]
    async with ShardReader(manifest, tmp_path, sources, key=KEY) as reader:
        before = await reader.rows(range(8))
    for path in tmp_path.rglob("*.bin"):
        data = path.read_bytes()
        path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    async with ShardReader(manifest, tmp_path, sources, key=KEY) as reader:
        assert np.array_equal(await reader.rows(range(8)), before)
        assert reader.bytes_fetched > 0


async def test_tokens_outside_the_vocabulary_are_refused(prepared: Path, manifest: Manifest, tmp_path: Path) -> None:
    """A manifest whose hashes are right but whose tokens are not would crash an embedding: it is refused instead."""
    wrong = manifest.model_copy(update={"vocab_size": 20, "end_of_text": 1})
    async with ShardReader(wrong, tmp_path, [LocationSource(str(prepared))], key=KEY) as reader:
        with pytest.raises(DataError, match="outside the vocabulary"):
            await reader.rows([0])


async def test_the_cache_stays_within_its_cap(prepared: Path, manifest: Manifest, tmp_path: Path) -> None:
    """Reading everything through a cache of two shards gives the right rows and never keeps more than two."""
    cap = 2 * max(shard.bytes for shard in manifest.shards)
    expected = all_rows(prepared, manifest)
    async with ShardReader(manifest, tmp_path, [LocationSource(str(prepared))], key=KEY, cache_bytes=cap) as reader:
        for position in range(0, manifest.rows, 7):
            row = positions_to_rows(KEY, [position], manifest.rows, manifest.window)
            assert np.array_equal(await reader.rows([position]), expected[row])
            assert sum(path.stat().st_size for path in tmp_path.rglob("*.bin")) <= cap


@pytest.mark.parametrize(("beside", "left"), [(0, 4), (1, 3), (3, 1), (100, 1)])
async def test_shards_give_way_to_what_else_the_cap_is_for(
    prepared: Path, manifest: Manifest, tmp_path: Path, beside: int, left: int
) -> None:
    """With a cap of four shards and other files that are as large as one or three of them, the rest is for shards, but
    a quarter of the cap always is."""
    size = max(shard.bytes for shard in manifest.shards)

    def held() -> int:
        return sum(path.stat().st_size for path in tmp_path.rglob("*.bin"))

    async with ShardReader(
        manifest, tmp_path, [LocationSource(str(prepared))], key=KEY,
        cache_bytes=4 * size, taken_bytes=lambda: beside * size + held(),
    ) as reader:  # fmt: skip
        most = 0
        for position in range(0, manifest.rows, 7):
            await reader.rows([position])
            most = max(most, held())
        assert (left - 1) * size < most <= left * size


async def test_what_was_used_last_is_kept(prepared: Path, manifest: Manifest, tmp_path: Path) -> None:
    """The least recently used shard goes first, not the oldest."""
    shard_rows = manifest.shards[0].rows
    order = positions_to_rows(KEY, range(manifest.rows), manifest.rows, manifest.window)
    a, b, c = (int(np.flatnonzero(order // shard_rows == shard)[0]) for shard in range(3))
    cap = 2 * manifest.shards[0].bytes
    async with ShardReader(manifest, tmp_path, [LocationSource(str(prepared))], key=KEY, cache_bytes=cap) as reader:
        for position in (a, b, a, c):
            await reader.rows([position])
        assert {path.name for path in tmp_path.rglob("*.bin")} == {"train-00000.bin", "train-00002.bin"}


async def test_concurrent_calls_share_downloads_and_survive_a_tiny_cache(
    prepared: Path, manifest: Manifest, tmp_path: Path
) -> None:
    """Many readers at once fetch each shard they need once, and none loses its shard to another's eviction."""
    expected = all_rows(prepared, manifest)
    order = positions_to_rows(KEY, range(manifest.rows), manifest.rows, manifest.window)
    async with ShardReader(manifest, tmp_path, [LocationSource(str(prepared))], key=KEY) as reader:
        await asyncio.gather(*(reader.rows(range(start, start + 8)) for start in range(0, 64, 8)))
        assert reader.bytes_fetched <= sum(shard.bytes for shard in manifest.shards)
    shutil.rmtree(tmp_path / "shards")
    async with ShardReader(manifest, tmp_path, [LocationSource(str(prepared))], key=KEY, cache_bytes=1) as reader:
        got = await asyncio.gather(*(reader.rows(range(start, start + 4)) for start in range(0, 64, 4)))
        assert np.array_equal(np.concatenate(got), expected[order[:64]])


async def test_prefetched_rows_need_no_source(prepared: Path, manifest: Manifest, tmp_path: Path) -> None:
    """After `prefetch` of a lease its rows are read while every source is gone."""
    gone = shutil.copytree(prepared, tmp_path / "source")
    async with ShardReader(manifest, tmp_path / "cache", [LocationSource(str(gone))], key=KEY) as reader:
        await reader.prefetch(range(16))
        shutil.rmtree(gone)
        assert len(await reader.rows(range(16))) == 16


async def test_unreachable_swarm_and_missing_url_are_told_together(manifest: Manifest, tmp_path: Path) -> None:
    """The error lists every source with its reason."""

    async def fetch(hash: bytes, size: int) -> Path:
        raise UnreachableError("asked 3 peers, none answered")

    sources: list[Source] = [BlobSource(fetch), LocationSource("file:///nowhere/at/all")]
    async with ShardReader(manifest, tmp_path, sources, key=KEY) as reader:
        with pytest.raises(DataError, match="asked 3 peers, none answered; file:///nowhere/at/all/shards/.*not there"):
            await reader.rows([0])


async def test_a_blob_that_rotted_in_the_store_is_fetched_again(
    prepared: Path, manifest: Manifest, tmp_path: Path
) -> None:
    """The cache and the store share their files: when one rots, the store's copy is discarded and comes anew."""
    store = tmp_path / "store"
    store.mkdir()
    names = {entry.blake3: entry.name for entry in manifest.files()}

    async def fetch(hash: bytes, size: int) -> Path:
        path = store / hash.hex()
        if not path.exists():
            shutil.copy(prepared / names[hash.hex()], path)
        return path

    source = BlobSource(fetch, lambda hash: (store / hash.hex()).unlink())
    async with ShardReader(manifest, tmp_path / "cache", [source], key=KEY) as reader:
        before = await reader.rows([0])
    for path in store.iterdir():
        data = path.read_bytes()
        path.write_bytes(bytes([data[0] ^ 1]) + data[1:])  # in place: the cache's file is the same one
    async with ShardReader(manifest, tmp_path / "cache", [source], key=KEY) as reader:
        assert np.array_equal(await reader.rows([0]), before)


async def test_a_source_cannot_fill_the_disk(prepared: Path, manifest: Manifest, tmp_path: Path) -> None:
    """A download stops one byte after the size in the manifest, however long the file is."""
    entry = FileEntry(name="shards/train-00000.bin", bytes=10, sha256="0" * 64, blake3="0" * 64)
    await LocationSource(str(prepared))(entry, tmp_path / "part")
    assert (tmp_path / "part").stat().st_size == 11


# --- private data


async def test_private_rows_are_the_owners_files(prepared: Path, manifest: Manifest, tmp_path: Path) -> None:
    """Local files become rows of the run's tokenizer and length, endlessly, in an order of the owner's key."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "note.md").write_text("The quick brown fox. " * 200)
    (tmp_path / "own" / "rows.jsonl").write_text('{"text": "Grüße aus Köln"}\n' * 30)
    arguments = (str(tmp_path / "own"), manifest, prepared / "tokenizer", tmp_path / "cache")
    async with (
        await PrivateRows.open(*arguments, key=bytes(32)) as mine,
        await PrivateRows.open(*arguments, key=KEY) as yours,
    ):
        rows = await mine.rows(range(3 * mine.manifest.rows))
        assert rows.shape == (3 * mine.manifest.rows, manifest.sequence_length)
        assert rows.dtype == manifest.numpy_dtype
        text = bytes(token for token in rows.reshape(-1).tolist() if token < 256).decode(errors="replace")
        assert "quick brown fox" in text and "Grüße aus Köln" in text
        assert not np.array_equal(rows, await yours.rows(range(3 * mine.manifest.rows)))


async def test_private_data_that_changed_is_tokenised_again(prepared: Path, manifest: Manifest, tmp_path: Path) -> None:
    """A grown file gives more rows at the next start."""
    own = tmp_path / "own.txt"
    arguments = (str(own), manifest, prepared / "tokenizer", tmp_path / "cache")
    counts = []
    for times in (100, 300):
        own.write_text("A line of somebody's own text.\n" * times)
        async with await PrivateRows.open(*arguments, key=KEY) as reader:
            counts.append(reader.manifest.rows)
    assert counts[1] > 2 * counts[0]


async def test_private_data_that_is_not_there_is_named(prepared: Path, manifest: Manifest, tmp_path: Path) -> None:
    """A wrong path is a one-line error."""
    with pytest.raises(DataError, match="private data: .*nowhere does not exist"):
        await PrivateRows.open(str(tmp_path / "nowhere"), manifest, prepared / "tokenizer", tmp_path / "cache", key=KEY)


async def test_what_the_cache_holds_others_can_have(prepared: Path, manifest: Manifest, tmp_path: Path) -> None:
    """Every shard is offered once it was checked, also one from an earlier start, and withdrawn when it leaves."""
    store = BlobStore(tmp_path / "blobs")

    def reader(**options: Any) -> ShardReader:
        return ShardReader(
            manifest,
            tmp_path / "cache",
            [LocationSource(str(prepared))],
            key=KEY,
            keep=lambda entry, path: store.adopt(path, bytes.fromhex(entry.blake3)),
            forget=lambda entry: store.delete(bytes.fromhex(entry.blake3)),
            **options,
        )

    def held() -> set[str]:
        return {path.name for path in (tmp_path / "cache" / "shards").iterdir()}

    def offered() -> set[str]:
        names = {entry.blake3: Path(entry.name).name for entry in manifest.shards}
        return {names[blob.hex()] for blob in store.hashes() if store.check(blob)}

    async with reader() as first:
        await first.prefetch(range(64))
    assert held() == offered() != set()
    for blob in list(store.hashes()):
        store.delete(blob)
    async with reader(cache_bytes=2 * manifest.shards[0].bytes) as second:
        for position in range(0, manifest.rows, 16):
            await second.rows([position])
            assert offered() <= held()
    assert offered() and len(held()) <= 2
