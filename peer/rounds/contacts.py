"""Whom this node could dial: the nodes it heard of, with addresses, kept in its folder for the next start.

A coordinator that comes back, or a peer that starts while it is away, finds the others through these.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path

from peer.errors import CommonweightsError
from peer.identity import PeerId
from peer.rounds.guests import MAX_ADDRESS_CHARACTERS

MAX_CONTACTS = 64
MAX_ADDRESSES_EACH = 8


class Contacts:
    """Addresses (multiaddrs without /p2p) by peer, the one heard of last at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.addresses: dict[PeerId, list[str]] = {}
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, CommonweightsError):
            for text, addresses in json.loads(path.read_text()).items():
                self.add(PeerId.parse(text), addresses)

    def add(self, peer: PeerId, addresses: Iterable[str]) -> None:
        """Remember; who cannot be dialled is no contact."""
        useful = [it for it in addresses if it.startswith("/") and len(it) <= MAX_ADDRESS_CHARACTERS]
        if not useful:
            return
        self.addresses.pop(peer, None)
        self.addresses[peer] = useful[:MAX_ADDRESSES_EACH]
        while len(self.addresses) > MAX_CONTACTS:
            del self.addresses[next(iter(self.addresses))]

    def save(self) -> None:
        """Best effort: a full disk is somebody else's to complain about."""
        text = json.dumps({str(peer): addresses for peer, addresses in self.addresses.items()})
        temporary = self.path.with_suffix(".tmp")
        with contextlib.suppress(OSError):
            temporary.write_text(text)
            temporary.replace(self.path)
