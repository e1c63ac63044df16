"""Signed envelopes: what was signed is what is read, byte for byte."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from protos.log_pb2 import Contribution, Genesis, Range, Record, Refused, Signed
from protos.signing import SignatureError, body_hash, open_signed, sign, strict_parse

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
ED25519_ORDER = 2**252 + 27742317777372353535851937790883648493

ranges = st.builds(Range, start=st.integers(0, 2**64 - 1), stop=st.integers(0, 2**64 - 1))
contributions = st.builds(
    Contribution,
    run_id=st.binary(max_size=32),
    round=st.integers(0, 2**64 - 1),
    consumed=st.lists(ranges, max_size=4),
    tokens=st.integers(0, 2**64 - 1),
    mean_loss=st.floats(),
    codec=st.text(max_size=12),
    payload_hash=st.binary(max_size=32),
)


def example() -> Contribution:
    return Contribution(run_id=b"r" * 32, round=7, consumed=[Range(start=3, stop=300)], tokens=4096, codec="lowbit2")


@given(contributions)
def test_what_was_signed_is_what_is_read(contribution: Contribution) -> None:
    """Any message survives signing, serialising, strict parsing and opening unchanged."""
    data = sign(contribution, KEY).SerializeToString()
    opened = open_signed(strict_parse(data, Signed), Contribution)
    assert opened.SerializeToString(deterministic=True) == contribution.SerializeToString(deterministic=True)


@given(st.data())
def test_any_flipped_byte_is_refused(data: st.DataObject) -> None:
    """No single changed byte of a serialised envelope passes, whether in body, signer, signature or framing."""
    raw = bytearray(sign(data.draw(contributions), KEY).SerializeToString())
    position = data.draw(st.integers(0, len(raw) - 1))
    raw[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(SignatureError):
        open_signed(strict_parse(bytes(raw), Signed), Contribution)


def test_every_flipped_bit_is_refused() -> None:
    """The same, exhaustively, for every bit of one envelope."""
    signed = sign(example(), KEY)
    raw = signed.SerializeToString()
    for bit in range(8 * len(raw)):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SignatureError):
            open_signed(strict_parse(bytes(flipped), Signed), Contribution)


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_canonical(data: bytes) -> None:
    """Whatever bytes are accepted are exactly the serialisation of what they parse to."""
    try:
        parsed = strict_parse(data, Record)
    except SignatureError:
        return
    assert parsed.SerializeToString(deterministic=True) == data


def test_every_truncation_is_refused() -> None:
    """A cut-off envelope is never taken for a shorter one."""
    raw = sign(example(), KEY).SerializeToString()
    for length in range(len(raw)):
        with pytest.raises(SignatureError):
            open_signed(strict_parse(raw[:length], Signed), Contribution)


def test_one_type_is_not_taken_for_another() -> None:
    """The type is part of what is signed: a signed Genesis cannot be shown as a Record, even where its bytes parse."""
    signed = sign(Genesis(), KEY)
    assert open_signed(signed, Genesis) == Genesis()
    with pytest.raises(SignatureError):
        open_signed(signed, Record)


@pytest.mark.parametrize(
    ("what", "extra"),
    [
        ("a repeated scalar", b"\x10\x05\x10\x07"),
        ("a long varint", b"\x10\x87\x00"),
        ("a default written out", b"\x18\x00"),
        ("an unknown field", b"\xf8\x01\x01"),
    ],
)
def test_lenient_encodings_are_refused(what: str, extra: bytes) -> None:
    """Protobuf reads these bytes without complaint; a log must not."""
    data = Record(run_id=b"r" * 32).SerializeToString() + extra
    Record.FromString(data)
    with pytest.raises(SignatureError, match="canonical"):
        strict_parse(data, Record)


def test_unknown_fields_are_refused_at_every_depth() -> None:
    """A field that this version does not know is noticed inside nested messages too, and inside a signed body."""
    inner = Refused(reason="late").SerializeToString() + b"\xf8\x01\x01"
    data = b"\x42" + bytes([len(inner)]) + inner
    assert Record.FromString(data).refused[0].reason == "late"
    with pytest.raises(SignatureError, match="newer version"):
        strict_parse(data, Record)


def test_the_hash_names_signer_and_body_and_nothing_else() -> None:
    """Another valid signature leaves the hash alone; another signer or another body changes it."""
    signed = sign(example(), KEY)
    resigned = Signed(body=signed.body, signer=signed.signer, signature=bytes(64))
    assert body_hash(resigned) == body_hash(signed)
    assert body_hash(sign(example(), OTHER_KEY)) != body_hash(signed)
    assert body_hash(sign(Contribution(round=8), KEY)) != body_hash(signed)
    with pytest.raises(SignatureError):
        body_hash(Signed(body=signed.signer[16:] + signed.body, signer=signed.signer[:16]))


def test_a_malleated_signature_is_refused() -> None:
    """S + L, the textbook second signature of Ed25519, does not verify (RFC 8032, section 5.1.7)."""
    signed = sign(example(), KEY)
    scalar = int.from_bytes(signed.signature[32:], "little") + ED25519_ORDER
    forged = Signed(
        body=signed.body, signer=signed.signer, signature=signed.signature[:32] + scalar.to_bytes(32, "little")
    )
    with pytest.raises(SignatureError):
        open_signed(forged, Contribution)


def test_somebody_elses_name_is_refused() -> None:
    """A body signed by one key does not open under another."""
    signed = sign(example(), KEY)
    signed.signer = OTHER_KEY.public_key().public_bytes_raw()
    with pytest.raises(SignatureError, match="not signed by"):
        open_signed(signed, Contribution)
