"""Error feedback: nothing that was trained is lost, and a restart changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peer.codecs import CODECS, open_payload
from peer.errors import CommonweightsError
from peer.rounds.feedback import ErrorFeedback


def deltas(rounds: int, count: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, generator=generator) * 1e-3 for _ in range(rounds)]


@settings(max_examples=30, deadline=None)
@given(name=st.sampled_from(list(CODECS)), count=st.sampled_from([1, 77, 5000]), rounds=st.integers(1, 6))
def test_what_was_sent_plus_the_buffer_is_what_was_trained(name: str, count: int, rounds: int) -> None:
    """With beta = 1 the sum of decoded payloads plus the buffer equals the sum of the deltas, whatever the codec."""
    feedback = ErrorFeedback(count)
    sent = torch.zeros(count, dtype=torch.float64)
    trained = torch.zeros(count, dtype=torch.float64)
    for delta in deltas(rounds, count):
        feedback.add(delta, torch.zeros_like(delta))
        sent += open_payload(feedback.encode(name), count).vector().double()
        trained += delta.double()
    rounding = 1e-6 * float(trained.abs().max() + sent.abs().max())
    assert torch.allclose(sent + feedback.buffer.double(), trained, rtol=0, atol=rounding)


def test_decay_forgets_old_leftovers() -> None:
    """beta multiplies the buffer before the delta is added: e <- beta * e + delta."""
    feedback = ErrorFeedback(3, decay=0.5)
    feedback.add(torch.tensor([5.0, 0.0, -8.0]), torch.tensor([1.0, 0.0, 0.0]))
    feedback.add(torch.ones(3), torch.zeros(3))
    assert feedback.buffer.tolist() == [3.0, 1.0, -3.0]


def test_the_buffer_stays_bounded_under_a_constant_delta() -> None:
    """Sparse codecs send every coordinate in turn, so the buffer of a steady delta does not grow without end."""
    feedback = ErrorFeedback(4096)
    delta = torch.linspace(0.5, 1.5, 4096)
    norms = []
    for _ in range(300):
        feedback.add(delta, torch.zeros_like(delta))
        feedback.encode("sparse/64")
        norms.append(float(feedback.buffer.norm()))
    assert max(norms[150:]) < 1.2 * max(norms[:150])


def test_a_refused_payload_goes_back_into_the_buffer() -> None:
    """put_back() undoes encode(): the next payload carries what the swarm did not accept."""
    feedback = ErrorFeedback(5000)
    feedback.add(deltas(1, 5000)[0], torch.zeros(5000))
    before = feedback.buffer.clone()
    payload = feedback.encode("sparse/16")
    assert not torch.equal(feedback.buffer, before)
    feedback.put_back(open_payload(payload, 5000))
    assert torch.allclose(feedback.buffer, before, rtol=0, atol=1e-9)


def test_save_and_load_continue_where_it_stopped(tmp_path: Path) -> None:
    """A buffer read back from disk gives the same next payload, bit for bit, and leaves no temporary file."""
    first, second = deltas(2, 5000)
    feedback = ErrorFeedback(5000)
    feedback.add(first, torch.zeros_like(first))
    feedback.encode("lowbit2")
    feedback.save(tmp_path / "feedback.safetensors")
    restarted = ErrorFeedback(5000)
    restarted.load(tmp_path / "feedback.safetensors")
    for each in (feedback, restarted):
        each.add(second, torch.zeros_like(second))
    assert feedback.encode("lowbit2") == restarted.encode("lowbit2")
    assert [path.name for path in tmp_path.iterdir()] == ["feedback.safetensors"]


def test_files_that_do_not_fit_are_refused_with_a_cure(tmp_path: Path) -> None:
    """Garbage, and a buffer of another model, are errors for a person; the buffer in memory is untouched."""
    path = tmp_path / "feedback.safetensors"
    path.write_bytes(b"not safetensors at all")
    feedback = ErrorFeedback(10)
    with pytest.raises(CommonweightsError, match="delete it"):
        feedback.load(path)
    ErrorFeedback(11).save(path)
    with pytest.raises(CommonweightsError, match="another run"):
        feedback.load(path)
    assert torch.equal(feedback.buffer, torch.zeros(10))


def test_a_diverged_delta_leaves_the_buffer_alone() -> None:
    """A NaN must not poison work that is still waiting to be sent."""
    feedback = ErrorFeedback(4)
    feedback.add(torch.ones(4), torch.zeros(4))
    for bad in (float("nan"), float("inf")):
        with pytest.raises(CommonweightsError, match="not finite"):
            feedback.add(torch.zeros(4), torch.tensor([0.0, bad, 0.0, 0.0]))
    with pytest.raises(CommonweightsError, match="parameters"):
        feedback.add(torch.ones(5), torch.zeros(5))
    assert torch.equal(feedback.buffer, torch.ones(4))
