"""Who a peer is: one Ed25519 key that names it in the swarm and signs what it contributes.

The libp2p peer id of an Ed25519 key *contains* the public key (identity multihash), so a signature can be checked from
the id alone and credit can belong to the id. The file on disk has the layout that hivemind's p2p daemon reads
(`crypto_pb2.PrivateKey`), so the transport and the signatures share one file; those few bytes are written by hand here
to keep this module free of heavy imports. The price of one key for everything: whoever copies the file is the peer.

Formats: https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md, RFC 8032 (Ed25519), RFC 7914 (scrypt).
"""

from __future__ import annotations

import base64
import binascii
import logging
import os
import secrets
import stat
import textwrap
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from peer.errors import CommonweightsError, UsageError

logger = logging.getLogger(__name__)

KEY_BYTES = 32
SIGNATURE_BYTES = 64

_MULTIHASH_PREFIX = bytes([0x00, 0x24, 0x08, 0x01, 0x12, 0x20])  # identity hash, 36 bytes: PublicKey{Ed25519, 32 bytes}
_FILE_PREFIX = bytes([0x08, 0x01, 0x12, 0x40])  # PrivateKey{key_type: Ed25519, data: 64 bytes} = seed + public key
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"

_EXPORT_BEGIN = "-----BEGIN COMMONWEIGHTS IDENTITY-----"
_EXPORT_END = "-----END COMMONWEIGHTS IDENTITY-----"
_EXPORT_VERSION = b"\x01"
_SALT_BYTES = 16
_NONCE_BYTES = 12


@dataclass(frozen=True, order=True)
class PeerId:
    """A peer's name: its 32-byte Ed25519 public key, written for people as libp2p's base58 peer id."""

    public_key: bytes

    def __post_init__(self) -> None:
        if len(self.public_key) != KEY_BYTES:
            raise UsageError(f"a peer's public key has {KEY_BYTES} bytes, not {len(self.public_key)}")

    def __hash__(self) -> int:  # bytes remember theirs; the generated one makes a tuple first
        return hash(self.public_key)

    @cached_property
    def _text(self) -> str:
        return _base58_encode(_MULTIHASH_PREFIX + self.public_key)

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"PeerId({self._text})"

    @property
    def short(self) -> str:
        """The last 6 characters: enough for people to tell peers of one run apart, not enough to trust."""
        return self._text[-6:]

    def to_multihash(self) -> bytes:
        """The 38 bytes that libp2p uses on the wire."""
        return _MULTIHASH_PREFIX + self.public_key

    @classmethod
    def from_multihash(cls, data: bytes) -> PeerId:
        """Raises UsageError for ids that are not Ed25519 keys (RSA ids are hashes: no signature can be checked)."""
        if len(data) != len(_MULTIHASH_PREFIX) + KEY_BYTES or not data.startswith(_MULTIHASH_PREFIX):
            raise UsageError("not the peer id of an Ed25519 key")
        return cls(bytes(data[len(_MULTIHASH_PREFIX) :]))

    @classmethod
    def from_public_key(cls, public_key: bytes) -> PeerId:
        return cls(bytes(public_key))

    @classmethod
    def parse(cls, text: str) -> PeerId:
        """From base58, as printed by `commonweights identity show`. Raises UsageError."""
        try:
            return cls.from_multihash(_base58_decode(text.strip()))
        except (ValueError, UsageError):
            raise UsageError(
                f"{text[:60]!r} is not a peer id; peer ids look like 12D3KooW... (52 characters)"
            ) from None


