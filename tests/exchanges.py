"""Exchanges over the in-memory swarm, for tests: a plugin of those that name it in `pytest_plugins`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from peer.exchange.blobs import BlobStore
from peer.exchange.exchange import Exchange
from peer.identity import PeerId
from peer.swarm.memory import MemoryNetwork

NewPeer = Callable[..., Exchange]


@pytest.fixture
def network() -> MemoryNetwork:
    return MemoryNetwork()


@pytest.fixture
def new_peer(network: MemoryNetwork, tmp_path: Path) -> NewPeer:
    """Makes a peer with an empty store of its own."""
    count = iter(range(1000))

    def make(**options: object) -> Exchange:
        return Exchange(network.node(), BlobStore(tmp_path / f"peer{next(count)}"), **options)  # type: ignore[arg-type]

    return make


def id_of(exchange: Exchange) -> PeerId:
    return exchange._swarm.peer_id
