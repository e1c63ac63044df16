"""Next-token prediction with any causal language model of transformers.

The run spec names a `model_type` and keyword arguments of its config class; both are checked here, because transformers
itself keeps unknown keywords silently and lets some impossible shapes fail only in the middle of a forward pass.
The weights are always fp32 and randomly initialised: the same spec gives the same bits on one machine, but not on two
(random number kernels and library versions differ), so a run's first weights come from the one who opened it.
"""

from __future__ import annotations

import difflib
import inspect
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    LogitsProcessorList,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from configs.schema import RunSpec
from peer.errors import ConfigError

# What the run, the tokenizer or the trainer decides; a spec that sets them too could only contradict.
DECIDED_ELSEWHERE = {
    "vocab_size": "the tokenizer decides it",
    "bos_token_id": "the tokenizer decides it",
    "eos_token_id": "the tokenizer decides it",
    "pad_token_id": "the tokenizer decides it",
    "model_type": "write it as model.architecture",
    "architectures": "write it as model.architecture",
    "use_cache": "training does not use it",
    "dtype": "train.precision decides it",
    "torch_dtype": "train.precision decides it",
    "attn_implementation": "it is chosen for the device",
    "is_encoder_decoder": "only decoder models are trained here",
    "is_decoder": "only decoder models are trained here",
    "auto_map": "models with code of their own are not loaded",
    "quantization_config": "training needs full-precision weights",
}
# Written into a structure of their own by some versions of transformers, but accepted as plain keywords by all.
ACCEPTED_BESIDE_FIELDS = frozenset({"rope_theta", "partial_rotary_factor"})
IGNORED = -100  # a target that cross_entropy leaves out
SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)

_initialisation = threading.Lock()  # the initialisers of transformers draw from torch's one global generator


class LanguageModel:
    """The task "language_model"."""

    def build_model(
        self, spec: RunSpec, vocab_size: int, *, bos_token_id: int | None = None, eos_token_id: int | None = None
    ) -> PreTrainedModel:
        """A causal language model in fp32 on the CPU, initialised from `spec.run.seed`.

        The global generator is left as it was.

        Raises:
            ConfigError: unknown architecture, unknown key or impossible value of `[model.config]`.
        """
        config = model_config(spec, vocab_size, bos_token_id=bos_token_id, eos_token_id=eos_token_id)
        with _initialisation, torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed: that would reseed the accelerators' generators too.
            torch.default_generator.manual_seed(spec.run.seed)
            try:
                model: PreTrainedModel = AutoModelForCausalLM.from_config(config).float()
                _probe(model)
            except (
                AssertionError,
                AttributeError,
                LookupError,
                NotImplementedError,
                RuntimeError,
                TypeError,
                ValueError,
                ZeroDivisionError,
            ) as error:
                raise ConfigError(
                    f"[model.config]: {spec.model.architecture} cannot be built from these values: {_one_line(error)}"
                ) from error
        return model

    def loss(self, model: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
        """Mean nats per predicted token: tokens 1..T-1 of each row from tokens 0..T-2.

        `rows`: LongTensor [rows, T]. The logits are raised to fp32 for the softmax, whatever the forward pass ran in.
        """
        logits = model(input_ids=rows, use_cache=False).logits
        # The last position predicts nothing. It is marked, not cut off: that would copy the logits, the largest tensor.
        targets = functional.pad(rows[:, 1:], (0, 1), value=IGNORED)
        return functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]).float(), targets.reshape(-1), ignore_index=IGNORED
        )

    def generate(
        self,
        model: torch.nn.Module,
        prompt: Sequence[int],
        tokens: int,
        *,
        seed: int,
        temperature: float = 0.8,
        top_k: int = 50,
    ) -> list[int]:
        """At most `tokens` ids that continue `prompt`; ends before `eos`.

        Top-k sampling (0: of all), or greedy when `temperature` is 0.
        The oldest part of a prompt that is too long for the model is dropped. An empty prompt starts from `bos`.
        """
        assert isinstance(model, PreTrainedModel)
        config = model.config
        if not prompt:
            start = config.bos_token_id if config.bos_token_id is not None else config.eos_token_id
            prompt = [start if isinstance(start, int) else 0]
        limit = getattr(config, "max_position_embeddings", None) or len(prompt) + tokens
        tokens = min(tokens, limit - 1)
        if tokens <= 0:
            return []
        ids = torch.tensor([list(prompt)[-(limit - tokens) :]], dtype=torch.long, device=model.device)
        processors = LogitsProcessorList([SeededSampling(seed, temperature, top_k)] if temperature > 0 else [])
        with torch.no_grad():
            output = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                num_beams=1,
                max_new_tokens=tokens,
                use_cache=True,
                eos_token_id=config.eos_token_id,
                pad_token_id=config.eos_token_id,
                logits_processor=processors,
            )
        generated: list[int] = output[0, ids.shape[1] :].tolist()
        if config.eos_token_id in generated:
            generated = generated[: generated.index(config.eos_token_id)]
        return generated


