"""The trainer with real small models on the CPU."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.schema import RunSpec
from peer.errors import CommonweightsError, ConfigError
from peer.training import fit
from peer.training.tasks import load_task
from peer.training.trainer import FlatParameters, Trainer, _recompute_activations
from tests.small_models import END_OF_TEXT, LLAMA, VOCAB_SIZE, small_model, small_spec, small_trainer, text_rows

GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2}
DROPOUT = {**GPT2, "resid_pdrop": 0.3}
MAMBA = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train(trainer: Trainer, steps: int, rows: int = 8) -> list[float]:
    return [trainer.step(text_rows(rows, offset=rows * step), step * rows * 32).loss for step in range(steps)]


# Steps


def test_loss_falls_on_text() -> None:
    """Training on text brings the loss from that of guessing bytes blindly to well below it."""
    trainer = small_trainer()
    losses = train(trainer, 60)
    assert losses[0] == pytest.approx(math.log(VOCAB_SIZE), abs=0.3)
    assert np.mean(losses[-10:]) < losses[0] - 1.5


def test_micro_batches_add_up() -> None:
    """The gradient of a batch worked off in micro-batches, also uneven ones, is the whole batch's gradient."""
    rows = text_rows(7)
    norms, losses, weights = [], [], []
    for micro_batch in (7, 3, 2, 1):
        trainer = small_trainer(small_spec(micro_batch_sequences=micro_batch, learning_rate=1e-3))
        result = trainer.step(rows, 0)
        norms.append(result.gradient_norm)
        losses.append(result.loss)
        weights.append(trainer.parameters.read())
    assert norms == pytest.approx([norms[0]] * 4, rel=1e-4)
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-5)
    for other in weights[1:]:
        # Adam's first step is +-learning_rate; where the gradient is almost 0 rounding may decide the sign.
        assert (other - weights[0]).abs().median() < 1e-6


def test_loss_is_that_of_transformers() -> None:
    """The loss is transformers' own causal language model loss: mean nats per predicted token."""
    spec = small_spec()
    model: Any = small_model(spec)
    rows = torch.from_numpy(text_rows(4).astype(np.int64))
    reference = model(input_ids=rows, labels=rows).loss.item()
    assert load_task("language_model").loss(model, rows).item() == pytest.approx(reference, rel=1e-5)


def test_step_reports_what_it_did() -> None:
    """A step says its tokens (all of the rows), the scheduled learning rate and the norm before clipping."""
    trainer = small_trainer(small_spec(warmup_tokens=8 * 32 * 4, clip_norm=1e-3))
    result = trainer.step(text_rows(8), 8 * 32)
    assert (result.tokens, result.skipped) == (8 * 32, False)
    assert result.learning_rate == pytest.approx(0.01 * 2 / 4)
    assert result.gradient_norm > 1e-3
    assert result.seconds > 0


def test_only_matrices_decay() -> None:
    """Weight decay shrinks matrices and embeddings, and leaves norms and biases alone."""
    trainer = small_trainer(small_spec("gpt2", GPT2, weight_decay=0.5))
    decays = {id(p): group["weight_decay"] for group in trainer._optimizer.param_groups for p in group["params"]}
    for name, parameter in trainer.model.named_parameters():
        assert decays[id(parameter)] == (0.5 if parameter.ndim >= 2 else 0.0), name


def test_same_calls_same_bits() -> None:
    """On a CPU with equal thread counts two trainers that do the same hold the same bits."""
    runs = []
    for _ in range(2):
        trainer = small_trainer()
        losses = train(trainer, 4)
        runs.append((losses, trainer.parameters.read()))
    assert runs[0][0] == runs[1][0]
    assert torch.equal(runs[0][1], runs[1][1])


def test_dropout_is_reproducible_and_private() -> None:
    """Dropout masks follow from seed and token count alone, and the global generator does not notice."""
    results = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        expected = torch.rand(3)
        torch.manual_seed(global_seed)
        trainer = small_trainer(small_spec("gpt2", DROPOUT))
        train(trainer, 3)
        assert torch.equal(torch.rand(3), expected)
        results.append(trainer.parameters.read())
    assert torch.equal(results[0], results[1])


def test_dropout_is_off_in_evaluation() -> None:
    """Evaluation is without dropout, changes nothing, and training goes on with it."""
    trainer = small_trainer(small_spec("gpt2", DROPOUT))
    before = trainer.parameters.read()
    assert trainer.evaluate([text_rows(8)]) == trainer.evaluate([text_rows(8)])
    assert torch.equal(trainer.parameters.read(), before)
    assert trainer.model.training


