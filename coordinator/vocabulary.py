"""Making the run's tokenizer: bytes, a byte-level BPE trained on the source, or one of transformers.

Each ends as a folder that transformers' `AutoTokenizer.from_pretrained` loads and that holds a `tokenizer.json`, so
peers need nothing but the small `tokenizers` library. The first two are written without transformers, whose import
takes seconds, and are the same bytes everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from configs.schema import BpeTokenizer, BytesTokenizer, PretrainedTokenizer
from coordinator.hub import explained
from peer.errors import DataError

END_OF_TEXT = "<|endoftext|>"
TRAINING_CHARACTERS = 64 << 20  # a BPE learns from the beginning of the text: more changes little and costs minutes
_PIECE_CHARACTERS = 1 << 18


def write_tokenizer(
    spec: BytesTokenizer | BpeTokenizer | PretrainedTokenizer, folder: Path, documents: Callable[[], Iterator[str]]
) -> None:
    """Fill `folder` with the files of the tokenizer; `documents` gives the text that a BPE is trained on.

    Raises:
        DataError: a pretrained tokenizer is not there or not usable.
    """
    match spec:
        case BytesTokenizer():
            _save(_byte_level(), folder, byte_level=True)
        case BpeTokenizer():
            _save(_train(spec.vocab_size, documents()), folder, byte_level=False)
        case PretrainedTokenizer():
            _copy_pretrained(spec, folder)


def _byte_level() -> tokenizers.Tokenizer:
    """A token per byte, whose id is the byte, and the end of text as number 256."""
    vocabulary = {character: byte for byte, character in enumerate(_alphabet())}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([tokenizers.AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return tokenizer


def _alphabet() -> list[str]:
    """The visible character that byte-level tokenizers write for each of the 256 bytes (the convention of GPT-2)."""
    visible = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return [chr(byte if byte in visible else 256 + hidden.index(byte)) for byte in range(256)]


def _train(vocab_size: int, documents: Iterator[str]) -> tokenizers.Tokenizer:
    """A byte-level BPE. Deterministic: merges with equal counts are taken in the order of their ids."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_beginning(documents), trainer=trainer)
    return tokenizer


def _beginning(documents: Iterator[str]) -> Iterator[str]:
    left = TRAINING_CHARACTERS
    for text in documents:
        text = text[:left].encode("utf-8", errors="replace").decode()
        for start in range(0, len(text), _PIECE_CHARACTERS):
            yield text[start : start + _PIECE_CHARACTERS]
        left -= len(text)
        if left <= 0:
            return


def _save(tokenizer: tokenizers.Tokenizer, folder: Path, *, byte_level: bool) -> None:
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "unk_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "byte_level": byte_level,
    }
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )


def _copy_pretrained(spec: PretrainedTokenizer, folder: Path) -> None:
    from transformers import AutoTokenizer

    with explained("data.tokenizer.path", spec.path, "a local tokenizer folder"):
        tokenizer = AutoTokenizer.from_pretrained(spec.path, revision=spec.revision or "main", trust_remote_code=False)
    tokenizer.save_pretrained(folder)
    if not (folder / "tokenizer.json").exists():
        raise DataError(f"data.tokenizer.path: {spec.path} has no fast tokenizer (tokenizer.json); choose another")
