"""One peer's place on the codec ladder: measurements in, the codec of the next contribution out (see ladder.py)."""

from __future__ import annotations

from collections import deque

from peer.exchange.exchange import Exchange
from peer.log.chain import Log
from peer.log.progress import round_seconds
from peer.rounds.ladder import UP_MEASUREMENTS, choose, patience_seconds, told


class Rung:
    """`present` is the codec of this peer's newest contribution, or of its next one."""

    def __init__(self, log: Log, exchange: Exchange, own: bytes) -> None:
        self.ladder = log.spec.codec.ladder
        self.present = self.ladder[0]
        self._log, self._exchange, self._own = log, exchange, own
        self._measured: deque[float] = deque(maxlen=UP_MEASUREMENTS)

    @property
    def uploads_bytes_per_second(self) -> list[float]:
        """What the last contributions measured, or what the owner allows where that is less; the newest last."""
        allowed = self._exchange.upload.allowed_bytes_per_second
        if allowed is None:
            return list(self._measured)
        return [min(rate, allowed) for rate in self._measured or [allowed]]

    def resume(self) -> None:
        """Go on where this peer was when it last contributed: what a sparse rung held back is still to be sent."""
        account = self._log.accounts.peers.get(self._own)
        last = self._log.entries[account.last_round].contributions if account else ()
        self.present = next((item.codec for signer, item in last if signer == self._own), self.present)

    def move(self) -> str:
        """Before a contribution is encoded: to the rung that suits the last measurements. What a person should know
        about it; empty if nothing changes."""
        if (rate := self._exchange.uplink.take()) is not None:
            self._measured.append(rate)
        before, uploads, length = self.present, self.uploads_bytes_per_second, round_seconds(self._log)
        patience = patience_seconds(length or 0.0, self._log.head.record.deadline_seconds)
        if not patience:  # nothing to go by: no rounds yet, or such as took no time
            return ""
        parameters = self._log.origin.genesis.parameters
        self.present = choose(self.ladder, parameters, uploads, patience, before)
        return told(before, self.present, parameters, uploads[-1], patience) if self.present != before else ""

    def missed(self) -> None:
        """The last contribution was not merged: what it measured is believed at once, and nothing faster."""
        if (rate := self._exchange.uplink.take()) is not None:
            slower = [each for each in self._measured if each < rate]
            self._measured.clear()
            self._measured.extend([*slower, rate])
