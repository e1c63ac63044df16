"""What the page shows, as plain data: one function per section, each a JSON value that docs/page.md documents.

Times are Unix seconds, losses nats per token, sizes bytes. None means "not known", never zero. Lists that strangers can
make long are cut here, so the page of a large swarm is as light as that of a small one.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from coordinator.api.files import newest_first
from coordinator.ledger import team_rows
from coordinator.store.history import Kind
from coordinator.web.eta import eta
from coordinator.web.timeline import RoundMarks, Timeline
from peer.identity import PeerId
from peer.rounds.guests import Guest

if TYPE_CHECKING:
    from coordinator.run import Coordinator
    from peer.log.accounting import PeerAccount

T = TypeVar("T")

PEERS_SHOWN = 100
LANES_SHOWN = 40  # peers per round in the waterfall
LEADERS_SHOWN = 100
TEAMS_SHOWN = 50
POINTS_SHOWN = 600  # per curve
SAMPLES_SHOWN = 12
INCIDENTS_SHOWN = 100
ROUNDS_FOR_ETA = 64


def run(coordinator: Coordinator) -> dict[str, Any]:
    """What never changes while the process lives, and how to join."""
    log, spec = coordinator.log, coordinator.log.spec
    ticket, invited = str(coordinator.ticket or ""), spec.run.access == "invite"
    return {
        "run_id": log.run_id.hex(),
        "name": spec.run.name,
        "description": spec.run.description,
        "began": _began(coordinator),
        "target_tokens": spec.run.tokens or None,
        "target_rounds": spec.run.rounds or None,
        "round_target_tokens": spec.round.target_tokens,
        "task": spec.model.task,
        "architecture": spec.model.architecture,
        "parameters": log.origin.genesis.parameters,
        "codec": " to ".join(dict.fromkeys((spec.codec.name, spec.codec.down_to))),
        "overlap": spec.round.overlap,
        "data": str(coordinator.evaluator.manifest.source.get("path", "")),
        "data_license": coordinator.evaluator.manifest.license,
        "coordinator": str(log.origin.coordinator),
        "ticket": ticket,
        "access": spec.run.access,
        "join": f"commonweights join {ticket}{' --invite TOKEN' if invited else ''}" if ticket else "",
        "version": importlib.metadata.version("commonweights"),
    }


def now(coordinator: Coordinator, time: float) -> dict[str, Any]:
    """Where the run stands at this moment; sent every second."""
    log, leader, spec = coordinator.log, coordinator.leader, coordinator.log.spec.run
    view = leader.view() if leader.leading else coordinator.link.view
    accounts, evaluation = log.accounts, coordinator.evaluator.newest
    records = [(entry.record.time_seconds, 0) for entry in log.entries[1:][-ROUNDS_FOR_ETA:]]
    done = accounts.tokens
    for index, entry in zip(range(len(records) - 1, -1, -1), reversed(log.entries), strict=False):
        records[index] = (records[index][0], done)
        done -= sum(contribution.tokens for _, contribution in entry.contributions)
    p50, p90 = eta(
        records,
        max(0, spec.tokens - accounts.tokens) if spec.tokens else None,
        max(0, spec.rounds - log.head.round) if spec.rounds else None,
    )
    state, title, detail = headline(coordinator)
    return {
        "time": time,
        "state": state,
        "title": title,
        "detail": detail,
        "round": log.head.round + (not log.finished),
        "rounds_done": log.head.round - log.head.record.final,
        "tokens": accounts.tokens,
        "round_tokens": 0 if log.finished else view.round_tokens,
        "tokens_per_second": 0.0 if log.finished else view.tokens_per_second,
        "eta_seconds": 0.0 if log.finished else finite(p50),
        "eta_seconds_p90": 0.0 if log.finished else finite(p90),
        "loss": accounts.loss,
        "live_loss": _live_loss(coordinator),
        "eval_loss": evaluation.loss if evaluation else None,
        "peers": len(leader.guests) if leader.leading else view.peers,
        "contributors": len(accounts.credit),
        "contributions": sum(account.contributions for account in accounts.peers.values()),
        "refusals": sum(account.refused for account in accounts.peers.values()),
        "term": view.term,
        "sequencer": str(sequencer := coordinator.swarm.peer_id if leader.leading else coordinator.link.sequencer),
        "sequencer_name": "the coordinator" if leader.leading else coordinator.names_book.of(sequencer),
        "state_digest": coordinator.replica.digest.hex(),
        "copies": copies(coordinator),
        "incidents": {kind: coordinator.timeline.counts[kind] for kind in get_args(Kind)},
    }


def headline(coordinator: Coordinator) -> tuple[str, str, str]:
    """The state as one word for programs, and as a title and a sentence for people."""
    log, leader = coordinator.log, coordinator.leader
    state, round_ = leader.state, log.head.round + 1
    clock = asyncio.get_running_loop().time()
    if log.finished:
        rounds = log.head.round - log.head.record.final
        return (
            "finished",
            "Finished",
            f"{rounds} {'round' if rounds == 1 else 'rounds'}, {log.accounts.tokens:,} tokens",
        )
    if not leader.leading:
        return _following(coordinator, round_)
    if state.paused:
        return "paused", "Paused by the organiser", f"round {round_} waits; peers keep what they have done"
    if not state.members:
        return "waiting", "Waiting for peers", f"round {round_} begins when somebody joins"
    if state.closing is not None:
        return "closing", f"Closing round {round_}", leader.in_words
    left = _seconds_to_close(state.round_tokens, leader.tokens_per_second, state.rules.target_tokens)
    left = min(left, state.opened + state.rules.max_seconds - clock)
    so_far = f"{state.round_tokens:,} of {state.rules.target_tokens:,} tokens"
    if state.submissions:
        return "training", f"Training round {round_}", leader.in_words
    if left > 0:
        return "training", f"Training round {round_}", f"{so_far}; closing in about {math.ceil(left)} s"
    return "training", f"Training round {round_}", so_far


def _following(coordinator: Coordinator, round_: int) -> tuple[str, str, str]:
    """Another node sequences: this one was away, and takes the lead back when it has caught up."""
    link = coordinator.link
    if link.sequencer == coordinator.swarm.peer_id:
        return "following", "Looking for the run", "the coordinator asks around who leads before it does so itself"
    name = coordinator.names_book.of(link.sequencer)
    words = link.view.state_words or "nothing heard of it yet"
    return "following", f"Round {round_} is led by {name}", f"{words}; the coordinator follows"


def peers(coordinator: Coordinator) -> dict[str, Any]:
    """Who is here, largest credit first."""
    leader, credit = coordinator.leader, coordinator.log.accounts.credit
    clock = asyncio.get_running_loop().time()
    order = sorted(leader.guests, key=lambda peer: (-credit.get(peer.public_key, 0), peer))
    return {
        "total": len(order),
        "peers": [_peer(coordinator, peer, leader.guests[peer], clock) for peer in order[:PEERS_SHOWN]],
    }


def _peer(coordinator: Coordinator, peer: PeerId, guest: Guest, clock: float) -> dict[str, Any]:
    log, presence = coordinator.log, guest.presence
    account = log.accounts.peers.get(peer.public_key)
    silent = max(0.0, clock - guest.seen)
    behind = max(0, log.head.round - presence.head_round)
    health, words = _health(coordinator, presence.phase, silent, behind, account)
    return {
        "id": str(peer),
        "name": presence.name or peer.short,
        "team": presence.team,
        "hardware": presence.hardware,
        "phase": presence.phase,
        "health": health,
        "health_words": words,
        "round_tokens": presence.tokens,
        "tokens_per_second": presence.tokens_per_second,
        "loss": presence.loss or None,
        "credit_tokens": account.credit_tokens if account else 0,
        "rounds_behind": behind,
        "seen_seconds_ago": round(silent, 1),
        "bytes_sent": presence.bytes_sent,
        "bytes_received": presence.bytes_received,
    }


def _health(
    coordinator: Coordinator, phase: str, silent: float, behind: int, account: PeerAccount | None
) -> tuple[str, str]:
    """good, busy or poor, and why."""
    log = coordinator.log
    if silent > 3 * log.spec.timing.heartbeat_seconds + 1:
        return "poor", f"not heard of for {silent:.0f} s"
    if phase == "syncing":
        return "busy", "loading the swarm's state"
    if account is not None and account.last_refusal and log.head.round - account.last_refusal_round < 2:
        return "poor", account.last_refusal
    if behind > 1:
        return "busy", f"{behind} rounds behind"
    return "good", "keeps up"


def losses(coordinator: Coordinator) -> dict[str, Any]:
    """Training loss by round, and held-out loss where it was measured."""
    train = thinned(coordinator.log.accounts.losses)
    held_out = thinned([(item.round, item.loss) for item in coordinator.evaluator.history])
    return {"train": [list(point) for point in train], "eval": [list(point) for point in held_out]}


def speed(coordinator: Coordinator) -> dict[str, Any]:
    """Swarm speed and number of peers over time, with who came and went."""
    timeline = coordinator.timeline
    comings = [it for it in timeline.incidents if it.kind in ("joined", "left", "gone")]
    return {
        "points": [[round(it.time, 1), round(it.tokens_per_second, 1), round(it.peers, 1)] for it in timeline.samples],
        "marks": [[round(it.time, 1), it.kind, it.text] for it in comings],
    }


def waterfall(timeline: Timeline, *, newest: bool) -> dict[str, Any]:
    """Moments of each peer in the newest two rounds (which still change), or in those before."""
    order = sorted(timeline.rounds)
    chosen = order[-2:] if newest else order[:-2]
    return {"rounds": [_round(timeline, timeline.rounds[number]) for number in chosen]}


def _round(timeline: Timeline, marks: RoundMarks) -> dict[str, Any]:
    busiest = sorted(marks.peers, key=lambda peer: (-marks.peers[peer].tokens, peer))[:LANES_SHOWN]
    return {
        "round": marks.round,
        "opened": marks.opened,
        "closing": marks.closing,
        "published": marks.published,
        "peers": [
            {"id": str(PeerId(peer)), "name": timeline.name_of(peer), **vars(marks.peers[peer])} for peer in busiest
        ],
    }


def leaderboard(coordinator: Coordinator) -> dict[str, Any]:
    """Credit by peer and by team: accepted tokens over the log, and nothing else. A team's is what was earned under its
    name, whatever its members call themselves now."""
    accounts, labels = coordinator.log.accounts, coordinator.names_book
    order = sorted(accounts.peers.items(), key=lambda item: (-item[1].credit_tokens, item[0]))
    teams = [team for team in team_rows(accounts) if team.team]
    return {
        "total": len(order),
        "tokens": accounts.tokens,
        "peers": [
            {
                "id": str(PeerId(key)),
                "name": labels.of(PeerId(key)),
                "team": labels.team_of(PeerId(key)),
                "credit_tokens": account.credit_tokens,
                "contributions": account.contributions,
                "refused": account.refused,
                "last_refusal": account.last_refusal,
                "last_round": account.last_round,
            }
            for key, account in order[:LEADERS_SHOWN]
        ],
        "teams": [
            {"team": team.team, "credit_tokens": team.credit_tokens, "peers": team.peers}
            for team in teams[:TEAMS_SHOWN]
        ],
    }


def samples(coordinator: Coordinator) -> dict[str, Any]:
    """What the newest evaluated weights write, newest first."""
    shown = [
        {"round": it.round, "tokens": it.tokens, "loss": it.loss, "prompt": sample.prompt, "text": sample.text}
        for it in reversed(coordinator.evaluator.history)
        for sample in it.samples
    ]
    return {"samples": shown[:SAMPLES_SHOWN]}


def checkpoints(coordinator: Coordinator) -> dict[str, Any]:
    """What can be downloaded, newest first."""
    return {
        "checkpoints": [
            {
                "name": it.path.name,
                "round": it.round,
                "time": it.time_seconds,
                "tokens": it.checkpoint.manifest.tokens,
                "eval_loss": loss if (loss := it.checkpoint.manifest.eval_loss) >= 0 else None,
                "bytes": it.checkpoint.size_bytes,
                "files": [{"name": name, "bytes": size} for name, size in it.files.items()],
            }
            for it in newest_first(coordinator.archive)
        ]
    }


def copies(coordinator: Coordinator) -> list[dict[str, Any]]:
    """Where checkpoints are copied to, and whether all that should be there are."""
    return [
        {
            "destination": line.destination.name,
            "complete": line.settled and not line.given_up,
            "failures": line.failures,  # in a row
        }
        for line in coordinator.observer.uploads.lines
    ]


def incidents(coordinator: Coordinator) -> dict[str, Any]:
    """What happened, newest first."""
    shown = list(coordinator.timeline.incidents)[-INCIDENTS_SHOWN:]
    return {"since": coordinator.timeline.started, "incidents": [vars(it) for it in reversed(shown)]}


def thinned(points: Sequence[T], limit: int = POINTS_SHOWN) -> Sequence[T]:
    """At most `limit` of them, evenly, always with the newest."""
    if len(points) <= limit:
        return points
    step = (len(points) - 1) / (limit - 1)
    return [points[round(index * step)] for index in range(limit)]


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _seconds_to_close(done: int, pace: float, target: int) -> float:
    return (target - done) / pace if pace > 0 else math.inf


def _live_loss(coordinator: Coordinator) -> float | None:
    """Of the peers' last steps, weighted by their speed: noisier than a round's loss, and seconds old."""
    found = [(it.presence.loss, it.presence.tokens_per_second) for it in coordinator.leader.guests.values()]
    weights = sum(pace for loss, pace in found if loss > 0)
    return sum(loss * pace for loss, pace in found if loss > 0) / weights if weights > 0 else None


def _began(coordinator: Coordinator) -> float:
    return coordinator.log.entries[0].record.time_seconds


EACH_SECOND: dict[str, Callable[[Coordinator], dict[str, Any]]] = {
    "peers": peers,
    "speed": speed,
    "recent": lambda coordinator: waterfall(coordinator.timeline, newest=True),
    "incidents": incidents,
}
EACH_ROUND: dict[str, Callable[[Coordinator], dict[str, Any]]] = {
    "run": run,
    "losses": losses,
    "rounds": lambda coordinator: waterfall(coordinator.timeline, newest=False),
    "leaderboard": leaderboard,
    "samples": samples,
    "checkpoints": checkpoints,
}
