"""Peers by the small number that stands for their key in all other tables, and strangers' words so that they fit."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, insert, select

from coordinator.store.schema import peers
from peer.identity import PeerId


def number_peers(connection: Connection, keys: Iterable[bytes]) -> dict[bytes, int]:
    """The numbers of these public keys (32 bytes each); unknown ones get one."""
    ids = {str(PeerId(key)): key for key in keys}
    numbers = _known(connection, list(ids))
    if missing := [peer_id for peer_id in ids if peer_id not in numbers]:
        connection.execute(insert(peers), [{"peer_id": peer_id} for peer_id in missing])
        numbers |= _known(connection, missing)
    return {key: numbers[peer_id] for peer_id, key in ids.items()}


def _known(connection: Connection, ids: list[str]) -> dict[str, int]:
    found = connection.execute(select(peers.c.peer_id, peers.c.number).where(peers.c.peer_id.in_(ids)))
    return {row.peer_id: row.number for row in found}


def text(words: str) -> str:
    """PostgreSQL holds every character but one."""
    return words.replace("\0", "")
