"""What the organiser's commands do: one call to a running coordinator, with the token of its folder."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from coordinator.api.token import admin_token
from peer.client import RunClient
from peer.errors import UsageError
from peer.ticket import FILE_NAME, Ticket
from protos import coordinator_pb2

CALL_SECONDS = 600.0  # a checkpoint of a large model takes its time


def govern(folder: Path, ticket: str, method: str, request: Any) -> Any:
    """Call a method of the Admin service of the run in `folder`, or of `ticket`'s.

    Raises:
        UsageError: no ticket or token is to be found, or the request makes no sense.
        UnreachableError: the coordinator is not running.
        Refused: it says no, with its reason.
    """
    found = _ticket(folder, ticket)
    token = admin_token(folder, create=False)

    async def call() -> Any:
        async with RunClient(found, token, CALL_SECONDS) as run:
            return await run.admin(method, request)

    return asyncio.run(call())


def list_invites(folder: Path, ticket: str) -> list[dict[str, Any]]:
    """All of them, newest first. Raises what `govern` does."""
    found: list[dict[str, Any]] = []
    request = coordinator_pb2.ListInvitesRequest()
    while True:
        page: coordinator_pb2.ListInvitesReply = govern(folder, ticket, "ListInvites", request)
        for row in page.invites:
            found.append(
                {
                    "number": row.number,
                    "note": row.note,
                    "uses": row.uses,
                    "admitted": list(row.admitted),
                    "created_seconds": row.created_seconds,
                    "expires_seconds": row.expires_seconds or None,
                    "revoked": row.revoked,
                }
            )
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


def _ticket(folder: Path, ticket: str) -> Ticket:
    if ticket:
        return Ticket.parse(ticket)
    if not (folder / FILE_NAME).exists():
        raise UsageError(f"{folder} holds no {FILE_NAME}: give the --dir of a coordinator, or --ticket")
    return Ticket.parse(str(folder / FILE_NAME))
