"""Reading messages from strangers."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from peer.errors import Refused

M = TypeVar("M", bound=Message)


def parse(body: bytes, message_type: type[M]) -> M:
    """`body` as a message. Its size was limited by the swarm before it came here.

    Raises:
        Refused: it is not one.
    """
    try:
        return message_type.FromString(body)
    except DecodeError:
        raise Refused(f"these {len(body)} bytes are not a {message_type.DESCRIPTOR.name}") from None
