"""What compression costs in held-out loss: the same tokens through every rung of the codec ladder.

Four simulated peers take turns in this one process, each with a trainer and an error-feedback buffer of its own; the
exchange is left out, nothing else is. Trainer, task, prepared data, codecs, error feedback, clipping and outer step are
the ones that peers run. Beside them one process takes the same tokens, in the same order, with four times the batch.

    python -m benchmarks.quality --dir runs/quality                          every rung with its defaults
    python -m benchmarks.quality --dir runs/quality --write docs             ... and docs/quality.md, docs/quality.svg
    python -m benchmarks.quality --dir runs/quality --try sparse/16:1.4:0.3:0.5 ...     other settings: codec, outer
                                                          learning rate, momentum, share of unsent work that is kept
    python -m benchmarks.quality --dir runs/quality --try lowbit2+sparse/16     half of the peers on another rung, the
                                                          outer step that of the first

A finished run is kept in the folder as JSON and not computed again, so the benchmark may be interrupted. Two may run
side by side.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.tables import write_between_markers
from configs.load import parse
from configs.rungs import RUNGS
from configs.schema import RunSpec
from coordinator.prepare import prepare
from peer.codecs import open_payload
from peer.data.order import order_key
from peer.data.reader import ShardReader
from peer.log.aggregate import OuterStep, apply, norm_of
from peer.rounds.feedback import ErrorFeedback
from peer.training.tasks import load_task
from peer.training.trainer import Trainer

PEERS = 4
INNER_STEPS = 15
LENGTH = 128
EVALUATE_EVERY = 8
HELD_OUT_ROWS = 500

Rows = np.ndarray[Any, Any]  # token ids


@dataclass(frozen=True)
class Setting:
    """One run. codec "" is the single process with PEERS times the batch; "a+b": peers take turns with a and b."""

    codec: str
    learning_rate: float = 1.0
    momentum: float = 0.0
    keep_unsent: float = 0.0
    feedback_decay: float = 1.0
    rounds: int = 40
    seed: int = 0
    hidden: int = 128
    batch: int = 8
    inner_learning_rate: float = 4e-3

    @property
    def file_name(self) -> str:
        name = self.codec.replace("/", "") or "single"
        outer = f"a{self.learning_rate:g}-m{self.momentum:g}-k{self.keep_unsent:g}-b{self.feedback_decay:g}"
        inner = f"r{self.rounds}-s{self.seed}-h{self.hidden}-n{self.batch}-l{self.inner_learning_rate:g}"
        return f"{name}-{outer if self.codec else 'process'}-{inner}.json"

    @property
    def tokens(self) -> int:
        return self.rounds * INNER_STEPS * PEERS * self.batch * LENGTH


@dataclass(frozen=True)
class Curve:
    setting: Setting
    losses: list[tuple[int, float]]  # (round, held-out nats per token)
    bits_per_parameter: float  # mean over all contributions
    parameters: int
    tokens: int
    seconds: float

    @property
    def final(self) -> float:
        return self.losses[-1][1]


def spec_of(setting: Setting) -> RunSpec:
    """A byte-level llama of 0.4 million parameters on the source of Python's standard library."""
    raw = {
        "run": {"name": "quality", "seed": setting.seed, "tokens": setting.tokens},
        "model": {
            "config": {
                "hidden_size": setting.hidden,
                "intermediate_size": setting.hidden * 11 // 4,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 4,
                "tie_word_embeddings": True,
            }
        },
        "data": {
            "source": {"kind": "text", "path": "{stdlib}", "suffixes": [".py"]},
            "tokenizer": {"kind": "bytes"},
            "sequence_length": LENGTH,
        },
        "train": {
            "batch_sequences": setting.batch if setting.codec else PEERS * setting.batch,
            "learning_rate": setting.inner_learning_rate,
            "warmup_tokens": setting.tokens // 20,
            "precision": "fp32",
        },
        "round": {"target_tokens": INNER_STEPS * PEERS * setting.batch * LENGTH, "inner_steps": INNER_STEPS},
    }
    return parse(raw, "quality benchmark")


def new_trainer(spec: RunSpec, vocab_size: int) -> Trainer:
    task = load_task(spec.model.task)
    return Trainer(spec, task, task.build_model(spec, vocab_size), torch.device("cpu"))


