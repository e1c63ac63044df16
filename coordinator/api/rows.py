"""Rows of the store, and checkpoints, as messages of the API."""

from __future__ import annotations

from coordinator.api.files import CheckpointFolder
from coordinator.store import queries
from peer.checkpoints.manifest import MANIFEST_FILE
from protos import coordinator_pb2


def ledger_row(account: queries.Account, pending_tokens: int, last_refusal: str) -> coordinator_pb2.LedgerRow:
    return coordinator_pb2.LedgerRow(
        peer_id=account.peer_id,
        name=account.name,
        team=account.team,
        credit_tokens=account.credit_tokens,
        pending_tokens=pending_tokens,
        voided_tokens=account.voided_tokens,
        contributions=account.contributions,
        refused=account.refused,
        last_refusal=last_refusal,
        first_round=account.first_round,
        last_round=account.last_round,
        rounds_sequenced=account.rounds_sequenced,
        uptime_seconds=account.uptime_seconds,
        bytes_served=account.bytes_sent,
    )


def round_row(item: queries.Round) -> coordinator_pb2.Round:
    return coordinator_pb2.Round(
        round=item.round,
        time_seconds=item.time_seconds,
        tokens=item.tokens,
        total_tokens=item.total_tokens,
        loss=-1.0 if item.loss is None else item.loss,
        contributions=item.contributions,
        refused=item.refused,
        payload_bytes=item.payload_bytes,
        sequencer=item.sequencer,
        term=item.term,
        final=item.final,
        opened=item.opened or 0.0,
        closing=item.closing or 0.0,
        published=item.published or 0.0,
        applied=item.applied or 0.0,
    )


def contribution_row(item: queries.Contribution) -> coordinator_pb2.ContributionRow:
    return coordinator_pb2.ContributionRow(
        round=item.round,
        time_seconds=item.time_seconds,
        peer_id=item.peer_id,
        name=item.name,
        tokens=item.tokens,
        inner_steps=item.inner_steps,
        mean_loss=item.mean_loss,
        norm=item.norm,
        codec=item.codec,
        payload_bytes=item.payload_bytes,
        train_seconds=item.train_seconds,
        private_data=item.private_data,
        voided_in=item.voided_in or 0,
    )


def checkpoint(found: CheckpointFolder) -> coordinator_pb2.Checkpoint:
    manifest = found.checkpoint.manifest
    return coordinator_pb2.Checkpoint(
        round=found.round,
        time_seconds=found.time_seconds,
        location=str(found.path),
        size_bytes=found.checkpoint.size_bytes,
        tokens=manifest.tokens,
        eval_loss=manifest.eval_loss,
        record_hash=manifest.record_hash,
        state_digest=found.checkpoint.state_digest,
    )


def checkpoint_files(found: CheckpointFolder) -> list[coordinator_pb2.CheckpointFile]:
    """The manifest, which vouches for the others, is the last."""
    return [
        *(
            coordinator_pb2.CheckpointFile(
                name=file.name, size_bytes=file.bytes, sha256=file.sha256, blake3=file.blake3, resuming=file.resuming
            )
            for file in found.checkpoint.manifest.files
        ),
        coordinator_pb2.CheckpointFile(name=MANIFEST_FILE, size_bytes=len(found.checkpoint.content)),
    ]
