"""What a DHT entry must look like: filed under its owner's peer id, signed by it, small, and gone within the hour.

hivemind's DHT believes anybody: unsigned keys can be overwritten, blocked for ever with an expiration of infinity, or
deleted early with one that is refused. Nodes of ours take and return nothing but entries that pass `is_valid`; an entry
that does not is as good as absent. The signature covers key, owner, value and expiration.
"""

from __future__ import annotations

import math
import struct

from peer.identity import KEY_BYTES, SIGNATURE_BYTES, Identity, PeerId, verify
from peer.swarm.interface import MAX_ENTRY_BYTES, MAX_ENTRY_SECONDS

_DOMAIN = b"commonweights/dht-entry/1"
_CLOCK_SECONDS = 60.0  # how far another peer's clock may be ahead
_SUBKEY_PREFIX = bytes([0xC4, 38, 0x00, 0x24, 0x08, 0x01, 0x12, 0x20])  # msgpack: 38 bytes, an Ed25519 peer id


def subkey_of(owner: PeerId) -> bytes:
    """How hivemind packs the peer id when it is used as a subkey."""
    return _SUBKEY_PREFIX + owner.public_key


def owner_of(subkey: bytes) -> PeerId | None:
    if len(subkey) != len(_SUBKEY_PREFIX) + KEY_BYTES or not subkey.startswith(_SUBKEY_PREFIX):
        return None
    return PeerId(bytes(subkey[len(_SUBKEY_PREFIX) :]))


def seal(identity: Identity, key: bytes, subkey: bytes, value: bytes, expiration: float) -> bytes:
    """`value` with the owner's signature behind it."""
    return value + identity.sign(_signed_bytes(key, subkey, value, expiration))


def unseal(value: bytes) -> bytes:
    return value[:-SIGNATURE_BYTES]


def is_valid(key: bytes, subkey: bytes, value: bytes, expiration: float, now: float) -> bool:
    """Whether a sealed entry may be stored or believed. `expiration` and `now` in seconds of the Unix clock."""
    owner = owner_of(subkey)
    if owner is None or not SIGNATURE_BYTES < len(value) <= MAX_ENTRY_BYTES + SIGNATURE_BYTES:
        return False
    if not math.isfinite(expiration) or expiration > now + MAX_ENTRY_SECONDS + _CLOCK_SECONDS:
        return False
    signed = _signed_bytes(key, subkey, unseal(value), expiration)
    return verify(owner.public_key, value[-SIGNATURE_BYTES:], signed)


def _signed_bytes(key: bytes, subkey: bytes, value: bytes, expiration: float) -> bytes:
    parts = (key, subkey, struct.pack(">d", expiration), value)
    return _DOMAIN + b"".join(len(part).to_bytes(4, "big") + part for part in parts)
