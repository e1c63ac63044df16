"""What the Hugging Face libraries raise, in one line that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from peer.errors import CommonweightsError, DataError, UnreachableError

_NETWORK = ("connect", "reach", "offline", "resolve", "timed out", "timeout", "network", "ssl", "max retries")
_ACCESS = ("gated", "401", "403", "authenticat", "private")


@contextmanager
def explained(key: str, name: str, alternative: str) -> Iterator[None]:
    """Turn an error of loading `name`, which the user wrote as `key`, into one of ours.

    The libraries raise a dozen unrelated types, and wrap network errors in OSError and ValueError: their words decide.

    Raises:
        UnreachableError: the Hub did not answer.
        DataError: anything else about that name.
    """
    try:
        yield
    except CommonweightsError:
        raise
    except Exception as error:
        text = " ".join(f"{type(link).__name__}: {link}" for link in _chain(error)).lower()
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if (
            "notfound" in text.replace(" ", "")
            and "localentrynotfound" not in text
            and "datasetnotfounderror" not in text
        ):
            raise DataError(
                f"{key}: {name!r} is neither a local folder nor on the Hugging Face Hub; check its spelling"
            ) from None
        if any(word in text for word in _NETWORK):
            raise UnreachableError(
                f"{key}: the Hugging Face Hub cannot be reached to load {name!r}; check the connection and"
                f" HF_ENDPOINT / HF_HUB_OFFLINE and run the same command again, or give {alternative} ({line})"
            ) from None
        if any(word in text for word in _ACCESS):
            raise DataError(
                f"{key}: no access to {name!r}; accept its terms on the Hub and set HF_TOKEN ({line})"
            ) from None
        raise DataError(f"{key}: {name!r} cannot be loaded: {line}") from None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
