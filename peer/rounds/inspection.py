"""Looking into a contribution before anybody else has to: its header against the log, its payload against its header.

All of it works on a stranger's bytes. What is wrong with them is a reason to refuse, whatever it is; only what is wrong
with this machine (a full disk) is an error.
"""

from __future__ import annotations

import asyncio
import logging
import math

from peer.codecs import open_payload
from peer.codecs.payload import largest_payload_bytes
from peer.errors import CommonweightsError, DataError, Refused, UnreachableError
from peer.identity import PeerId
from peer.log import aggregate
from peer.log.chain import contribution_fault
from peer.log.replica import PAYLOAD_SECONDS, Replica
from protos import log_pb2

logger = logging.getLogger(__name__)

MAX_REASON_CHARACTERS = 200  # of a refusal: it goes into the record


def header_fault(contribution: log_pb2.Contribution, replica: Replica) -> str:
    """Why a contribution to the open round cannot be taken, as far as its header tells; empty when it can.

    `replica` is at the head of its log.
    """
    log = replica.log
    if reason := contribution_fault(contribution, log):
        return reason
    if contribution.payload_bytes > largest_payload_bytes(contribution.codec, log.origin.genesis.parameters):
        return f"a {contribution.codec} payload of this model never has {contribution.payload_bytes} bytes"
    if contribution.base_digest != replica.digest:
        return (
            f"it starts from state {contribution.base_digest.hex()[:16]}, "
            f"the swarm's after round {log.head.round} is {replica.digest.hex()[:16]}: load the state again"
        )
    return ""


async def fetch_and_measure(contribution: log_pb2.Contribution, maker: PeerId, replica: Replica) -> float:
    """The L2 norm of the decoded payload, fetched from its maker if it is not here.

    Raises:
        Refused: with the reason why it cannot be merged.
        CommonweightsError: nothing is wrong with the contribution, but with this machine.
    """
    if round_ := replica.log.accounts.merged.get(contribution.payload_hash):  # credit twice for one piece of work is a
        raise Refused(f"its payload was merged in round {round_} already")  # lie, whatever positions stand on it
    try:
        await replica.exchange.fetch(
            contribution.payload_hash, contribution.payload_bytes, [maker], deadline_seconds=PAYLOAD_SECONDS
        )
        return await asyncio.to_thread(_norm, contribution, replica)
    except (Refused, UnreachableError, DataError) as error:
        raise Refused(str(error)[:MAX_REASON_CHARACTERS]) from None
    except CommonweightsError:
        raise
    except Exception:
        logger.exception("looking into a contribution of %s failed", maker.short)
        raise Refused("its payload could not be checked") from None


def _norm(contribution: log_pb2.Contribution, replica: Replica) -> float:
    content = replica.blobs.view(contribution.payload_hash)
    if len(content) != contribution.payload_bytes:  # it was here before, and the header lies: nobody could fetch it
        raise Refused(f"the payload has {len(content)} bytes, its header says {contribution.payload_bytes}")
    payload = open_payload(content, replica.log.origin.genesis.parameters)
    if payload.codec != contribution.codec:
        raise Refused(f"the payload is encoded as {payload.codec}, its header says {contribution.codec}")
    norm = aggregate.norm_of(payload)
    if not math.isfinite(norm):
        raise Refused("the payload holds values that are not finite")
    if norm == 0:
        raise Refused("the payload is all zeros: there is nothing to merge, and nothing to credit")
    return norm