class SeededSampling:
    """Turns greedy search into sampling with a generator of its own.

    argmax(logits / temperature + Gumbel noise) is an exact draw from the softmax (the Gumbel-max trick), so the model's
    own `generate` works for every architecture without touching the global generator.
    """

    def __init__(self, seed: int, temperature: float, top_k: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.temperature = temperature
        self.top_k = top_k

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        logits = scores.float().cpu() / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            threshold = logits.topk(self.top_k).values[..., -1:]
            logits = logits.masked_fill(logits < threshold, -torch.inf)
        uniform = torch.rand(logits.shape, generator=self.generator).clamp_(min=torch.finfo(torch.float32).tiny)
        return (logits - torch.log(-torch.log(uniform))).to(scores.device)


def model_config(
    spec: RunSpec, vocab_size: int, *, bos_token_id: int | None = None, eos_token_id: int | None = None
) -> PretrainedConfig:
    """The checked transformers config of a run; raises ConfigError."""
    architecture = spec.model.architecture
    if architecture not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        near = difflib.get_close_matches(architecture, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "for example 'llama' or 'gpt2'"
        raise ConfigError(f"model.architecture: transformers has no causal language model {architecture!r}; {hint}")
    config_class = CONFIG_MAPPING[architecture]
    try:
        defaults = config_class()
    except Exception as error:  # huggingface_hub's validation errors share no base class across versions
        raise ConfigError(f"model.architecture: {architecture!r} cannot stand alone: {_one_line(error)}") from error
    values = {key: _checked(architecture, defaults, key, value) for key, value in spec.model.config.items()}
    _check_shapes(defaults, values, spec.data.sequence_length)
    if hasattr(defaults, "max_position_embeddings") and "max_position_embeddings" not in values:
        values.setdefault(_name(defaults, "max_position_embeddings"), spec.data.sequence_length)
    try:
        config: PretrainedConfig = config_class(
            **values,
            vocab_size=vocab_size,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            pad_token_id=None,
            use_cache=False,
        )
    except Exception as error:  # as above
        raise ConfigError(f"[model.config]: {architecture} refuses these values: {_one_line(error)}") from error
    return config


def _checked(architecture: str, defaults: PretrainedConfig, key: str, value: object) -> object:
    """The value, as the kind of number that the config class wants; raises ConfigError."""
    if key in DECIDED_ELSEWHERE:
        raise ConfigError(f"model.config.{key}: remove it, {DECIDED_ELSEWHERE[key]}")
    fields = set(defaults.to_dict()) | set(inspect.signature(type(defaults).__init__).parameters) - {"self", "kwargs"}
    known = fields | set(defaults.attribute_map) | ACCEPTED_BESIDE_FIELDS
    if key not in known or key.startswith("_"):
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"see {type(defaults).__name__} of transformers"
        raise ConfigError(f"model.config.{key}: unknown to architecture {architecture!r}; {hint}")
    default = getattr(defaults, key, None)
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if isinstance(default, bool | int | float | str) and type(value) is not type(default):
        kind = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[type(default)]
        raise ConfigError(f"model.config.{key}: {value!r} is not {kind} (the default is {default!r})")
    return value


def _check_shapes(defaults: PretrainedConfig, values: dict[str, Any], sequence_length: int) -> None:
    """The sizes that transformers lets pass into a model which cannot run, or which nobody meant."""

    def given(key: str) -> Any:
        return values.get(key, values.get(_name(defaults, key)))

    for key in SIZES:
        if isinstance(given(key), int) and given(key) <= 0:
            raise ConfigError(f"model.config.{_name(defaults, key)}: must be positive, not {given(key)}")
    hidden = given("hidden_size") or getattr(defaults, "hidden_size", None)
    heads = given("num_attention_heads") or getattr(defaults, "num_attention_heads", None)
    groups = given("num_key_value_heads")
    if isinstance(hidden, int) and isinstance(heads, int) and hidden % heads and not _free_head_width(defaults, given):
        raise ConfigError(
            f"model.config.{_name(defaults, 'hidden_size')}: {hidden} is not divisible by"
            f" {_name(defaults, 'num_attention_heads')} {heads}"
        )
    if isinstance(heads, int) and isinstance(groups, int) and heads % groups:
        raise ConfigError(
            f"model.config.{_name(defaults, 'num_key_value_heads')}: {_name(defaults, 'num_attention_heads')} {heads}"
            f" is not divisible by {groups}"
        )
    positions = given("max_position_embeddings")
    if isinstance(positions, int) and positions < sequence_length:
        raise ConfigError(
            f"model.config.{_name(defaults, 'max_position_embeddings')}: {positions} is less than data.sequence_length"
            f" {sequence_length}; raise it, or leave it out"
        )


def _free_head_width(defaults: PretrainedConfig, given: Callable[[str], Any]) -> bool:
    """Whether the width of a head is set by itself (head_dim), so that nothing has to divide the hidden size."""
    width = getattr(defaults, "head_dim", None)
    return bool(given("head_dim") or (width and width * defaults.num_attention_heads != defaults.hidden_size))


def _probe(model: PreTrainedModel) -> None:
    """A forward pass before anybody has joined the run: two rows of eight tokens that differ in the last.

    Finds shapes that fit no forward pass, and architectures whose predictions see later tokens (transformers lists
    encoders such as bert as causal models too): their loss falls to nothing, and they learn nothing.
    """
    rows = torch.zeros(2, 8, dtype=torch.long)
    rows[1, -1] = 1
    model.eval()
    with torch.no_grad():
        first, second = model(input_ids=rows, use_cache=False).logits[:, :-1]
    model.train()
    if not torch.allclose(first, second, atol=1e-4):
        raise ConfigError(
            f"model.architecture: in {model.config.model_type!r} a prediction sees the tokens after it; choose a"
            " decoder, for example 'llama'"
        )


def _name(config: PretrainedConfig, key: str) -> str:
    """The key as this architecture spells it (gpt2: hidden_size is n_embd)."""
    return str(config.attribute_map.get(key, key))


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
