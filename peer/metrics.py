"""Figures of a peer for Prometheus, on a port of this machine only."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from peer.errors import UsageError
from peer.terminal.views import JoinView

HOST = "127.0.0.1"


class PeerCollector(Collector):
    """Reads the node when it is asked. `view` gives None until there is one."""

    def __init__(self, view: Callable[[], JoinView | None]) -> None:
        self._view = view

    def collect(self) -> Iterable[Metric]:
        view = self._view()
        if view is None:
            return
        me = view.peer
        for name, text, value in (
            ("round", "The last record applied.", view.round),
            ("loss", "Mean loss of the run's last round, in nats per token.", view.loss),
            ("own_loss", "Loss of this peer's last step, in nats per token.", me.loss),
            ("tokens_per_second", "Speed of this peer's training.", me.tokens_per_second),
            ("credit_tokens", "Accepted tokens of this identity in the log.", me.credit_tokens),
            ("pending_tokens", "Of them, what a verdict may still void.", me.pending_tokens),
            ("swarm_tokens", "Accepted tokens of the whole run.", view.swarm_tokens),
            ("swarm_peers", "Peers that the sequencer hears of.", view.swarm_peers),
            ("training", "1 while training, 0 in every other phase.", float(me.phase == "training")),
            ("payload_bytes", "Size of this peer's contributions, about.", view.payload_bytes),
            ("uplink_bytes_per_second", "The uplink, as contributions measured it.", view.uplink_bytes_per_second),
            ("paused", "1 while the owner's settings or order keep it from training.", float(me.phase == "paused")),
        ):
            if value is not None:
                yield GaugeMetricFamily(f"commonweights_peer_{name}", text, value=value)
        for name, text, count in (
            ("trained_tokens", "Tokens trained on since the start.", view.tokens),
            ("computing_seconds", "Seconds spent in training steps since the start.", view.compute_seconds),
            ("contributions", "Contributions merged since the start.", view.rounds_contributed),
            ("sent_bytes", "Bulk bytes sent.", me.bytes_sent),
            ("received_bytes", "Bulk bytes received.", me.bytes_received),
        ):
            yield CounterMetricFamily(f"commonweights_peer_{name}", text, value=count or 0)


@contextlib.contextmanager
def exposed(port: int, view: Callable[[], JoinView | None]) -> Iterator[None]:
    """http://127.0.0.1:PORT/metrics while the block runs; nothing for port 0.

    Raises:
        UsageError: the port is in use.
    """
    if not port:
        yield
        return
    registry = CollectorRegistry()
    registry.register(PeerCollector(view))
    try:
        server, thread = start_http_server(port, HOST, registry)
    except OSError as error:
        raise UsageError(f"--metrics-port {port}: {error.strerror}; choose another port") from None
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
