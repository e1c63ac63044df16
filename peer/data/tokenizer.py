"""The run's tokenizer, as a peer needs it: text to ids and back, from the files that the manifest names.

It reads `tokenizer.json` with the `tokenizers` library alone: no transformers, no torch. The same folder loads with
transformers' `AutoTokenizer.from_pretrained`, because checkpoints ship it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

from peer.errors import DataError

FOLDER = "tokenizer"
LONGEST_PIECE = 1 << 18  # characters encoded at once: bounds memory, and merges never reach across so much text


class Tokenizer:
    """Encodes documents and decodes samples.

    Markers of special tokens that occur in a document are encoded as the plain text they are: a stranger's text cannot
    write an end-of-text token into the training data.
    """

    def __init__(self, backend: tokenizers.Tokenizer, end_of_text: int, byte_level: bool = False) -> None:
        self._backend = backend
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True
        self.end_of_text = end_of_text
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        self._byte_level = byte_level
        self.dtype: np.dtype[Any] = np.dtype("<u2" if self.vocab_size <= 1 << 16 else "<u4")

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read a tokenizer folder.

        Raises:
            DataError: files are missing or damaged, or the tokenizer has no end-of-text token.
        """
        try:
            backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
            settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        except Exception as error:  # the library raises plain Exception for damaged files
            raise DataError(f"{folder}: not a tokenizer: {str(error).splitlines()[0]}") from None
        end = settings.get("eos_token")
        end_text = end.get("content") if isinstance(end, dict) else end
        end_id = backend.token_to_id(end_text) if isinstance(end_text, str) else None
        if end_id is None:
            raise DataError(f"{folder}: the tokenizer has no end-of-text token (eos_token); choose another")
        return cls(backend, end_id, byte_level=settings.get("byte_level") is True)

    def encode(self, text: str) -> list[int]:
        return [int(token) for token in next(self.encode_documents([text]))[:-1]]

    def encode_documents(self, texts: Sequence[str]) -> Iterator[npt.NDArray[np.unsignedinteger[Any]]]:
        """For each text its ids followed by the end-of-text token, as `self.dtype`. In parallel on all cores."""
        if self._byte_level:  # ids are the bytes: no need to ask anybody, and 30 times faster
            for text in texts:
                ids = np.empty(len(data := _utf8(text)) + 1, dtype=self.dtype)
                ids[:-1], ids[-1] = np.frombuffer(data, dtype=np.uint8), self.end_of_text
                yield ids
            return
        pieces = [_pieces(text) for text in texts]
        encoded = iter(
            self._backend.encode_batch_fast([piece for group in pieces for piece in group], add_special_tokens=False)
        )
        for group in pieces:
            parts = [np.array(next(encoded).ids, dtype=self.dtype) for _ in group]
            yield np.concatenate([*parts, np.array([self.end_of_text], dtype=self.dtype)])

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; special tokens are left out, bytes that are not UTF-8 become U+FFFD."""
        return self._backend.decode([int(token) for token in ids], skip_special_tokens=True)


def _pieces(text: str) -> list[str]:
    return [text[start : start + LONGEST_PIECE] for start in range(0, len(text), LONGEST_PIECE)] or [""]


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", errors="replace")  # lone surrogates, which JSON can carry, are not text
