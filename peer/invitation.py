"""Getting into an invite-only run: an invitation becomes an admission, which is kept beside the identity it is for."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from peer.errors import Refused, UsageError, VerificationError
from peer.identity import PeerId
from peer.log.chain import Log
from peer.log.decisions import admission_fault, is_admitted
from peer.log.replica import CALL_SECONDS
from peer.messages import parse
from peer.swarm import Swarm
from protos import log_pb2, swarm_pb2
from protos.signing import SignatureError, strict_parse

logger = logging.getLogger(__name__)

FILE_NAME = "admission.bin"


async def admission(swarm: Swarm, log: Log, folder: Path, invitation: str) -> log_pb2.Signed | None:
    """What this node has to show to whoever sequences; None when the log says enough, or the run is open.

    Args:
        invitation: a token of the organiser; empty when it was redeemed before.

    Raises:
        UsageError: the run admits invited peers only, and this one is not.
        Refused: the coordinator does not take the invitation; with its reason.
        UnreachableError: the coordinator does not answer.
    """
    if is_admitted(swarm.peer_id.public_key, log):
        return None
    kept = _kept(folder / FILE_NAME, log, swarm.peer_id)
    if kept is not None:
        return kept
    if not invitation:
        raise UsageError(
            "this run admits invited peers only: ask the organiser for an invitation, and add --invite TOKEN"
        )
    request = swarm_pb2.RedeemRequest(run_id=log.run_id, token=invitation)
    coordinator = log.origin.coordinator
    answer = await swarm.call(coordinator, "redeem", request.SerializeToString(), timeout_seconds=CALL_SECONDS)
    signed = parse(answer, swarm_pb2.RedeemReply).admission
    if fault := admission_fault(signed, swarm.peer_id.public_key, log):
        raise VerificationError(f"the coordinator's answer is no admission: {fault}")
    _keep(folder / FILE_NAME, signed)
    return signed


def _kept(path: Path, log: Log, peer: PeerId) -> log_pb2.Signed | None:
    try:
        signed = strict_parse(path.read_bytes(), log_pb2.Signed)
    except FileNotFoundError:
        return None
    except (OSError, SignatureError) as error:
        logger.warning("%s is not used: %s", path, error)
        return None
    fault = admission_fault(signed, peer.public_key, log)
    if fault:
        logger.warning("%s is not used: %s", path, fault)
    return None if fault else signed


def _keep(path: Path, signed: log_pb2.Signed) -> None:
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_bytes(signed.SerializeToString(deterministic=True))
        os.replace(temporary, path)
    except OSError as error:
        raise Refused(f"{path} cannot be written: {error.strerror}; the invitation can be redeemed again") from None
