"""The run specs in configs/ are what they say."""

from __future__ import annotations

from pathlib import Path

from configs import load

CONFIGS = Path(__file__).parent.parent / "configs"


def test_the_volunteer_model_has_150_million_parameters() -> None:
    """configs/volunteer.toml is what its first line says: 151 million parameters with its tokenizer's vocabulary."""
    import torch
    from transformers import AutoModelForCausalLM

    from peer.training.tasks.language_model import model_config

    run = load(CONFIGS / "volunteer.toml")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(model_config(run, 49_152))
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6) == 151


def test_demo_rounds_need_the_whole_swarm_but_one_peer_alone_is_repeatable() -> None:
    """In configs/demo.toml three equal peers close a round by its tokens, one alone by its steps."""
    run = load(CONFIGS / "demo.toml")
    assert (
        3 * run.round.inner_steps * run.batch_tokens
        > run.round.target_tokens
        > run.round.inner_steps * run.batch_tokens
    )
    assert run.round.target_tokens % (3 * run.batch_tokens) == 0
    assert not run.round.overlap
    assert run.train.decay_tokens == run.run.rounds * run.round.target_tokens
