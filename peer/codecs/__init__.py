"""Compression of pseudo-gradients: one ladder of codecs behind `encode` and `open_payload`."""

from peer.codecs.payload import CODECS, SEGMENT_PARAMETERS, Payload, encode, largest_payload_bytes, open_payload

__all__ = ["CODECS", "SEGMENT_PARAMETERS", "Payload", "encode", "largest_payload_bytes", "open_payload"]
