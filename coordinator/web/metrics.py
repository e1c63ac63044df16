"""The board as Prometheus metrics; docs/page.md lists each of them, and a test holds it to that."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

from coordinator.web.board import Board

PREFIX = "commonweights_"
STATES = ("training", "closing", "waiting", "paused", "following", "finished")


@dataclass
class Traffic:
    """What the web server itself has done since it started."""

    watchers: int = 0
    requests: int = 0
    dropped: int = 0  # watchers that took nothing for too long
    refused: int = 0  # watchers beyond the limit


@dataclass(frozen=True, eq=False)  # the registry hashes it
class BoardCollector:
    board: Board
    traffic: Traffic

    def collect(self) -> Iterator[Metric]:
        yield from _run(self.board)
        yield from _numbers(self.board.get("run"), self.board.get("now"))
        yield from _round_seconds(self.board.get("recent"))
        yield from _checkpoints(self.board.get("checkpoints").get("checkpoints", []))
        yield from _copies(self.board.get("now").get("copies", []))
        yield from _peers(self.board.get("peers").get("peers", []))
        yield from _traffic(self.traffic)


def exposition(board: Board, traffic: Traffic) -> bytes:
    registry = CollectorRegistry()
    registry.register(BoardCollector(board, traffic))
    return generate_latest(registry)


def _run(board: Board) -> Iterator[Metric]:
    run, now = board.get("run"), board.get("now")
    labels = {key: str(run.get(key, "")) for key in ("run_id", "name", "version")}
    yield InfoMetricFamily(PREFIX + "run", "The run that is served", value=labels)
    state = GaugeMetricFamily(PREFIX + "state", "1 for the state the run is in, else 0", labels=["state"])
    for name in STATES:
        state.add_metric([name], float(now.get("state") == name))
    yield state
    incidents = CounterMetricFamily(PREFIX + "incidents", "What happened since this process started", labels=["kind"])
    for kind, count in sorted(now.get("incidents", {}).items()):
        incidents.add_metric([kind], count)
    yield incidents
    eta = GaugeMetricFamily(PREFIX + "eta_seconds", "Until the run is done, at recent paces", labels=["percentile"])
    for percentile, key in (("50", "eta_seconds"), ("90", "eta_seconds_p90")):
        if now.get(key) is not None:
            eta.add_metric([percentile], now[key])
    yield eta


def _numbers(run: dict[str, Any], now: dict[str, Any]) -> Iterator[Metric]:
    for key, name, words in (
        ("tokens", "tokens", "Accepted tokens since the start of the run"),
        ("contributions", "contributions", "Merged contributions since the start of the run"),
        ("refusals", "refusals", "Contributions that were not merged, since the start of the run"),
    ):
        if now.get(key) is not None:
            yield CounterMetricFamily(PREFIX + name, words, value=now[key])
    for source, key, name, words in (
        (run, "target_tokens", "target_tokens", "Tokens the run is to have"),
        (run, "target_rounds", "target_rounds", "Rounds the run is to have"),
        (run, "round_target_tokens", "round_target_tokens", "Tokens at which a round closes"),
        (run, "parameters", "parameters", "Size of the model"),
        (now, "round", "round", "The open round"),
        (now, "round_tokens", "round_tokens", "Tokens trained on in the open round, as peers report"),
        (now, "tokens_per_second", "tokens_per_second", "Speed of the swarm, as peers report"),
        (now, "loss", "train_loss", "Loss of the newest round, nats per token"),
        (now, "live_loss", "live_loss", "Loss of the peers' last steps, nats per token"),
        (now, "eval_loss", "eval_loss", "Newest held-out loss, nats per token"),
        (now, "peers", "peers", "Peers that are here"),
        (now, "contributors", "contributors", "Peers that ever had a contribution merged"),
        (now, "term", "term", "Grows by one with every change of sequencer"),
        (now, "time", "updated_timestamp_seconds", "When the coordinator last said how it goes"),
    ):
        if source.get(key) is not None:
            yield GaugeMetricFamily(PREFIX + name, words, value=source[key])


def _round_seconds(recent: dict[str, Any]) -> Iterator[Metric]:
    """Of the newest published round."""
    family = GaugeMetricFamily(PREFIX + "round_seconds", "Length of the newest finished round's parts", labels=["part"])
    done = [it for it in recent.get("rounds", []) if it["published"] is not None]
    if done and done[-1]["opened"] is not None:
        opened, closing, published = done[-1]["opened"], done[-1]["closing"], done[-1]["published"]
        family.add_metric(["train"], (closing or published) - opened)
        family.add_metric(["exchange"], published - (closing or published))
        family.add_metric(["whole"], published - opened)
    yield family


def _checkpoints(checkpoints: list[dict[str, Any]]) -> Iterator[Metric]:
    """How many there are; of the newest, which is the first."""
    yield GaugeMetricFamily(PREFIX + "checkpoints", "Checkpoints to download", value=len(checkpoints))
    for newest in checkpoints[:1]:
        for key, name, words in (
            ("round", "round", "Round whose weights the newest checkpoint holds"),
            ("time", "timestamp_seconds", "When the newest checkpoint was complete"),
            ("bytes", "bytes", "Size of the newest checkpoint"),
        ):
            yield GaugeMetricFamily(f"{PREFIX}checkpoint_{name}", words, value=newest[key])


def _copies(copies: list[dict[str, Any]]) -> Iterator[Metric]:
    missing = GaugeMetricFamily(
        PREFIX + "copies_missing", "1 while a destination lacks a checkpoint, else 0", labels=["destination"]
    )
    failures = GaugeMetricFamily(
        PREFIX + "copy_failures", "How often in a row a destination could not be written", labels=["destination"]
    )
    for copy in copies:
        missing.add_metric([copy["destination"]], float(not copy["complete"]))
        failures.add_metric([copy["destination"]], copy["failures"])
    yield from (missing, failures)


def _peers(peers: list[dict[str, Any]]) -> Iterator[Metric]:
    for key, words in (
        ("tokens_per_second", "Speed, as the peer reports"),
        ("round_tokens", "Tokens trained on and not merged yet, as the peer reports"),
        ("credit_tokens", "Accepted tokens"),
        ("rounds_behind", "Records published that the peer has not applied yet"),
        ("seen_seconds_ago", "Since its last heartbeat"),
        ("bytes_sent", "By the peer since it started, as it reports"),
        ("bytes_received", "By the peer since it started, as it reports"),
    ):
        family = GaugeMetricFamily(PREFIX + "member_" + key, words, labels=["peer", "name", "team"])
        for peer in peers:
            family.add_metric([peer["id"], peer["name"], peer["team"]], peer[key])
        yield family


def _traffic(traffic: Traffic) -> Iterator[Metric]:
    yield GaugeMetricFamily(PREFIX + "web_watchers", "Open event streams", value=traffic.watchers)
    yield CounterMetricFamily(PREFIX + "web_requests", "Requests answered", value=traffic.requests)
    yield CounterMetricFamily(PREFIX + "web_watchers_dropped", "Event streams that took nothing", value=traffic.dropped)
    yield CounterMetricFamily(PREFIX + "web_watchers_refused", "Event streams over the limit", value=traffic.refused)
