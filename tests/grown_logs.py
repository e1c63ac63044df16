"""Logs made by hand, round after round: real signatures, no weights."""

from __future__ import annotations

from typing import Any

from peer.identity import Identity
from peer.log.chain import Log
from protos import log_pb2
from protos.signing import sign
from tests.small_run import contribution

COORDINATOR, ADA, GRACE = (Identity.from_seed(bytes([number]) * 32) for number in (1, 2, 3))


def grow(
    log: Log,
    *shares: tuple[Identity, int],
    refused: tuple[Identity, ...] = (),
    loss: float = 5.0,
    signer: Identity = COORDINATOR,
    team: str = "",
    codec: str = "",
    **fields: Any,
) -> None:
    """One more round; each of `shares` is a peer and how many sequences it trained on. `fields` of the record."""
    cursor, accepted = log.accounts.data_cursor, []
    for number, (peer, sequences) in enumerate(shares):
        made = contribution(
            log,
            bytes([(log.head.round + 1) % 256, number]) * 16,
            100,
            consumed=[(cursor, cursor + sequences)],
            mean_loss=loss,
            base_digest=log.origin.genesis.state_digest,
            team=team,
            codec=codec or log.spec.codec.name,
        )
        cursor += sequences
        accepted.append(log_pb2.Accepted(contribution=sign(made, peer.private_key), norm=1.0))
    accepted.sort(key=lambda item: item.contribution.signer)
    record = log_pb2.Record(
        run_id=log.run_id,
        round=log.head.round + 1,
        previous_hash=log.head.hash,
        base_digest=log.origin.genesis.state_digest,
        accepted=accepted,
        refused=[
            log_pb2.Refused(peer=peer.peer_id.public_key, payload_hash=bytes(32), tokens=7, reason="it is\0 odd")
            for peer in refused
        ],
        data_cursor=cursor,
        deadline_seconds=1.0,
        **{
            "term": log.head.record.term + (signer.peer_id.public_key != log.head.signed.signer),
            "time_seconds": 100.0 + log.head.round,
            **fields,
        },
    )
    log.append(sign(record, signer.private_key))


def verdict(log: Log, who: Identity, round_: int = 0, *, by: Identity = COORDINATOR, **fields: Any) -> log_pb2.Signed:
    """Bars `who`, or voids its pending contribution to a round."""
    key = who.peer_id.public_key
    payload_hash = log.accounts.pending[round_][key].payload_hash if round_ else b""
    value = {"run_id": log.run_id, "peer": key, "round": round_, "payload_hash": payload_hash, "reason": "it lied"}
    return sign(log_pb2.Verdict(**{**value, **fields}), by.private_key)


def admission(log: Log, who: Identity, *, by: Identity = COORDINATOR, **fields: Any) -> log_pb2.Signed:
    value = {"run_id": log.run_id, "peer": who.peer_id.public_key}
    return sign(log_pb2.Admission(**{**value, **fields}), by.private_key)
