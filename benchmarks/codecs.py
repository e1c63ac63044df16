"""Speed, size and error of every codec on real pseudo-gradients.

A llama of 13 million parameters is trained on the source of Python's standard library for 40 inner steps; the last 20
give the pseudo-gradient. Every codec encodes, opens (validates) and decodes it several times; the best time counts,
since other programs can only add to it. The error is that of one payload without error feedback.

    python -m benchmarks.codecs --dir runs/codecs [--threads 2] [--write docs/codecs.md]
"""

from __future__ import annotations

import argparse
import asyncio
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from benchmarks.tables import write_between_markers
from configs.load import parse
from coordinator.prepare import prepare
from peer.codecs import CODECS, Payload, encode, open_payload
from peer.codecs.lowbit import two_levels
from peer.data.order import order_key
from peer.data.reader import ShardReader
from peer.log.aggregate import OuterStep, apply, norm_of
from peer.training.tasks import load_task
from peer.training.trainer import Trainer

STEPS = 20
ROUND_SECONDS = 300.0
ROUND_PARAMETERS = 100_000_000
ROUND_PEERS = 8


@dataclass(frozen=True)
class Row:
    codec: str
    bits: float
    encode_seconds: float
    open_seconds: float
    decode_seconds: float
    apply_seconds: float  # decode, clip, add and outer step of one contribution
    relative_error: float  # |x - decoded|^2 / |x|^2
    kept_error: float  # of the kept values, over that of two optimal levels per block; nan where that is no measure
    published_error: float  # of the published 4-bin quantiser on the kept values, over the same


def pseudo_gradient(folder: Path) -> torch.Tensor:
    """Trained once, then kept in the folder. fp32 [parameters]"""
    kept = folder / "pseudo_gradient.safetensors"
    if kept.exists():
        return load_file(kept)["delta"]
    spec = parse(
        {
            "run": {"name": "codecs", "tokens": 1_000_000},
            "model": {
                "config": {
                    "hidden_size": 384,
                    "intermediate_size": 1024,
                    "num_hidden_layers": 7,
                    "num_attention_heads": 6,
                    "num_key_value_heads": 6,
                    "tie_word_embeddings": True,
                }
            },
            "data": {
                "source": {"kind": "text", "path": "{stdlib}", "suffixes": [".py"]},
                "tokenizer": {"kind": "bpe", "vocab_size": 4096},
                "sequence_length": 128,
            },
            "train": {"batch_sequences": 8, "learning_rate": 1e-3, "warmup_tokens": 10_000, "precision": "fp32"},
            "round": {"target_tokens": STEPS * 8 * 128},
        },
        "codec benchmark",
    )
    manifest = prepare(spec, folder / "data")

    async def read() -> np.ndarray[Any, Any]:
        async with ShardReader(manifest, folder / "data", key=order_key(0)) as reader:
            return await reader.rows(range(2 * STEPS * 8))

    rows = asyncio.run(read()).reshape(2 * STEPS, 8, 128)
    task = load_task(spec.model.task)
    trainer = Trainer(spec, task, task.build_model(spec, manifest.vocab_size), torch.device("cpu"))
    start = trainer.parameters.read()
    for step, batch in enumerate(rows):
        if step == STEPS:
            start = trainer.parameters.read()
        print(f"\rtraining: step {step + 1} of {len(rows)}", end="", flush=True)
        trainer.step(batch, step * batch.size)
    print()
    delta = start - trainer.parameters.read()
    save_file({"delta": delta}, kept)
    return delta


def best_of(repeats: int, work: Callable[[], object]) -> float:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def decode_all(payload: Payload) -> None:
    for index in range(payload.segments):
        payload.segment(index)


def measured(name: str, delta: torch.Tensor, repeats: int) -> Row:
    count = delta.numel()
    data = encode(name, delta)
    payload = open_payload(data, count)
    decoded = payload.vector()
    theta = torch.zeros(count)
    contribution = (payload, 1, norm_of(payload))
    kept_error, published_error = kept_errors(delta, decoded) if name.startswith("sparse/") else (math.nan, math.nan)
    return Row(
        name,
        payload.bits_per_parameter,
        best_of(repeats, lambda: encode(name, delta)),
        best_of(repeats, lambda: open_payload(data, count)),
        best_of(repeats, lambda: decode_all(payload)),
        best_of(repeats, lambda: apply(theta, None, [contribution], OuterStep(1.0))),
        float(((delta - decoded).double() ** 2).sum() / (delta.double() ** 2).sum()),
        kept_error,
        published_error,
    )


