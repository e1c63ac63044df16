"""Invitations, admissions and verdicts: each function is one transaction for `Store.write` or a question for
`Store.read`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select, update

from coordinator.store.numbers import text
from coordinator.store.schema import admissions, invites, verdicts
from peer.errors import Refused
from protos import log_pb2

VERDICTS_KEPT = 10_000


@dataclass(frozen=True)
class Invite:
    number: int
    note: str
    uses: int
    used: int
    created: float
    expires: float | None
    revoked: bool
    admitted: tuple[str, ...]  # peer ids


def add_invite(
    connection: Connection, token_hash: bytes, uses: int, created: float, expires: float | None, note: str
) -> None:
    connection.execute(
        insert(invites).values(
            token_hash=token_hash, uses=uses, used=0, created=created, expires=expires, note=text(note), revoked=False
        )
    )


def redeem(connection: Connection, token_hash: bytes, peer_id: str, now: float) -> None:
    """Count one use and remember the key; for a key that redeemed it before nothing is counted.

    Raises:
        Refused: no such invitation, or it admits nobody any more.
    """
    invite = connection.execute(select(invites).where(invites.c.token_hash == token_hash)).first()
    if invite is None:
        raise Refused("there is no such invitation; ask the organiser for another one")
    if invite.revoked:
        raise Refused("the invitation was taken back; ask the organiser for another one")
    mine = select(admissions.c.invite).where(admissions.c.peer_id == peer_id)
    if connection.execute(mine).scalar() is not None:
        return
    if invite.expires is not None and now > invite.expires:
        raise Refused("the invitation has expired; ask the organiser for another one")
    if invite.used >= invite.uses:
        raise Refused("the invitation is used up; ask the organiser for another one")
    connection.execute(update(invites).where(invites.c.number == invite.number).values(used=invites.c.used + 1))
    connection.execute(insert(admissions).values(peer_id=peer_id, invite=invite.number, time_seconds=now))


def revoke_invite(connection: Connection, number: int) -> None:
    """Raises Refused: there is no such invitation."""
    done = connection.execute(update(invites).where(invites.c.number == number).values(revoked=True))
    if done.rowcount == 0:
        raise Refused(f"there is no invitation number {number}")


def invites_page(connection: Connection, before: int | None = None, size: int = 100) -> list[Invite]:
    """Newest first."""
    question = select(invites).order_by(invites.c.number.desc()).limit(size)
    if before is not None:
        question = question.where(invites.c.number < before)
    found = connection.execute(question).all()
    by_invite: dict[int, list[str]] = {row.number: [] for row in found}
    redeemed = select(admissions.c.invite, admissions.c.peer_id).where(admissions.c.invite.in_(by_invite))
    for row in connection.execute(redeemed.order_by(admissions.c.time_seconds)):
        by_invite[row.invite].append(row.peer_id)
    return [
        Invite(it.number, it.note, it.uses, it.used, it.created, it.expires, it.revoked, tuple(by_invite[it.number]))
        for it in found
    ]


def add_verdict(connection: Connection, signed: log_pb2.Signed, now: float) -> None:
    done = connection.execute(insert(verdicts).values(signed=signed.SerializeToString(), time_seconds=now))
    if (inserted := done.inserted_primary_key) is not None:
        connection.execute(delete(verdicts).where(verdicts.c.number <= inserted[0] - VERDICTS_KEPT))


def all_verdicts(connection: Connection) -> Iterable[log_pb2.Signed]:
    """Oldest first."""
    found = connection.execute(select(verdicts.c.signed).order_by(verdicts.c.number)).scalars()
    return [log_pb2.Signed.FromString(signed) for signed in found]
