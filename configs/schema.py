"""The run spec: everything that all peers of a run must agree on, and nothing else.

It is written as TOML (`configs/*.toml`, where every key is explained), checked here, and travels as canonical JSON
inside the genesis record, whose hash is the run's id. How one machine takes part (device, upload limit, folders) is not
part of it.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from configs.rungs import RUNGS, rungs_between

CODEC_PATTERN = re.compile(r"^(fp16|dense8|dense4|lowbit2|ternary|sign|sparse/(8|16|32|64))$")

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Section(BaseModel):
    """A table of the TOML file: unknown keys are errors, values are not converted behind the user's back."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Run(Section):
    name: Annotated[str, Field(min_length=1, max_length=80)]
    description: str = ""
    seed: NonNegative = 0
    rounds: NonNegative = 0  # 0: no limit
    tokens: NonNegative = 0  # 0: no limit
    access: Literal["open", "invite"] = "open"  # who may take part: anybody, or whoever redeemed an invitation


class Model(Section):
    task: Literal["language_model"] = "language_model"
    architecture: str = "llama"  # a `model_type` of transformers
    initial_weights: str = ""  # a model to start from: a local folder or a name on the Hub; empty: drawn from run.seed
    config: dict[str, bool | int | Finite | str] = {}  # keyword arguments of that architecture's config class


class TextSource(Section):
    """Local .txt, .md, .py, .jsonl or .parquet files."""

    kind: Literal["text"]
    path: str  # a file, a folder (searched recursively) or a glob; "{stdlib}" is the folder of Python's own library
    suffixes: list[str] = [".txt"]
    field: str = "text"  # column of jsonl and parquet files
    max_bytes: NonNegative = 0  # 0: everything


class DatasetSource(Section):
    """A Hugging Face data set: a name on the Hub, or a local data set directory."""

    kind: Literal["dataset"]
    path: str
    name: str | None = None
    split: str = "train"
    field: str = "text"
    revision: str | None = None
    streaming: bool = False
    max_rows: NonNegative = 0  # 0: everything


class BytesTokenizer(Section):
    kind: Literal["bytes"]


class BpeTokenizer(Section):
    """A byte-level BPE that `prepare` trains on the source."""

    kind: Literal["bpe"]
    vocab_size: Annotated[int, Field(ge=260, le=200_000)]


class PretrainedTokenizer(Section):
    """A tokenizer of transformers: a name on the Hub or a local folder."""

    kind: Literal["pretrained"]
    path: str
    revision: str | None = None


class Data(Section):
    source: Annotated[TextSource | DatasetSource, Field(discriminator="kind")]
    tokenizer: Annotated[BytesTokenizer | BpeTokenizer | PretrainedTokenizer, Field(discriminator="kind")]
    sequence_length: Annotated[int, Field(ge=8, le=1_048_576)]
    held_out_fraction: Annotated[float, Field(gt=0, lt=0.5)] = 0.01
    shard_sequences: Positive = 2048
    license: str = "unknown"
    mirrors: list[Annotated[str, Field(pattern=r"^(https?|hf|s3|gs)://.")]] = []  # of the prepared folder


class Train(Section):
    """The inner optimizer: AdamW."""

    batch_sequences: Positive  # per optimizer step of one peer
    micro_batch_sequences: NonNegative = 0  # 0: as many as the device's memory holds
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    warmup_tokens: NonNegative = 0
    decay_tokens: NonNegative = 0  # 0: run.tokens, or constant after the warm-up when that is 0 too
    minimum_learning_rate_fraction: Fraction = 0.1
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    clip_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    reset_momentum: bool | None = None  # of AdamW after every outer step; None: if a peer takes several steps a round
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"


class Round(Section):
    target_tokens: Positive  # the round closes when the swarm has trained on so many
    inner_steps: NonNegative = 0  # at most so many optimizer steps per peer and round; 0: no limit
    max_seconds: Seconds = 600.0  # the round closes after this time in any case
    overlap: bool = True  # go on training while the round is exchanged


