"""The first weights of a run, when they are not random: somebody's model, or a checkpoint of another run.

Only the one who opens the run reads them; peers get them like any other state, and the genesis record names their
digest. Whatever would start the run from something else than the model that was meant is refused: another value in the
config, a tensor too few or too many, another shape.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from coordinator.hub import explained
from peer.errors import ConfigError

KEY = "model.initial_weights"
# What may differ: who wrote the file and with what, and what training or the tokenizer decides.
BESIDE_THE_WEIGHTS = frozenset(
    {
        "_name_or_path", "architectures", "attn_implementation", "auto_map", "bos_token_id", "dtype", "eos_token_id",
        "id2label", "label2id", "max_position_embeddings", "n_positions", "pad_token_id", "task_specific_params",
        "torch_dtype", "transformers_version", "use_cache", "vocab_size",
    }
)  # fmt: skip


def load_into(model: torch.nn.Module, source: str) -> None:
    """Set the weights of `model`, as the task built it, to those of `source` (a folder or a name on the Hub).

    Rows that the source's vocabulary has beyond the run's tokenizer are padding, and left out.

    Raises:
        ConfigError: the source is another model than the run's.
        DataError, UnreachableError: it cannot be loaded.
    """
    assert isinstance(model, PreTrainedModel)
    with explained(KEY, source, "a local folder"):
        found = AutoConfig.from_pretrained(source, trust_remote_code=False)
    if reason := difference(model.config, found):
        raise ConfigError(f"{KEY}: {source}: {reason}")
    with explained(KEY, source, "a local folder"):
        other, report = AutoModelForCausalLM.from_pretrained(
            source, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    if report["missing_keys"] or report["mismatched_keys"]:
        raise ConfigError(f"{KEY}: {source} lacks {sorted(report['missing_keys'])[:1]} of the model in its config")
    rows = model.config.vocab_size, other.config.vocab_size
    theirs = dict(other.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_fitting(name, theirs.get(name), parameter, rows, source))


def difference(ours: PretrainedConfig, theirs: PretrainedConfig) -> str:
    """What of the run's config contradicts the source's, with the cure; empty when nothing does."""
    if ours.model_type != theirs.model_type:
        return f'it is a {theirs.model_type}; write model.architecture = "{theirs.model_type}"'
    mine, found = _flat(ours.to_dict()), _flat(theirs.to_dict())
    for key in sorted(set(mine) & set(found) - BESIDE_THE_WEIGHTS):
        if mine[key] != found[key]:
            return f"{key} is {_toml(found[key])} there and {_toml(mine[key])} here; write it into [model.config]"
    return ""


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """With what some versions of transformers write into tables of their own (rope_theta) beside the rest."""
    tables = [value for key, value in config.items() if isinstance(value, dict) and key not in BESIDE_THE_WEIGHTS]
    inner = {key: value for table in tables for key, value in table.items()}
    return {**inner, **{key: value for key, value in config.items() if not isinstance(value, dict)}}


def _fitting(
    name: str, theirs: torch.Tensor | None, ours: torch.Tensor, rows: tuple[int, int], source: str
) -> torch.Tensor:
    if theirs is None:
        raise ConfigError(f"{KEY}: {source} has no {name}")
    if theirs.shape[0] == rows[1] > rows[0] == ours.shape[0]:
        theirs = theirs[: rows[0]]
    if theirs.shape != ours.shape:
        raise ConfigError(
            f"{KEY}: {name} is {list(theirs.shape)} in {source} and {list(ours.shape)} here; use its own tokenizer"
            f' (data.tokenizer: kind = "pretrained", path = "{source}") and its sizes in [model.config]'
        )
    return theirs


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)
