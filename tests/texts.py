"""Small real texts for tests of the data path, and a run spec around them."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np

from configs import RunSpec
from configs.load import parse
from peer.data.manifest import Manifest, Shard
from peer.data.tokenizer import Tokenizer

MODULES = (
    "bisect.py",
    "heapq.py",
    "keyword.py",
    "queue.py",
    "sched.py",
    "shlex.py",
    "stat.py",
    "string.py",
    "textwrap.py",
)


def copy_stdlib(folder: Path) -> Path:
    """Some modules of the standard library, about 120 kB, some of them in a subfolder."""
    source = Path(sysconfig.get_paths()["stdlib"])
    (folder / "deeper").mkdir(parents=True)
    for number, name in enumerate(MODULES):
        shutil.copy(source / name, folder / "deeper" / name if number % 2 else folder / name)
    return folder


def run_config(path: Path | str, **data: Any) -> dict[str, Any]:
    """A run on the .py files at `path`, as bytes in rows of 64 and shards of 64 rows; `data` changes keys of [data]."""
    source = {"kind": "text", "path": str(path), "suffixes": [".py"]}
    return {
        "run": {"name": "test"},
        "model": {"config": {"hidden_size": 16}},
        "data": {
            "source": source,
            "tokenizer": {"kind": "bytes"},
            "sequence_length": 64,
            "shard_sequences": 64,
            "held_out_fraction": 0.1,
            **data,
        },
        "train": {"batch_sequences": 2, "learning_rate": 1e-3},
        "round": {"target_tokens": 1024},
    }


def run_spec(path: Path | str, **data: Any) -> RunSpec:
    """`run_config` as a run spec."""
    return parse(run_config(path, **data), "test")


def source(kind: str, path: Path, **more: Any) -> dict[str, Any]:
    """A [data.source] table."""
    return {"kind": kind, "path": str(path), **more}


def tokens_of(folder: Path, shards: list[Shard], manifest: Manifest) -> list[int]:
    """All token ids of the shards, in order."""
    return [token for shard in shards for token in np.fromfile(folder / shard.name, manifest.numpy_dtype).tolist()]


def documents(folder: Path, shards: list[Shard]) -> list[str]:
    """The texts between end-of-text tokens; the last may be cut, because the rest of a row is dropped."""
    manifest = Manifest.load(folder)
    found: list[list[int]] = [[]]
    for token in tokens_of(folder, shards, manifest):
        if token == manifest.end_of_text:
            found.append([])
        else:
            found[-1].append(token)
    tokenizer = Tokenizer.load(folder / "tokenizer")
    return [tokenizer.decode(ids) for ids in found]
