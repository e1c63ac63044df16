"""The organiser's secret: a token in a file that only its owner can read, or in the environment."""

from __future__ import annotations

import hmac
import os
import secrets
from pathlib import Path

from peer.errors import UsageError

ENVIRONMENT = "COMMONWEIGHTS_ADMIN_TOKEN"
FILE_NAME = "admin-token"
MIN_CHARACTERS = 16


def admin_token(folder: Path, *, create: bool) -> str:
    """From the environment, or from DIR/admin-token, which is made on the first start.

    Raises:
        UsageError: it is too short to be a secret, or there is none; never with the token in the text.
    """
    if (given := os.environ.get(ENVIRONMENT)) is not None:
        return _checked(given, ENVIRONMENT)
    path = folder / FILE_NAME
    try:
        return _checked(path.read_text(), str(path))
    except FileNotFoundError:
        if not create:
            raise UsageError(
                f"{path} is not there; give the --dir of the coordinator, or set {ENVIRONMENT} to its token"
            ) from None
    except (OSError, UnicodeDecodeError):
        raise UsageError(f"{path} cannot be read; only its owner may") from None
    token = secrets.token_urlsafe(32)
    temporary = path.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(f"{token}\n")
    os.replace(temporary, path)
    return token


def is_token(expected: str, authorization: str | bytes | None) -> bool:
    """Whether an `authorization` header holds the token; takes equally long wherever they differ."""
    given = authorization.encode() if isinstance(authorization, str) else (authorization or b"")
    return hmac.compare_digest(given, f"Bearer {expected}".encode())


def _checked(text: str, where: str) -> str:
    token = text.strip()
    if len(token) < MIN_CHARACTERS or not token.isascii() or not token.isprintable():
        raise UsageError(f"{where} holds no token: at least {MIN_CHARACTERS} printable characters")
    return token