# Skipped steps


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_loss_skips_the_step(bad: float, caplog: pytest.LogCaptureFixture) -> None:
    """A step whose loss is not finite changes neither weights nor moments, is counted and said; the next one works."""
    trainer = small_trainer()
    train(trainer, 2)
    before = trainer.parameters.read()
    original = trainer.task.loss
    wrap_loss(trainer, lambda model, rows: original(model, rows) * bad)
    with caplog.at_level(logging.WARNING):
        result = trainer.step(text_rows(8), 0)
    assert result.skipped and result.tokens == 8 * 32
    assert trainer.skipped_steps == 1 and "step skipped" in caplog.text
    assert torch.equal(trainer.parameters.read(), before)
    wrap_loss(trainer, original)
    assert not trainer.step(text_rows(8), 0).skipped
    assert torch.isfinite(trainer.parameters.read()).all()


# Memory


class SmallMemory:
    """A loss that runs out of memory above `rows` rows, in the forward or the backward pass."""

    def __init__(self, trainer: Trainer, rows: int, *, backward: bool = False) -> None:
        self.rows, self.seen, self.backward = rows, [0], backward
        self.original = trainer.task.loss

    def __call__(self, model: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(rows))
        loss = self.original(model, rows)
        if len(rows) > self.rows:
            if not self.backward:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            loss.register_hook(self.fail)
        return loss

    def fail(self, gradient: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def wrap_loss(trainer: Trainer, loss: Callable[[torch.nn.Module, torch.Tensor], torch.Tensor]) -> None:
    task: Any = trainer.task
    task.loss = loss


@pytest.mark.parametrize("backward", [False, True])
def test_out_of_memory_halves_the_micro_batch(backward: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Running out of memory halves the micro-batch and repeats the step: the result is that of the smaller one."""
    reference = small_trainer(small_spec(micro_batch_sequences=2))
    reference.step(text_rows(8), 0)
    trainer = small_trainer()
    wrap_loss(trainer, SmallMemory(trainer, 2, backward=backward))
    with caplog.at_level(logging.WARNING):
        result = trainer.step(text_rows(8), 0)
    assert not result.skipped and trainer.micro_batch_sequences == 2
    assert "micro-batches of 4" in caplog.text and "micro-batches of 2" in caplog.text
    assert torch.equal(trainer.parameters.read(), reference.parameters.read())


def test_out_of_memory_in_evaluation() -> None:
    """Evaluation shrinks the micro-batch in the same way, and its result does not depend on it."""
    trainer = small_trainer()
    expected = trainer.evaluate([text_rows(8)])
    wrap_loss(trainer, SmallMemory(trainer, 1))
    assert trainer.evaluate([text_rows(8)]) == pytest.approx(expected, rel=1e-5)


def test_last_resort_is_gradient_checkpointing(caplog: pytest.LogCaptureFixture) -> None:
    """When one row is too large, activations are recomputed; when that is too large as well, a person is told."""
    trainer = small_trainer()
    loss = SmallMemory(trainer, 0)
    wrap_loss(trainer, loss)
    with pytest.raises(CommonweightsError, match="cannot hold one sequence of 32 tokens"):
        trainer.step(text_rows(8), 0)
    assert "gradient checkpointing" in caplog.text
    loss.rows = 8
    assert math.isfinite(trainer.step(text_rows(8), 0).loss)


def test_checkpointed_gradients_are_the_same() -> None:
    """Gradient checkpointing costs time, not accuracy."""
    plain, checkpointed = small_trainer(), small_trainer()
    _recompute_activations(checkpointed.model)
    assert plain.step(text_rows(8), 0).gradient_norm == checkpointed.step(text_rows(8), 0).gradient_norm


def test_micro_batch_is_measured_within_memory() -> None:
    """Measuring never takes a micro-batch that ran out of memory, and leaves no gradient behind."""
    trainer = small_trainer()
    loss = SmallMemory(trainer, 4)
    wrap_loss(trainer, loss)
    measured = trainer._measure_micro_batch(trainer._place(text_rows(8)))
    assert measured in (1, 2, 4) and max(loss.seen) == 8
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_what_fits_is_kept_for_the_next_start(tmp_path: Path) -> None:
    """The micro-batch that was measured, and the smaller one after running out of memory in a step, are told to whoever
    keeps them; under other circumstances nothing is recalled."""
    trainer = small_trainer()
    trainer.on_fit = lambda sequences: fit.keep(tmp_path, "this GPU", sequences)
    trainer.micro_batch_sequences = 0
    wrap_loss(trainer, SmallMemory(trainer, 4))
    trainer.step(text_rows(8), 0)
    kept = fit.recall(tmp_path, "this GPU")
    assert 1 <= kept == trainer.micro_batch_sequences <= 4
    trainer.micro_batch_sequences = 4
    wrap_loss(trainer, SmallMemory(trainer, 2))
    trainer.step(text_rows(8), 0)
    assert fit.recall(tmp_path, "this GPU") == 2
    assert fit.recall(tmp_path, "another GPU") == fit.recall(tmp_path / "none", "this GPU") == 0


def test_measuring_starts_from_a_full_batch() -> None:
    """A first batch that is a small rest does not decide the micro-batch of all later ones."""
    trainer = small_trainer()
    loss = SmallMemory(trainer, 100)
    wrap_loss(trainer, loss)
    trainer._measure_micro_batch(trainer._place(text_rows(3)))
    assert max(loss.seen) == 8


def test_model_larger_than_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """When weights and optimizer alone are too large, a person is told how much they need."""

    def full(optimizer: torch.optim.Optimizer) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("peer.training.trainer.allocate_state", full)
    with pytest.raises(CommonweightsError, match="this model needs 0.0 GB on cpu"):
        small_trainer().step(text_rows(8), 0)


def test_other_errors_are_not_taken_for_memory() -> None:
    """An error that is not about memory is raised at once, unchanged."""
    trainer = small_trainer()

    def broken(model: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("device-side assert triggered")

    wrap_loss(trainer, broken)
    with pytest.raises(RuntimeError, match="device-side assert"):
        trainer.step(text_rows(8), 0)


def test_cpu_micro_batch_follows_from_the_spec() -> None:
    """On a CPU the automatic micro-batch is a function of the spec alone: equal machines do equal arithmetic."""
    assert small_trainer(small_spec(sequence_length=32)).micro_batch_sequences == 8
    assert small_trainer(small_spec(sequence_length=1024)).micro_batch_sequences == 2
    assert small_trainer(small_spec(sequence_length=4096)).micro_batch_sequences == 1


# The flat vector


@pytest.mark.parametrize(
    ("architecture", "model"),
    [("llama", LLAMA), ("llama", {**LLAMA, "tie_word_embeddings": True}), ("gpt2", GPT2), ("mamba", MAMBA)],
)
def test_flat_vector_round_trip(architecture: str, model: dict[str, Any]) -> None:
    """Reading and writing the flat vector is lossless, in `named_parameters()` order, with tied weights once."""
    built = small_model(small_spec(architecture, model))
    flat = FlatParameters(built)
    assert flat.count == sum(parameter.numel() for _, parameter in built.named_parameters())
    vector = flat.read()
    expected = torch.cat([parameter.detach().reshape(-1) for _, parameter in built.named_parameters()])
    assert torch.equal(vector, expected)
    other = torch.randn(flat.count, generator=torch.Generator().manual_seed(1))
    identities = [id(parameter) for parameter in built.parameters()]
    flat.write(other)
    assert torch.equal(flat.read(torch.empty(flat.count)), other)
    assert identities == [id(parameter) for parameter in built.parameters()]


def test_weights_are_changed_in_their_places() -> None:
    """change() hands out every parameter with its place in the flat vector, and takes the new weights, once each."""
    flat = FlatParameters(small_model(small_spec()))
    before = flat.read()
    flat.change(lambda weights, part: weights.mul_(2).add_(before[part]))
    assert torch.equal(flat.read(), 3 * before)


def test_other_architectures_train() -> None:
    """What transformers calls a causal language model trains, with its own names for the same settings."""
    for architecture, model in [("gpt2", GPT2), ("mamba", MAMBA)]:
        trainer = small_trainer(small_spec(architecture, model))
        losses = train(trainer, 12)
        assert losses[-1] < losses[0] - 0.5, architecture


def test_tied_weights_stay_tied() -> None:
    """After writing and training, output and input embedding are still one tensor."""
    trainer = small_trainer(small_spec(model={**LLAMA, "tie_word_embeddings": True}))
    trainer.parameters.write(trainer.parameters.read() * 0.5)
    train(trainer, 2)
    model: Any = trainer.model
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_moments_survive_rewritten_weights() -> None:
    """An outer step between two inner steps moves the weights, and AdamW goes on with its moments and step count."""
    trainer = small_trainer()
    train(trainer, 3)
    before = [state["exp_avg"].clone() for state in trainer._optimizer.state.values()]
    trainer.parameters.write(trainer.parameters.read() * 0.9)
    after = [state["exp_avg"] for state in trainer._optimizer.state.values()]
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))
    train(trainer, 1)
    assert {float(state["step"]) for state in trainer._optimizer.state.values()} == {4.0}


# The optimizer's file


def test_optimizer_state_round_trip(tmp_path: Path) -> None:
    """A trainer that takes up weights and optimizer state goes on with the same bits."""
    first = small_trainer()
    train(first, 3)
    first.save_optimizer(tmp_path / "inner" / "adamw.safetensors")
    second = small_trainer(small_spec(seed=9))
    second.parameters.write(first.parameters.read())
    assert second.load_optimizer(tmp_path / "inner" / "adamw.safetensors")
    assert train(first, 2) == train(second, 2)
    assert torch.equal(first.parameters.read(), second.parameters.read())


def test_optimizer_state_that_does_not_fit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A missing, damaged or foreign file leaves the state fresh; all but the missing one are warned about."""
    path = tmp_path / "adamw.safetensors"
    trainer, fresh = small_trainer(), small_trainer()
    assert not trainer.load_optimizer(path) and not caplog.text
    small_trainer(small_spec(model={**LLAMA, "intermediate_size": 96})).save_optimizer(path)
    assert not trainer.load_optimizer(path) and "starting with a fresh one" in caplog.text
    trainer.save_optimizer(path)
    whole = path.read_bytes()
    for damaged in (
        whole[:-100],
        whole[:20],
        b"",
        b"garbage" * 100,
        whole.replace(b"commonweights-adamw", b"commonweights-other"),
    ):
        caplog.clear()
        path.write_bytes(damaged)
        assert not trainer.load_optimizer(path) and "starting with a fresh one" in caplog.text
    assert train(trainer, 2) == train(fresh, 2)


def test_optimizer_state_with_nonsense_inside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Moments that no AdamW can have (not finite, negative squares) are not taken up."""
    path = tmp_path / "adamw.safetensors"
    trainer = small_trainer()
    train(trainer, 1)
    next(iter(trainer._optimizer.state.values()))["exp_avg_sq"].fill_(-1.0)
    trainer.save_optimizer(path)
    assert not small_trainer().load_optimizer(path) and "impossible values" in caplog.text


def test_optimizer_state_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the file cannot be written, a person is told, the earlier one stays, and no half of a file is left."""
    trainer = small_trainer()
    path = tmp_path / "adamw.safetensors"
    trainer.save_optimizer(path)
    before = path.read_bytes()
    train(trainer, 1)

    def full(tensors: object, file: Path, metadata: object) -> None:
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("peer.training.inner_optimizer.save_file", full)
    with pytest.raises(CommonweightsError, match="free some space"):
        trainer.save_optimizer(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


# Loss scaling (fp16)


def scaled_trainer(scale: float) -> Trainer:
    """Loss scaling as on a GPU in fp16, with the CPU's fp32 arithmetic."""
    trainer = small_trainer()
    accelerator = trainer.accelerator
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    accelerator.native_amp, accelerator.state._mixed_precision = True, "fp16"
    return trainer


def test_loss_scaling_changes_nothing_but_rounding() -> None:
    """Gradients are unscaled before they are clipped and applied: a power of two leaves the same bits."""
    plain, scaled = small_trainer(), scaled_trainer(2.0**10)
    assert train(plain, 3) == train(scaled, 3)
    assert torch.equal(plain.parameters.read(), scaled.parameters.read())


def test_overflow_lowers_the_loss_scale(tmp_path: Path) -> None:
    """A scale that makes gradients overflow costs a skipped step and is halved, until steps succeed; it is kept."""
    trainer = scaled_trainer(2.0**126)
    original = trainer.task.loss
    wrap_loss(trainer, lambda model, rows: 256 * original(model, rows))  # what overflows in fp16 needs more in fp32
    before = trainer.parameters.read()
    assert trainer.step(text_rows(8), 0).skipped
    assert torch.equal(trainer.parameters.read(), before)
    assert trainer.accelerator.scaler.get_scale() == 2.0**125
    for _ in range(20):
        if not (result := trainer.step(text_rows(8), 0)).skipped:
            break
    assert not result.skipped and not torch.equal(trainer.parameters.read(), before)
    trainer.save_optimizer(tmp_path / "adamw.safetensors")
    other = scaled_trainer(2.0**16)
    assert other.load_optimizer(tmp_path / "adamw.safetensors")
    train(other, 1)
    assert other.accelerator.scaler.get_scale() == trainer.accelerator.scaler.get_scale()


# Several trainers, evaluation, samples


def test_two_trainers_of_different_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process may hold trainers of different precision; each keeps its own."""
    monkeypatch.setattr(
        "peer.training.trainer.choose_precision", lambda wanted, device: wanted
    )  # whatever this CPU gains by
    first = small_trainer(small_spec(precision="fp32"))
    second = small_trainer(small_spec(precision="bf16"))
    third = small_trainer(small_spec(precision="fp32"))
    losses = [trainer.step(text_rows(8), 0).loss for trainer in (first, second, third)]
    assert losses[0] == losses[2]
    assert losses[1] != losses[0] and losses[1] == pytest.approx(losses[0], abs=0.05)
    assert all(parameter.dtype == torch.float32 for parameter in second.model.parameters())


def test_evaluation_weighs_rows() -> None:
    """The held-out loss is the mean over rows, however they are batched."""
    trainer = small_trainer()
    rows = text_rows(9)
    whole = trainer.evaluate([rows])
    assert trainer.evaluate(iter([rows[:5], rows[5:6], rows[6:]])) == pytest.approx(whole, rel=1e-5)
    assert whole == pytest.approx(np.mean([trainer.evaluate([rows[i : i + 1]]) for i in range(9)]), rel=1e-5)


@pytest.mark.parametrize(("architecture", "model"), [("llama", LLAMA), ("gpt2", GPT2), ("mamba", MAMBA)])
def test_samples_are_seeded(architecture: str, model: dict[str, Any]) -> None:
    """Equal seeds give equal samples, others differ, and the global generator is not touched."""
    trainer = small_trainer(small_spec(architecture, model))
    expected = torch.get_rng_state()
    sample = trainer.generate([72, 101], 12, seed=1)
    assert sample == trainer.generate([72, 101], 12, seed=1)
    assert sample != trainer.generate([72, 101], 12, seed=2)
    assert torch.equal(torch.get_rng_state(), expected)
    assert 0 < len(sample) <= 12 and all(0 <= token < VOCAB_SIZE for token in sample)
    assert trainer.model.training


def test_greedy_sample_is_the_argmax() -> None:
    """At temperature 0 and at top-k 1 a sample is the most likely continuation, token by token."""
    trainer: Any = small_trainer()
    train(trainer, 20)
    ids = [100, 101, 102]
    for _ in range(5):
        with torch.no_grad():
            ids.append(int(trainer.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    assert trainer.generate([100, 101, 102], 5, temperature=0.0) == ids[3:]
    assert trainer.generate([100, 101, 102], 5, seed=3, top_k=1) == ids[3:]


def test_sampling_draws_from_the_softmax() -> None:
    """The Gumbel-max draw has the frequencies of softmax(logits / temperature), cut to the k largest."""
    from peer.training.tasks.language_model import SeededSampling

    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    sampling = SeededSampling(seed=0, temperature=0.7, top_k=3)
    draws = torch.cat([sampling(torch.empty(0), logits.expand(100, 4)).argmax(-1) for _ in range(100)])
    expected = torch.softmax(torch.tensor([0.0, 1.0, 2.0, -torch.inf]) / 0.7, 0)
    assert torch.allclose(torch.bincount(draws, minlength=4) / 10_000, expected, atol=0.02)


def test_prompts_of_any_length() -> None:
    """An empty prompt starts from the end-of-text token, one beyond the model's positions loses its beginning."""
    trainer = small_trainer(small_spec("gpt2", GPT2))
    assert trainer.generate([], 4, seed=1) == trainer.generate([END_OF_TEXT], 4, seed=1)
    long = list(range(100))
    assert trainer.generate(long, 4, seed=1) == trainer.generate(long[-28:], 4, seed=1)
    assert len(trainer.generate([1], 1000, seed=1)) <= 31
    assert trainer.generate([1], 0) == []


def test_samples_end_at_the_end_of_text() -> None:
    """Generation stops before the end-of-text token."""
    trainer = small_trainer()
    rows = np.tile(np.array([65, 66, 67, END_OF_TEXT], np.uint16), (8, 8))
    for step in range(60):
        trainer.step(rows, step)
    assert trainer.generate([65], 20, temperature=0.0) == [66, 67]


# Building models


def test_model_follows_from_the_seed() -> None:
    """The run's seed alone decides the first weights: the global generator neither matters nor notices."""
    torch.manual_seed(1)
    first = FlatParameters(small_model(small_spec(seed=5))).read()
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = FlatParameters(small_model(small_spec(seed=5))).read()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, second)
    assert not torch.equal(first, FlatParameters(small_model(small_spec(seed=6))).read())


WRONG_MODELS = [
    ("lama", {}, "did you mean 'llama'"),
    ("no_such_thing_at_all", {}, "no causal language model"),
    ("bert", {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}, "sees the tokens after it"),
    ("llama", {**LLAMA, "hiden_size": 32}, "model.config.hiden_size: unknown.*did you mean 'hidden_size'"),
    ("llama", {**LLAMA, "hidden_size": 33}, "model.config.hidden_size: 33 is not divisible by num_attention_heads 2"),
    ("gpt2", {**GPT2, "n_embd": 33}, "model.config.n_embd: 33 is not divisible by n_head 2"),
    ("llama", {**LLAMA, "num_attention_heads": 0}, "model.config.num_attention_heads: must be positive"),
    ("llama", {**LLAMA, "num_key_value_heads": 3}, "model.config.num_key_value_heads"),
    ("llama", {**LLAMA, "hidden_size": 32.5}, "model.config.hidden_size: 32.5 is not a whole number"),
    ("llama", {**LLAMA, "hidden_size": "32"}, "model.config.hidden_size: '32' is not a whole number"),
    ("llama", {**LLAMA, "tie_word_embeddings": 1}, "model.config.tie_word_embeddings: 1 is not true or false"),
    ("llama", {**LLAMA, "hidden_act": "nope"}, "nope"),
    ("llama", {**LLAMA, "vocab_size": 100}, "model.config.vocab_size: remove it, the tokenizer decides it"),
    ("llama", {**LLAMA, "max_position_embeddings": 16}, "less than data.sequence_length 32"),
    ("gpt2", {**GPT2, "n_positions": 16}, "model.config.n_positions: 16 is less than data.sequence_length 32"),
]


@pytest.mark.parametrize(("architecture", "model", "message"), WRONG_MODELS)
def test_wrong_models_are_refused_by_key(architecture: str, model: dict[str, Any], message: str) -> None:
    """What cannot be a model is a config error that names the key, before anything trains."""
    with pytest.raises(ConfigError, match=message):
        small_model(small_spec(architecture, model))


def test_positions_are_those_of_the_run() -> None:
    """Left out, the number of positions is the sequence length; written down, it may be larger."""

    def positions(spec: RunSpec) -> int:
        model: Any = small_model(spec)
        return int(model.config.max_position_embeddings)

    assert positions(small_spec()) == 32
    assert positions(small_spec(model={**LLAMA, "max_position_embeddings": 64})) == 64
    assert positions(small_spec("gpt2", {**GPT2, "n_positions": 48})) == 48


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_gpu_trains_like_the_cpu(precision: str, tmp_path: Path) -> None:
    """On a CUDA device, in every precision, the loss follows the CPU's, and the optimizer's file can be taken up."""
    reference = train(small_trainer(), 10)
    spec = small_spec(precision=precision)
    trainer = Trainer(spec, load_task("language_model"), small_model(spec), torch.device("cuda"))
    assert train(trainer, 10) == pytest.approx(reference, abs=0.2)
    assert trainer.micro_batch_sequences in (1, 2, 4, 8)
    assert trainer.parameters.read().device.type == "cpu"
    trainer.save_optimizer(tmp_path / "adamw.safetensors")
    assert trainer.load_optimizer(tmp_path / "adamw.safetensors")
    assert len(trainer.generate([65], 8, seed=1)) > 0


def test_forgetting_the_direction_keeps_the_scale() -> None:
    """The first moment is zero, the second and the step count stay; the next step is a fresh gradient's."""
    trainer = small_trainer()
    for number in range(3):
        trainer.step(text_rows(8, offset=8 * number), 0)
    states = list(trainer._optimizer.state.values())
    scales = [state["exp_avg_sq"].clone() for state in states]
    trainer.forget_direction()
    assert all(not state["exp_avg"].any() and float(state["step"]) == 3 for state in states)
    assert all(torch.equal(state["exp_avg_sq"], scale) for state, scale in zip(states, scales, strict=True))