class Identity:
    """A peer's private key. Never printed, never sent."""

    def __init__(self, private_key: Ed25519PrivateKey) -> None:
        self.private_key = private_key
        self.peer_id = PeerId(private_key.public_key().public_bytes_raw())

    def __repr__(self) -> str:
        return f"Identity({self.peer_id})"

    def sign(self, data: bytes) -> bytes:
        """64-byte Ed25519 signature."""
        return self.private_key.sign(data)

    @classmethod
    def new(cls) -> Identity:
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> Identity:
        """From the 32-byte Ed25519 seed: the same seed is the same peer."""
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    def to_file_bytes(self) -> bytes:
        """What the identity file holds; p2pd reads the same bytes."""
        return _FILE_PREFIX + self.private_key.private_bytes_raw() + self.peer_id.public_key

    @classmethod
    def load(cls, path: str | Path) -> Identity:
        """Raises UsageError if the file is missing or holds no Ed25519 identity; warns if others may read it."""
        path = Path(path)
        try:
            with path.open("rb") as file:
                data = file.read(len(_FILE_PREFIX) + 2 * KEY_BYTES + 1)
                mode = os.fstat(file.fileno()).st_mode
        except FileNotFoundError:
            raise UsageError(f"no identity file at {path}; make one with `commonweights identity new`") from None
        except OSError as error:
            raise UsageError(f"cannot read the identity file {path}: {error.strerror}") from None
        if len(data) != len(_FILE_PREFIX) + 2 * KEY_BYTES or not data.startswith(_FILE_PREFIX):
            raise UsageError(f"{path} is not an identity file; make one with `commonweights identity new`")
        seed, public_key = data[len(_FILE_PREFIX) : -KEY_BYTES], data[-KEY_BYTES:]
        identity = cls.from_seed(seed)
        if identity.peer_id.public_key != public_key:
            raise UsageError(f"the identity file {path} is damaged: its two halves do not belong together")
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            logger.warning("other users of this machine may read your identity; run: chmod 600 %s", path)
        return identity

    @classmethod
    def load_or_create(cls, path: str | Path) -> Identity:
        """The identity at `path`, made on first use. Two processes that race for a fresh file end with one identity."""
        path = Path(path)
        if not path.exists():
            try:
                cls.new().save(path)
            except UsageError:
                if not path.exists():
                    raise
        return cls.load(path)

    def save(self, path: str | Path, *, replace: bool = False) -> None:
        """Writes the file with mode 0600, complete or not at all.

        An identity that is there already is never overwritten unless `replace`: credit belongs to the key, and a lost
        key cannot be made again. Raises UsageError if another identity is there, CommonweightsError if the disk fails.
        """
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(self.to_file_bytes())
                    file.flush()
                    os.fsync(file.fileno())
                if replace:
                    os.replace(temporary, path)
                else:
                    self._publish(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise CommonweightsError(f"cannot write the identity file {path}: {error.strerror}") from None

    def _publish(self, temporary: Path, path: Path) -> None:
        try:
            os.link(temporary, path)  # atomic, and fails if the name is taken
        except FileExistsError:
            if path.is_file() and path.read_bytes() == self.to_file_bytes():
                return
            raise UsageError(f"{path} exists already; move it away first: credit belongs to the key in it") from None
        except OSError:  # a file system without hard links: a small race is left
            if path.exists():
                raise UsageError(f"{path} exists already; move it away first") from None
            os.replace(temporary, path)

    def export(self, passphrase: str) -> str:
        """Text to copy to another machine: the seed under AES-256-GCM with a scrypt key (n=2^15, r=8, p=1)."""
        if not passphrase:
            raise UsageError("the passphrase is empty; whoever reads the exported text could then be you")
        salt, nonce = secrets.token_bytes(_SALT_BYTES), secrets.token_bytes(_NONCE_BYTES)
        seed = self.private_key.private_bytes_raw()
        sealed = AESGCM(_stretch(passphrase, salt)).encrypt(nonce, seed, _EXPORT_VERSION + self.peer_id.public_key)
        data = _EXPORT_VERSION + self.peer_id.public_key + salt + nonce + sealed
        return "\n".join([_EXPORT_BEGIN, *textwrap.wrap(base64.b64encode(data).decode(), 64), _EXPORT_END]) + "\n"

    @classmethod
    def import_(cls, text: str, passphrase: str) -> Identity:
        """Reverses `export`. Raises UsageError for another text, a damaged one or a wrong passphrase."""
        begin, end = text.find(_EXPORT_BEGIN), text.find(_EXPORT_END)
        if begin < 0 or end < begin:
            raise UsageError(f"this is not an exported identity; it starts with {_EXPORT_BEGIN}")
        try:
            data = base64.b64decode("".join(text[begin + len(_EXPORT_BEGIN) : end].split()), validate=True)
        except (binascii.Error, ValueError):
            raise UsageError("the exported identity is damaged: not base64; copy the whole text again") from None
        head = 1 + KEY_BYTES + _SALT_BYTES + _NONCE_BYTES
        if len(data) != head + KEY_BYTES + 16:
            raise UsageError("the exported identity is cut short; copy the whole text again")
        if data[:1] != _EXPORT_VERSION:
            raise UsageError(
                f"the exported identity has format {data[0]}, known is {_EXPORT_VERSION[0]}; upgrade first"
            )
        public_key, salt = data[1 : 1 + KEY_BYTES], data[1 + KEY_BYTES : 1 + KEY_BYTES + _SALT_BYTES]
        try:
            seed = AESGCM(_stretch(passphrase, salt)).decrypt(
                data[head - _NONCE_BYTES : head], data[head:], _EXPORT_VERSION + public_key
            )
        except InvalidTag:
            raise UsageError("wrong passphrase, or the exported identity is damaged") from None
        return cls.from_seed(seed)


def verify(public_key: bytes, signature: bytes, data: bytes) -> bool:
    """Whether `signature` (64 bytes) over `data` was made by the owner of `public_key` (32 bytes). Never raises."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


def _stretch(passphrase: str, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=32, n=1 << 15, r=8, p=1).derive(passphrase.encode())


@lru_cache(4096)  # the same few peers, again and again
def _base58_encode(data: bytes) -> str:
    number, text = int.from_bytes(data, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        text = _BASE58[digit] + text
    return "1" * (len(data) - len(data.lstrip(b"\0"))) + text


@lru_cache(4096)
def _base58_decode(text: str) -> bytes:
    """Raises ValueError for characters outside the alphabet or texts longer than any peer id."""
    if len(text) > 100:
        raise ValueError("too long")
    number = 0
    for character in text:
        number = number * 58 + _BASE58.index(character)
    zeros = len(text) - len(text.lstrip("1"))
    return b"\0" * zeros + number.to_bytes((number.bit_length() + 7) // 8, "big")