def swarm(setting: Setting, rows: Rows, held_out: Rows, vocab_size: int) -> Curve:
    """DiLoCo with PEERS equal peers. rows: [rounds, INNER_STEPS, PEERS, batch, LENGTH]"""
    started = time.perf_counter()
    spec = spec_of(setting)
    trainers = [new_trainer(spec, vocab_size) for _ in range(PEERS)]
    theta = trainers[0].parameters.read()
    momentum = torch.zeros_like(theta)
    feedback = [ErrorFeedback(theta.numel(), setting.feedback_decay) for _ in trainers]
    outer = OuterStep(setting.learning_rate, setting.momentum, nesterov=True)
    codecs = setting.codec.split("+")
    losses, bits = [], []
    for round_ in range(setting.rounds):
        contributions = []
        tokens_before = round_ * rows[0].size
        for peer, trainer in enumerate(trainers):
            start = theta - setting.keep_unsent * feedback[peer].buffer
            trainer.parameters.write(start)
            if spec.resets_momentum:
                trainer.forget_direction()
            tokens = 0
            for step in range(INNER_STEPS):
                tokens += trainer.step(rows[round_, step, peer], tokens_before + tokens).tokens
            feedback[peer].add(start, trainer.parameters.read())
            payload = open_payload(feedback[peer].encode(codecs[peer % len(codecs)]), theta.numel())
            bits.append(payload.bits_per_parameter)
            contributions.append((payload, tokens, norm_of(payload)))
        apply(theta, momentum, contributions, outer)
        if (round_ + 1) % EVALUATE_EVERY == 0 or round_ + 1 == setting.rounds:
            trainers[0].parameters.write(theta)
            losses.append((round_ + 1, trainers[0].evaluate(np.array_split(held_out, 16))))
    return Curve(setting, losses, float(np.mean(bits)), theta.numel(), rows.size, time.perf_counter() - started)


def single(setting: Setting, rows: Rows, held_out: Rows, vocab_size: int) -> Curve:
    """One process, PEERS times the batch, the same rows in the same steps."""
    started = time.perf_counter()
    trainer = new_trainer(spec_of(setting), vocab_size)
    losses, tokens = [], 0
    for round_ in range(setting.rounds):
        for step in range(INNER_STEPS):
            tokens += trainer.step(rows[round_, step].reshape(-1, LENGTH), tokens).tokens
        if (round_ + 1) % EVALUATE_EVERY == 0 or round_ + 1 == setting.rounds:
            losses.append((round_ + 1, trainer.evaluate(np.array_split(held_out, 16))))
    return Curve(setting, losses, 0.0, trainer.parameters.count, rows.size, time.perf_counter() - started)


def run(folder: Path, setting: Setting) -> Curve:
    """The curve of a setting: from the folder if it is there, else computed and kept."""
    kept = folder / setting.file_name
    if kept.exists():
        raw = json.loads(kept.read_text())
        return Curve(**{**raw, "setting": Setting(**raw["setting"]), "losses": [tuple(each) for each in raw["losses"]]})
    manifest = prepare(spec_of(setting), folder / "data")
    count = setting.tokens // LENGTH

    async def read() -> tuple[Rows, Rows]:
        async with ShardReader(manifest, folder / "data", key=order_key(setting.seed)) as reader:
            return await reader.rows(range(count)), await reader.held_out(HELD_OUT_ROWS)

    flat, held_out = asyncio.run(read())
    rows = flat.reshape(setting.rounds, INNER_STEPS, PEERS, setting.batch, LENGTH)
    curve = (swarm if setting.codec else single)(setting, rows, held_out, manifest.vocab_size)
    kept.write_text(json.dumps(asdict(curve)))
    return curve


def described(curve: Curve) -> str:
    one = curve.setting
    outer = f"lr {one.learning_rate:<4g} momentum {one.momentum:<4g} keep {one.keep_unsent:<4g}"
    inner = f"inner {one.inner_learning_rate:g} hidden {one.hidden} batch {one.batch} rounds {one.rounds}"
    cost = f"{curve.bits_per_parameter:7.3f} bit  held-out {curve.final:.4f}  ({curve.seconds:.0f} s)"
    return f"{one.codec or 'one process':12s} {outer} {inner} {cost}"


