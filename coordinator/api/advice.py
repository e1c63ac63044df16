"""Why a peer has no credit, or no more of it, in words: what it would want to know, newest and weightiest first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.store.queries import Account, Refusal
from peer.log.accounting import PENDING_ROUNDS
from peer.log.chain import Log
from peer.log.decisions import is_admitted
from peer.rounds.sequencer import BYSTANDING
from peer.terminal.quantities import duration
from protos import coordinator_pb2


@dataclass(frozen=True)
class Facts:
    """What is known of one peer."""

    peer: bytes  # public key
    account: Account | None  # None: the log does not know it
    status: coordinator_pb2.PeerStatus | None  # None: it is not here
    refusals: Sequence[Refusal]  # newest first
    shown_admission: bool  # to this coordinator, in an invite-only run
    paused: bool  # the run is
    now: float  # Unix seconds


def hindrances(facts: Facts, log: Log) -> list[str]:
    """One sentence each; empty when everything is as it should be."""
    return [*_shut_out(facts, log), *_absent(facts), *_present(facts, log), *_in_the_log(facts, log)]


def _shut_out(facts: Facts, log: Log) -> list[str]:
    if (reason := log.accounts.barred.get(facts.peer)) is not None:
        return [f"the organiser has barred it from the run: {reason}"]
    if facts.peer in log.accounts.banned:
        return ["it signed two different records of one round and is banned from the run"]
    if not is_admitted(facts.peer, log) and not facts.shown_admission:
        return ["the run admits invited peers only, and it has shown no invitation: join with --invite"]
    return []


def _absent(facts: Facts) -> list[str]:
    if facts.status is not None:
        return []
    if facts.account is None or not (facts.account.last_seen or facts.account.last_round):
        return ["this coordinator has never heard of it: is it running, with this run's ticket?"]
    if facts.account.last_seen is None:  # it was here for moments, or under another leader
        return [f"it is not here: its newest contribution was merged in round {facts.account.last_round}"]
    return [f"it is not here: last heard of {duration(max(0.0, facts.now - facts.account.last_seen))} ago"]


def _present(facts: Facts, log: Log) -> list[str]:
    status = facts.status
    if status is None or log.finished:
        return []
    if facts.paused:
        return ["the organiser has paused the run; nothing is lost, and nothing counts until it goes on"]
    if status.phase == "syncing" or status.head_round < log.head.round - 1:
        return [f"it is still syncing: it has applied round {status.head_round} of {log.head.round}"]
    if status.phase in BYSTANDING:
        return [f"it is {status.phase} and does not train"]
    if status.round_tokens:
        words = f"{status.round_tokens:,} tokens are trained on and not handed in yet; they count with its next record"
        return [words]
    return ["it has just begun: there is no trained token to hand in yet"]


def _in_the_log(facts: Facts, log: Log) -> list[str]:
    found = [f"refused in round {item.round}: {item.reason}" for item in facts.refusals]
    account, head = facts.account, log.head
    if account is not None and account.voided_tokens:
        found.append(f"{account.voided_tokens:,} tokens were voided by the organiser's verdict")
    if account is not None and not account.credit_tokens and not log.finished:
        found.append("it is on probation: its work is accepted, and until it has credit it does not lead the run")
    missed = account is not None and 0 < account.last_round < head.round - head.record.final
    if missed and facts.status is not None and account is not None:
        rounds = head.round - head.record.final - account.last_round
        words = f"nothing of it was in time for the last {rounds} round(s); what it has goes into a later one"
        found.append(words)
    if pending := log.accounts.pending_tokens(facts.peer):
        found.append(f"{pending:,} tokens are pending: each is confirmed {PENDING_ROUNDS} rounds after its own")
    return found
