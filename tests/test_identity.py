"""What an identity promises: one key that is the peer, in memory, on disk and in text."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peer.errors import UsageError
from peer.identity import Identity, PeerId, verify

SEED = bytes(range(32))


def test_a_known_key_has_its_known_libp2p_id() -> None:
    """The base58 text is the one libp2p gives this key (vector of the libp2p peer-id specification)."""
    private_key_of_the_spec = bytes.fromhex(
        "080112407e0830617c4a7de83925dfb2694556b12936c477a0e1feb2e148ec9da60fee7d"
        "1ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e"
    )
    identity = Identity.from_seed(private_key_of_the_spec[4:36])
    assert identity.to_file_bytes() == private_key_of_the_spec
    assert identity.peer_id.to_multihash().hex() == (
        "0024080112201ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e"
    )
    assert str(identity.peer_id) == "12D3KooWBtg3aaRMjxwedh83aGiUkwSxDwUZkzuJcfaqUmo7R3pq"


@settings(max_examples=30)
@given(st.binary(min_size=32, max_size=32))
def test_peer_ids_survive_their_text(key: bytes) -> None:
    """parse(str(id)) is id, for any 32 bytes; ids are ordered by their key."""
    peer_id = PeerId(key)
    assert PeerId.parse(str(peer_id)) == peer_id
    assert PeerId.from_multihash(peer_id.to_multihash()) == peer_id
    assert str(peer_id).startswith("12D3KooW") and str(peer_id).endswith(peer_id.short)
    assert (peer_id < PeerId(b"\xff" * 32)) == (key < b"\xff" * 32)


@pytest.mark.parametrize(
    "text", ["", "12D3KooW", "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", "0OIl", "1" * 5000, "é", "12D3 KooW"]
)
def test_texts_that_are_no_peer_id_are_refused(text: str) -> None:
    """Also RSA ids: a signature cannot be checked from a hash."""
    with pytest.raises(UsageError, match="peer id"):
        PeerId.parse(text)


def test_signatures_are_checked_from_the_peer_id_alone() -> None:
    """Right key, right data: true. Anything else, garbage included: false, never an exception."""
    identity, other = Identity.new(), Identity.new()
    signature = identity.sign(b"data")
    assert verify(identity.peer_id.public_key, signature, b"data")
    assert not verify(identity.peer_id.public_key, signature, b"datum")
    assert not verify(other.peer_id.public_key, signature, b"data")
    assert not verify(b"short", signature, b"data")
    assert not verify(identity.peer_id.public_key, b"", b"data")


def test_the_file_is_private_and_survives(tmp_path: Path) -> None:
    """Mode 0600 whatever the umask; the same peer after a restart; no temporary files left."""
    path = tmp_path / "deep" / "identity.key"
    before = os.umask(0)
    try:
        identity = Identity.load_or_create(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Identity.load_or_create(path).peer_id == identity.peer_id == Identity.load(path).peer_id
    assert os.listdir(path.parent) == ["identity.key"]


def test_an_identity_is_never_overwritten_unasked(tmp_path: Path) -> None:
    """Credit belongs to the key: a second one needs `replace`."""
    path = tmp_path / "identity.key"
    first = Identity.load_or_create(path)
    first.save(path)
    with pytest.raises(UsageError, match="exists already"):
        Identity.new().save(path)
    assert Identity.load(path).peer_id == first.peer_id
    second = Identity.new()
    second.save(path, replace=True)
    assert Identity.load(path).peer_id == second.peer_id


def test_racing_starts_end_with_one_identity(tmp_path: Path) -> None:
    """Several starters on one fresh folder all become the same peer."""
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: Identity.load_or_create(tmp_path / "key").peer_id, range(16)))
    assert len(found) == 1


def test_a_file_that_others_can_read_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It still loads, and the warning says what to type."""
    path = tmp_path / "identity.key"
    Identity.load_or_create(path)
    path.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        Identity.load(path)
    assert f"chmod 600 {path}" in caplog.text


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x08\x01\x12\x40" + bytes(63), b"\x08\x01\x12\x40" + SEED * 2])
def test_files_that_are_no_identity_are_named(tmp_path: Path, content: bytes) -> None:
    """Empty, garbage, cut short, or two halves that do not match: one line with the path."""
    path = tmp_path / "identity.key"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=str(path)):
        Identity.load(path)


def test_missing_files_and_folders_say_what_to_do(tmp_path: Path) -> None:
    """A missing file names the command that makes one; a folder is not an identity."""
    with pytest.raises(UsageError, match="identity new"):
        Identity.load(tmp_path / "absent")
    with pytest.raises(UsageError, match="cannot read"):
        Identity.load(tmp_path)


def test_export_and_import_keep_the_peer() -> None:
    """Text with other text around it is fine; a wrong passphrase, a flipped or missing part is refused in words."""
    identity = Identity.new()
    text = identity.export("correct horse ☂")
    assert identity.private_key.private_bytes_raw().hex() not in text
    assert (
        Identity.import_("> mail\n" + text.replace("\n", "\r\n") + "bye", "correct horse ☂").peer_id == identity.peer_id
    )
    with pytest.raises(UsageError, match="wrong passphrase"):
        Identity.import_(text, "correct horse")
    with pytest.raises(UsageError, match=r"cut short|damaged"):
        lines = text.splitlines()
        Identity.import_("\n".join([lines[0], *lines[2:]]), "correct horse ☂")
    with pytest.raises(UsageError, match="not an exported identity"):
        Identity.import_("hello", "x")
    with pytest.raises(UsageError, match="empty"):
        identity.export("")


def test_the_key_is_never_printed() -> None:
    """repr shows the peer id only."""
    identity = Identity.from_seed(SEED)
    assert repr(identity) == f"Identity({identity.peer_id})"


def test_identity_needs_no_heavy_import() -> None:
    """`commonweights identity show` must be instant: neither hivemind nor torch nor numpy is imported."""
    code = "import sys, peer.identity; print([m for m in ('hivemind', 'torch', 'numpy') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
