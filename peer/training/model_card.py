"""The README of an exported checkpoint: what it is, what it was trained on and by whom.

Names come from the peers themselves, so nothing they write may turn into markup.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from configs.schema import RunSpec

MAX_CONTRIBUTORS = 200  # listed by name; the log has all


@dataclass(frozen=True)
class Contributor:
    name: str  # as the peer signed it, or its id
    tokens: int  # accepted


@dataclass(frozen=True)
class Provenance:
    """What the log says about a checkpoint."""

    run_id: str
    round: int
    tokens: int  # accepted in all rounds up to this one
    state_digest: str
    data: str  # the source, as the run names it
    data_license: str
    contributors: Sequence[Contributor] = ()
    record_hash: str = ""
    eval_loss: float | None = None  # mean nats per token on the held-out rows


def render(spec: RunSpec, provenance: Provenance, *, parameters: int, vocab_size: int) -> str:
    """The model card as Markdown with the front matter of the Hugging Face Hub."""
    name = _plain(spec.run.name)
    facts = [
        ("Run", f"{name} (`{_plain(provenance.run_id)}`)"),
        ("Round", f"{provenance.round:,}"),
        ("Tokens", f"{provenance.tokens:,}"),
        ("Parameters", f"{parameters:,}"),
        ("Architecture", _plain(spec.model.architecture)),
        ("Vocabulary", f"{vocab_size:,}"),
        ("Sequence length", f"{spec.data.sequence_length:,}"),
        ("Held-out loss", _loss(provenance.eval_loss)),
        ("Data", _plain(provenance.data)),
        ("License of the data", _plain(provenance.data_license)),
        ("Started from", _plain(spec.model.initial_weights) or "random weights"),
        ("State digest", f"`{_plain(provenance.state_digest)}`"),
    ]
    front_matter = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        f"model_name: {json.dumps(spec.run.name)}",  # a JSON string is a YAML string
        "tags:",
        "- commonweights",
        "- decentralized-training",
        "---",
    ]
    body = [
        f"# {name}",
        "",
        *([_plain(spec.run.description), ""] if spec.run.description else []),
        "Trained in common by volunteers with Commonweights. The run's signed log"
        " says which peer trained on which samples in which round; replaying it gives these weights, to the last bit.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in facts),
        "",
        "## Use",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")',
        'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")',
        'inputs = tokenizer("Once", return_tensors="pt")',
        "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0]))",
        "```",
        "",
        "A base model: it continues text, and was neither instructed nor filtered.",
        "",
        "## Contributors",
        "",
        *_contributors(provenance),
    ]
    return "\n".join([*front_matter, "", *body, ""])


def _contributors(provenance: Provenance) -> list[str]:
    ranked = sorted(provenance.contributors, key=lambda contributor: (-contributor.tokens, contributor.name))
    if not ranked:
        return ["None yet: these are the run's first weights."]
    total = max(1, sum(contributor.tokens for contributor in ranked))
    lines = ["| | tokens | share |", "|---|---:|---:|"]
    lines += [
        f"| {_plain(contributor.name)} | {contributor.tokens:,} | {contributor.tokens / total:.1%} |"
        for contributor in ranked[:MAX_CONTRIBUTORS]
    ]
    if len(ranked) > MAX_CONTRIBUTORS:
        lines += ["", f"and {len(ranked) - MAX_CONTRIBUTORS:,} more."]
    return lines


def _loss(nats: float | None) -> str:
    if nats is None or not math.isfinite(nats):
        return "not measured"
    return f"{nats:.4f} nats per token" + (f" (perplexity {math.exp(nats):.2f})" if nats < 100 else "")


def _plain(text: str) -> str:
    """One line that Markdown and HTML leave as it is."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    for special in "\\`*_[]<>|#~!":
        line = line.replace(special, {"<": "&lt;", ">": "&gt;"}.get(special, "\\" + special))
    return line
