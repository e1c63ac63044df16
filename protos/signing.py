"""Signed messages: how they are made, opened and named by a hash.

A signature covers the domain, the message's type and the exact bytes of the body, so that nothing signed for one
purpose can be shown for another. Parsing is strict: a byte string is accepted only if it is the one way to write what
it says. The trade-off: a message with a field that this version does not know is refused rather than half understood,
because every replica must compute the same state from it.
"""

from __future__ import annotations

from typing import TypeVar

from blake3 import blake3
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from google.protobuf.message import DecodeError, Message

from protos.log_pb2 import Signed

DOMAIN = b"commonweights.v1"
PUBLIC_KEY_BYTES = 32
SIGNATURE_BYTES = 64
HASH_BYTES = 32

M = TypeVar("M", bound=Message)


class SignatureError(ValueError):
    """The bytes are not what their signer signed, or not what they are said to be. One line that says which."""


def sign(message: Message, private_key: Ed25519PrivateKey) -> Signed:
    """Wrap `message` with the key's signature (Ed25519, RFC 8032)."""
    body = message.SerializeToString(deterministic=True)
    return Signed(
        body=body,
        signer=private_key.public_key().public_bytes_raw(),
        signature=private_key.sign(_signed_bytes(type(message), body)),
    )


def open_signed(signed: Signed, message_type: type[M]) -> M:
    """The message inside, once its signature has been checked against the signer that the envelope names.

    Whether that signer may say such a thing is for the caller to decide.

    Raises:
        SignatureError: wrong key or signature, a message of another type, or a body that `strict_parse` refuses.
    """
    name = message_type.DESCRIPTOR.name
    if len(signed.signer) != PUBLIC_KEY_BYTES:
        raise SignatureError(f"{name}: the signer's key has {len(signed.signer)} bytes instead of {PUBLIC_KEY_BYTES}")
    if len(signed.signature) != SIGNATURE_BYTES:
        raise SignatureError(f"{name}: the signature has {len(signed.signature)} bytes instead of {SIGNATURE_BYTES}")
    try:
        key = Ed25519PublicKey.from_public_bytes(signed.signer)
        key.verify(signed.signature, _signed_bytes(message_type, signed.body))
    except (InvalidSignature, ValueError):
        raise SignatureError(f"{name}: not signed by {signed.signer.hex()[:16]}..., or changed since") from None
    return strict_parse(signed.body, message_type)


def body_hash(signed: Signed) -> bytes:
    """The name of a signed message: 32 bytes, blake3 over domain, signer and body.

    The signature is left out, so that a second valid signature (Ed25519 signers can make any number) does not make a
    second message. The signer is in it, so that nobody can put another name under a record or a run without changing
    its hash.
    """
    if len(signed.signer) != PUBLIC_KEY_BYTES:  # else bytes could move between signer and body under the same hash
        raise SignatureError(f"the signer's key has {len(signed.signer)} bytes instead of {PUBLIC_KEY_BYTES}")
    return blake3(DOMAIN + b"\0" + signed.signer + signed.body).digest()


def strict_parse(data: bytes, message_type: type[M]) -> M:
    """Parse `data`, refusing everything but the canonical serialisation of a message without unknown fields.

    Protobuf itself is lenient (fields in any order, repeated scalars, long varints, unknown fields), which would let
    two files with different bytes pass as the same log.

    Raises:
        SignatureError: truncated, garbage, non-canonical, or written by a version that knows more fields.
    """
    name = message_type.DESCRIPTOR.name
    message = message_type()
    try:
        message.ParseFromString(data)
        message.DiscardUnknownFields()  # at every depth: they would survive re-serialisation
        canonical = message.SerializeToString(deterministic=True)
    except (DecodeError, ValueError):
        raise SignatureError(f"{name}: these {len(data)} bytes do not parse: truncated or damaged") from None
    if canonical != data:
        raise SignatureError(f"{name}: these {len(data)} bytes are not canonical: damaged, or of a newer version")
    return message


def _signed_bytes(message_type: type[Message], body: bytes) -> bytes:
    return DOMAIN + message_type.DESCRIPTOR.full_name.encode() + b"\0" + body
