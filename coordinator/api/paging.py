"""Pages of lists: how many rows, and where the page before ended."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import TypeVar

from peer.errors import UsageError

DEFAULT_PAGE = 100
MAX_PAGE = 1000
MAX_TOKEN_CHARACTERS = 400

T = TypeVar("T")


def page_size(wanted: int) -> int:
    """Raises UsageError when it is more than a page can have."""
    if wanted > MAX_PAGE:
        raise UsageError(f"page_size: at most {MAX_PAGE}")
    return wanted or DEFAULT_PAGE


def token(*key: int | str) -> str:
    """Names the row that a page ended with."""
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode().rstrip("=")


def after(text: str, key: Callable[..., T], *kinds: type) -> T | None:
    """`key(...)` of the row that the page before ended with; None for the first page.

    Raises:
        UsageError: no such token was ever given out.
    """
    if not text:
        return None
    try:
        if len(text) > MAX_TOKEN_CHARACTERS:
            raise ValueError
        values = json.loads(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
        whole = isinstance(values, list) and [type(value) for value in values] == list(kinds)
        if not whole or any(isinstance(value, int) and not 0 <= value < 1 << 63 for value in values):
            raise ValueError
    except (ValueError, RecursionError):
        raise UsageError("page_token: use the next_page_token of the page before") from None
    return key(*values)