def kept_errors(delta: torch.Tensor, decoded: torch.Tensor) -> tuple[float, float]:
    """Squared error on the kept values over that of two optimal levels per block: this codec's, the published one's."""
    whole = delta.numel() - delta.numel() % 4096
    values, out = delta[:whole].view(-1, 4096), decoded[:whole].view(-1, 4096)
    kept = out != 0
    # Whole blocks keep equally many. A kept value of exactly zero decodes to zero; such blocks are left out.
    usual = kept.sum(dim=1) == kept.sum(dim=1).max()
    values, out, kept = values[usual], out[usual], kept[usual]
    chosen = values[kept].view(len(values), -1)
    magnitudes = chosen.abs().numpy().astype(np.float64)
    low, high = (level[:, None] for level in two_levels(chosen.abs().numpy()))
    optimum = float(np.minimum((magnitudes - low) ** 2, (magnitudes - high) ** 2).sum())
    error = float(((chosen - out[kept].view(len(values), -1)).double() ** 2).sum())
    # SparseLoCo's published quantiser: 4 bins over six standard deviations, the bins' means as codebook. It has one
    # codebook per tensor; it gets one per block here, which can only help it.
    wide = chosen.double()
    scale = 6.0 * wide.std(dim=1, keepdim=True) / 4
    bins = torch.clamp(torch.round((wide - wide.mean(dim=1, keepdim=True)) / scale + 2), 0, 3).long()
    sums = torch.zeros(len(wide), 4, dtype=torch.float64).scatter_add_(1, bins, wide)
    counts = torch.zeros_like(sums).scatter_add_(1, bins, torch.ones_like(wide))
    published = float(((wide - (sums / counts.clamp(min=1)).gather(1, bins)) ** 2).sum())
    return error / optimum, published / optimum


def table(rows: list[Row], count: int, threads: int) -> str:
    million = count / 1e6
    per_hundred = ROUND_PARAMETERS / count

    def share(row: Row) -> float:
        work = row.encode_seconds + row.decode_seconds + ROUND_PEERS * (row.open_seconds + row.apply_seconds)
        return 100 * work * per_hundred / ROUND_SECONDS

    lines = [
        f"Measured on {million:.1f} M parameters with {threads} thread(s) of {processor()}, torch {torch.__version__},"
        f" numpy {np.__version__}, by `python -m benchmarks.codecs --dir runs/codecs --threads {threads}`."
        f" M/s is million parameters per second. The last column is what a round of {ROUND_SECONDS:.0f} s spends on"
        f" the codec with a model of {ROUND_PARAMETERS / 1e6:.0f} M parameters and {ROUND_PEERS} peers: encode one"
        " contribution, decode it for the error feedback, open and apply all.",
        "",
        "| codec | bits per parameter | encode M/s | open M/s | decode M/s | apply M/s | relative error"
        " | kept values: error over the optimum | the same of the published 4 bins | round |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        kept, published = (
            "" if math.isnan(value) else f"{value:.{digits}f}"
            for value, digits in ((row.kept_error, 4), (row.published_error, 1))
        )
        speeds = (row.encode_seconds, row.open_seconds, row.decode_seconds, row.apply_seconds)
        lines.append(
            f"| `{row.codec}` | {row.bits:.3f} | {' | '.join(f'{million / each:,.0f}' for each in speeds)}"
            f" | {row.relative_error:.4g} | {kept} | {published} | {share(row):.1f} % |"
        )
    return "\n".join(lines) + "\n"


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True, help="where the pseudo-gradient and its data are kept")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", type=Path, help="a Markdown file whose measured part is replaced")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.dir.mkdir(parents=True, exist_ok=True)
    delta = pseudo_gradient(arguments.dir)
    text = table([measured(name, delta, arguments.repeats) for name in CODECS], delta.numel(), arguments.threads)
    print(text)
    if arguments.write:
        write_between_markers(arguments.write, text)


if __name__ == "__main__":
    main()
