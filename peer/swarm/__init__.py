"""The swarm: how peers reach each other. Importing this is light; `HivemindSwarm` loads hivemind on first use.

interface.py   what the project knows of a swarm
wire.py        how a conversation goes over one byte stream
entries.py     what a DHT entry must look like
dialback.py    whether somebody can be dialled, tried by another node
daemon.py      the p2pd process; launcher.py ties its life to ours
quietly.py     the only import of hivemind
session.py     what lives and dies with one p2pd: control, DHT
keeper.py      keeps a session running and connected
hivemind_swarm.py   HivemindSwarm: the Swarm over all that
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peer.swarm.interface import (
    MAX_ENTRY_BYTES,
    MAX_ENTRY_SECONDS,
    MAX_REPLY_BYTES,
    PIECE_BYTES,
    Handler,
    StreamHandler,
    Swarm,
)

if TYPE_CHECKING:
    from peer.swarm.hivemind_swarm import HivemindSwarm

__all__ = [
    "MAX_ENTRY_BYTES",
    "MAX_ENTRY_SECONDS",
    "MAX_REPLY_BYTES",
    "PIECE_BYTES",
    "Handler",
    "HivemindSwarm",
    "StreamHandler",
    "Swarm",
]


def __getattr__(name: str) -> Any:
    if name == "HivemindSwarm":
        from peer.swarm.hivemind_swarm import HivemindSwarm

        return HivemindSwarm
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
