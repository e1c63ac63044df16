"""What the Hugging Face libraries raise, in one line that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from peer.errors import CommonweightsError, DataError, UnreachableError

# By name: the libraries raise a dozen unrelated types, some of their HTTP client's, which changed between versions.
_GATED = {"GatedRepoError"}
_MISSING = {"DatasetNotFoundError", "RepositoryNotFoundError"}
_UNREACHABLE = {
    "LocalEntryNotFoundError",
    "OfflineModeIsEnabled",
    "TransportError",
    "TimeoutException",
    "ConnectionError",
}
_SAYS_MISSING = ("repo id must", "is not a valid model identifier", "doesn't exist on the hub")
_SAYS_UNREACHABLE = ("couldn't connect to", "couldn't reach", "offline mode is enabled")


@contextmanager
def explained(key: str, name: str, alternative: str) -> Iterator[None]:
    """Turn an error of loading `name`, which the user wrote as `key`, into one of ours.

    Raises:
        UnreachableError: the Hub did not answer.
        DataError: anything else about that name.
    """
    try:
        yield
    except CommonweightsError:
        raise
    except Exception as error:
        kinds = {kind.__name__ for link in _chain(error) for kind in type(link).__mro__}
        said = " ".join(str(link) for link in _chain(error)).lower()
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if kinds & _GATED:
            raise DataError(f"{key}: no access to {name!r}; accept its terms on the Hub and set HF_TOKEN") from None
        if kinds & _MISSING or any(words in said for words in _SAYS_MISSING):
            raise DataError(
                f"{key}: {name!r} is neither a local folder nor on the Hugging Face Hub;"
                " check its spelling, or set HF_TOKEN if it is private"
            ) from None
        if kinds & _UNREACHABLE or any(words in said for words in _SAYS_UNREACHABLE):
            raise UnreachableError(
                f"{key}: the Hugging Face Hub cannot be reached to load {name!r}; check the connection and"
                f" HF_HUB_OFFLINE and run the same command again, or give {alternative} ({reason})"
            ) from None
        raise DataError(f"{key}: {name!r} cannot be loaded: {reason}") from None


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__