def parsed(text: str) -> Setting:
    """'codec:learning rate:momentum:keep', numbers left out are the codec's defaults; 'single' is the one process."""
    codec, *numbers = text.split(":")
    if codec == "single":
        return Setting("")
    given = [float(number) for number in numbers]
    learning_rate, momentum, keep = given + list(RUNGS[codec.split("+")[0]])[len(given) :]
    return Setting(codec, learning_rate, momentum, keep)


def report(single_curve: Curve, curves: list[Curve], folder: Path) -> None:
    """docs/quality.md's measured part and docs/quality.svg."""
    dense = next(curve for curve in curves if curve.setting.codec == "fp16")
    setting = dense.setting
    lines = [
        f"{PEERS} peers, {setting.rounds} rounds of {INNER_STEPS} inner steps of {setting.batch} x {LENGTH} tokens"
        f" ({dense.tokens / 1e6:.1f} M tokens in all), {dense.parameters / 1e6:.2f} M parameters, held-out loss in nats"
        f" per byte over {HELD_OUT_ROWS} rows. Measured by `python -m benchmarks.quality --dir DIR --write docs`.",
        "",
        "| | bits per parameter | outer learning rate | momentum | `keep_unsent` | held-out loss | over `fp16` |",
        "|---|---|---|---|---|---|---|",
        f"| one process, {PEERS} times the batch | | | | | {single_curve.final:.4f} | {over(single_curve, dense)} |",
    ]
    for curve in curves:
        one = curve.setting
        lines.append(
            f"| `{one.codec}` | {curve.bits_per_parameter:.2f} | {one.learning_rate:g} | {one.momentum:g}"
            f" | {one.keep_unsent:g} | {curve.final:.4f} | {over(curve, dense)} |"
        )
    write_between_markers(folder / "quality.md", "\n".join(lines) + "\n")
    plot(single_curve, curves, folder / "quality.svg")


def over(curve: Curve, dense: Curve) -> str:
    return f"{100 * (curve.final / dense.final - 1):+.1f} %"


def plot(single_curve: Curve, curves: list[Curve], path: Path) -> None:
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "quality"  # the same numbers give the same file
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    for curve in [single_curve, *curves]:
        style = {"color": "black", "linestyle": "--"} if curve is single_curve else {}
        left.plot(*zip(*curve.losses, strict=True), label=curve.setting.codec or "one process", **style)
    left.set(xlabel="round", ylabel="held-out loss, nats per byte", yscale="log")
    left.legend(fontsize=7)
    right.semilogx([curve.bits_per_parameter for curve in curves], [curve.final for curve in curves], "o-")
    for curve in curves:
        right.annotate(curve.setting.codec, (curve.bits_per_parameter, curve.final), fontsize=7, rotation=30)
    right.axhline(single_curve.final, color="black", linestyle="--", linewidth=1)
    right.set(xlabel="bits per parameter and round", ylabel="final held-out loss")
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True, help="where data and finished runs are kept")
    parser.add_argument("--try", dest="attempts", nargs="+", default=[], metavar="CODEC:LR:MOMENTUM:KEEP")
    parser.add_argument("--write", type=Path, help="the folder of quality.md and quality.svg")
    parser.add_argument("--hidden", type=int, default=Setting.hidden)
    parser.add_argument("--batch", type=int, default=Setting.batch)
    parser.add_argument("--rounds", type=int, default=Setting.rounds)
    parser.add_argument("--seed", type=int, default=Setting.seed)
    parser.add_argument("--inner-learning-rate", type=float, default=Setting.inner_learning_rate)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.dir.mkdir(parents=True, exist_ok=True)
    curves = []
    for text in arguments.attempts or ["single", *RUNGS]:
        setting = replace(
            parsed(text),
            hidden=arguments.hidden,
            batch=arguments.batch,
            rounds=arguments.rounds,
            seed=arguments.seed,
            inner_learning_rate=arguments.inner_learning_rate,
        )
        curves.append(run(arguments.dir, setting))
        print(described(curves[-1]), flush=True)
    if arguments.write and not curves[0].setting.codec:  # the one process comes first: all are compared with it
        report(curves[0], curves[1:], arguments.write)


if __name__ == "__main__":
    main()