class Codec(Section):
    name: str = "lowbit2"  # the rung of the run: what every peer uses whose uplink hides it
    down_to: Annotated[str, Field(validate_default=True)] = ""  # the sparsest that a peer may go down to; default: name
    feedback_decay: Fraction = 1.0  # beta of the error feedback
    keep_unsent: Fraction = 0.5  # of the error feedback, in the peer's own weights; default: see RunSpec

    @field_validator("name")
    @classmethod
    def _known(cls, value: str) -> str:
        if not CODEC_PATTERN.match(value):
            raise ValueError(
                f"unknown codec {value!r}; use fp16, dense8, dense4, lowbit2, ternary, sign, "
                "sparse/8, sparse/16, sparse/32 or sparse/64"
            )
        return value

    @field_validator("down_to")
    @classmethod
    def _below(cls, value: str, info: ValidationInfo) -> str:
        name = info.data.get("name")
        if not value or name is None:  # a wrong name is said where it stands
            return name or value
        if not rungs_between(name, cls._known(value)):
            raise ValueError(f"{value!r} sends more than codec.name, {name!r}; the ladder goes down {', '.join(RUNGS)}")
        return value

    @property
    def ladder(self) -> tuple[str, ...]:
        """The codecs that a contribution may have, the run's own first."""
        return rungs_between(self.name, self.down_to)


class Outer(Section):
    """The outer step: theta <- theta - learning_rate * (mean pseudo-gradient, with momentum); defaults: see RunSpec."""

    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    nesterov: bool = True


class Snapshots(Section):
    every_rounds: Positive = 10  # the whole state is kept as chunks: late joiners start from there
    keep: Annotated[int, Field(ge=2)] = 2


class Evaluation(Section):
    every_rounds: Positive = 1
    sequences: Positive = 64
    prompts: list[str] = []
    sample_tokens: NonNegative = 64


class Timing(Section):
    heartbeat_seconds: Seconds = 1.0
    silence_seconds: Seconds = 15.0  # a peer not heard of for so long is taken for gone
    lease_seconds: Seconds = 300.0
    first_deadline_seconds: Seconds = 30.0  # of a round's close, until there are enough rounds to learn from
    deadline_mads: Annotated[float, Field(gt=0, le=100)] = 6.0  # deadline = median + this many MADs of recent rounds


class RunSpec(Section):
    run: Run
    model: Model
    data: Data
    train: Train
    round: Round
    codec: Codec = Codec()
    outer: Outer = Outer()
    snapshots: Snapshots = Snapshots()
    evaluation: Evaluation = Evaluation()
    timing: Timing = Timing()

    @model_validator(mode="before")
    @classmethod
    def _suit_the_codec(cls, raw: Any) -> Any:
        """What is left out of `codec` and `outer` is what suits the codec (configs.rungs), resolved here, once.

        Learning rate and momentum of the outer step go together: who sets one of them gets no other's partner.
        """
        if not isinstance(raw, dict):
            return raw
        codec, outer = raw.get("codec", {}), raw.get("outer", {})
        if not (isinstance(codec, dict) and isinstance(outer, dict)):
            return raw
        rung = RUNGS.get(str(codec.get("name", Codec.model_fields["name"].default)))
        if rung is None:
            return raw
        if "learning_rate" not in outer and "momentum" not in outer:
            outer = {**outer, "learning_rate": rung.learning_rate, "momentum": rung.momentum}
        return {**raw, "codec": {"keep_unsent": rung.keep_unsent, **codec}, "outer": outer}

    @model_validator(mode="after")
    def _consistent(self) -> RunSpec:
        if self.train.micro_batch_sequences > self.train.batch_sequences:
            raise ValueError(
                "train.micro_batch_sequences is larger than train.batch_sequences; lower it, or set it to 0 (automatic)"
            )
        if self.timing.silence_seconds < 3 * self.timing.heartbeat_seconds:
            raise ValueError("timing.silence_seconds must be at least three heartbeats")
        return self

    @property
    def batch_tokens(self) -> int:
        """Tokens of one optimizer step of one peer."""
        return self.train.batch_sequences * self.data.sequence_length

    @property
    def resets_momentum(self) -> bool:
        """Whether AdamW's first moment starts anew after an outer step.

        It points where this peer alone was going. With several steps a round it is soon rebuilt, in the direction of
        the merged weights; with few there would never be any.
        """
        if self.train.reset_momentum is not None:
            return self.train.reset_momentum
        return self.round.inner_steps == 0 or self.round.inner_steps >= 8

    def canonical_json(self) -> bytes:
        """The one byte string that means this spec: sorted keys, no spaces."""
        return canonical_json(self.model_dump(mode="json"))

    @classmethod
    def from_json(cls, text: bytes) -> RunSpec:
        return cls.model_validate_json(text)


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spaces, UTF-8: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
