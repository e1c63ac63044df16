"""What people see: it fits every terminal, shows nobody's escape codes, and leaves stdout and the terminal alone."""

from __future__ import annotations

import io
import logging
import os
import pty
import re
import sys
import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from peer.terminal import chart, screens
from peer.terminal.console import Console
from peer.terminal.quantities import clean, count, duration, size
from peer.terminal.views import JoinView, PeerView, Summary, SwarmView

counts = st.integers(0, 10**15)
figures = st.none() | st.floats(allow_nan=True, allow_infinity=True)
curves = st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=40).map(
    lambda ys: list(enumerate(ys, start=1))
)
peers = st.builds(
    PeerView,
    name=st.text(max_size=80),
    phase=st.text(max_size=30),
    round_tokens=counts,
    tokens_per_second=figures,
    credit_tokens=counts,
    pending_tokens=counts,
    loss=figures,
    bytes_sent=st.none() | counts,
    bytes_received=st.none() | counts,
    silent_seconds=st.floats(0, 1e6),
)
shared = {
    "run_name": st.text(max_size=120),
    "state": st.text(max_size=200),
    "round": counts,
    "target_rounds": counts,
    "target_tokens": counts,
    "round_tokens": counts,
    "round_target_tokens": counts,
    "eta_seconds": figures,
    "loss": figures,
    "losses": curves,
}
swarm_views = st.builds(
    SwarmView,
    **shared,
    tokens=counts,
    eval_losses=curves,
    peers=st.lists(peers, max_size=12),
    address=st.text(max_size=60),
)
join_views = st.builds(JoinView, **shared, peer=peers, device=st.text(max_size=60), swarm_peers=st.none() | counts)
events = st.lists(st.builds(screens.Event, time_seconds=st.floats(0, 4e9), text=st.text(max_size=200)), max_size=10)
sizes = st.tuples(st.integers(8, 220), st.integers(2, 80))


def example_swarm(round: int = 3, peer_count: int = 3) -> SwarmView:
    losses = [(number, 5.0 / number) for number in range(1, round + 1)]
    return SwarmView(
        run_name="a small model",
        state="2 of 3 peers submitted; closing in 14 s",
        round=round,
        target_rounds=12,
        tokens=round * 100_000,
        target_tokens=1_200_000,
        round_tokens=4096,
        round_target_tokens=16384,
        tokens_per_second=5612.0,
        eta_seconds=75.0,
        loss=losses[-1][1] if losses else None,
        losses=losses,
        peers=[PeerView(name=f"peer-{number}", phase="training") for number in range(peer_count)],
    )


def example_summary() -> Summary:
    return Summary(
        run_name="a small model",
        rounds=12,
        tokens=1_200_000,
        seconds=83.0,
        losses=[(1, 5.5), (12, 2.5)],
        eval_losses=[(1, 5.6), (12, 2.7)],
        peers=[PeerView(name=f"peer-{number}", round_tokens=400_000, credit_tokens=400_000) for number in range(3)],
        state_digest="3f2a" * 16,
        digests_equal=True,
        checkpoint="/somewhere/deep/" + "x" * 120 + "/checkpoint",
        prompt="def ",
        sample="main():\n    return 1\n\n\nclass A:\n    pass\n",
        next_steps=[
            ("commonweights verify demo", "replay the log"),
            ("commonweights-coordinator ledger --dir demo", "credit"),
        ],
    )


def assert_harmless(lines: list[Text]) -> None:
    for line in lines:
        assert line.plain.isprintable() or not line.plain, repr(line.plain)


@given(swarm_views | join_views, events, sizes, st.booleans())
def test_every_screen_fits(
    view: SwarmView | JoinView, some: list[screens.Event], box: tuple[int, int], braille: bool
) -> None:
    """Any view on any terminal: no line too wide, not a line too many, nothing but printable characters."""
    width, height = box
    draw: Callable[..., list[Text]] = screens.swarm if isinstance(view, SwarmView) else screens.join
    lines = draw(view, some, width, height, braille=braille)
    assert len(lines) <= height
    assert all(line.cell_len <= width for line in lines)
    assert_harmless(lines)


@given(
    st.builds(
        Summary,
        run_name=st.text(),
        rounds=counts,
        tokens=counts,
        seconds=st.floats(0, 1e9),
        losses=curves,
        eval_losses=curves,
        peers=st.lists(peers, max_size=6),
        state_digest=st.text(),
        digests_equal=st.booleans(),
        checkpoint=st.text(),
        prompt=st.text(max_size=40),
        sample=st.text(max_size=400),
        next_steps=st.lists(st.tuples(st.text(max_size=60), st.text(max_size=60)), max_size=4),
    ),
    st.integers(8, 220),
)
def test_a_summary_is_harmless(result: Summary, width: int) -> None:
    """Whatever a model generates or a peer calls itself, no escape code reaches the terminal."""
    assert_harmless(screens.summary(result, width))


def test_the_screen_says_what_matters() -> None:
    """On the usual 80 by 24: both progress bars, the time left, the state in words, a curve, and each peer."""
    text = "\n".join(line.plain for line in screens.swarm(example_swarm(), [], 80, 23))
    for words in ("round 3 of 12", "300k of 1.20M tokens", "25 %", "1:15 left", "5,612 tokens/s", "closing in 14 s"):
        assert words in text
    assert all(f"peer-{number}" in text for number in range(3))
    assert "┤" in text


def test_a_peer_sees_what_is_its_own() -> None:
    """On 80 by 24: the state first, own speed and tokens, how much of the credit is confirmed and what a verdict may
    still void, the swarm, both bars, and room for what happened."""
    me = PeerView("anna", "training", 4096, 2400.0, credit_tokens=61_440, pending_tokens=20_480, loss=3.25)
    view = JoinView(
        "a small model", me, "training round 4, closing in about 9 s", "2 cores", round=3, target_rounds=12,
        tokens=65_536, rounds_contributed=3, swarm_tokens=180_000, target_tokens=1_200_000, round_target_tokens=86_016,
        swarm_tokens_per_second=5612.0, swarm_peers=2, up_bytes_per_second=1e4, down_bytes_per_second=2e4,
        losses=[(number, 5.0 / number) for number in range(1, 4)],
    )  # fmt: skip
    events = [screens.Event(0.0, "your work is in the log")]
    lines = [line.plain for line in screens.join(view, events, 80, 23)]
    assert lines[1] == "training round 4, closing in about 9 s"
    assert lines[2] == "you   2,400 tokens/s   loss 3.250   65.5k tokens"
    assert lines[3] == "credit   61.4k   41.0k confirmed, 20.5k pending   3 rounds merged"
    text = "\n".join(lines)
    assert "5,612 tokens/s   2 peers" in text and "180k of 1.20M tokens" in text and "your work is in the log" in text


def test_peers_that_do_not_fit_are_counted() -> None:
    """With more peers than lines, the last row says how many are missing, and the numbers add up."""
    text = "\n".join(line.plain for line in screens.swarm(example_swarm(peer_count=100), [], 80, 23))
    listed = len(re.findall(r"^peer-\d+", text, flags=re.M))
    rest = re.search(r"^and (\d+) more", text, flags=re.M)
    assert rest and listed + int(rest[1]) == 100


def test_a_silent_peer_is_marked() -> None:
    """A peer not heard of for a while shows for how long, in place of a phase that may no longer be true."""
    view = SwarmView(run_name="x", peers=[PeerView(name="gone", phase="training", silent_seconds=75.0)])
    text = "\n".join(line.plain for line in screens.swarm(view, [], 80, 23))
    assert "silent 1:15" in text and "training" not in text


def test_the_summary_fits_one_screen() -> None:
    """Three peers' demo on 80 by 24 with the prompt below; the path is whole, so that it can be copied."""
    lines = screens.summary(example_summary(), 80)
    assert len(lines) <= 23
    text = "\n".join(line.plain for line in lines)
    assert example_summary().checkpoint in text
    for words in (
        "12 rounds, 1.20M tokens in 1:23",
        "5.500 → 2.500",
        "same on every node",
        "def main():",
        "verify demo",
    ):
        assert words in text


def test_different_weights_are_not_glossed_over() -> None:
    """If the nodes disagree, the summary says so in so many words."""
    from dataclasses import replace

    text = "\n".join(line.plain for line in screens.summary(replace(example_summary(), digests_equal=False), 80))
    assert "DIFFERENT" in text and "the same on every node" not in text


def test_without_a_terminal_one_line_per_round() -> None:
    """Piped into a file: a line for each new round, none for the views in between, no escape codes."""
    stream = io.StringIO()
    with Console(stream) as console:
        for round in (0, 1, 1, 1, 2):
            console.show(example_swarm(round))
        console.event("peer-7 came", warning=True)
    lines = stream.getvalue().splitlines()
    assert [line.split(":")[0] for line in lines] == ["round 0 of 12", "round 1 of 12", "round 2 of 12", "warning"]
    assert "\x1b" not in stream.getvalue()


def test_stdout_stays_empty(capsys: pytest.CaptureFixture[str]) -> None:
    """Progress, events, logs and the summary all go to stderr: stdout belongs to --json."""
    with Console() as console:
        console.show(example_swarm())
        console.event("something")
        console.log_handler().emit(logging.LogRecord("x", logging.INFO, "x", 1, "logged", (), None))
        console.summary(example_summary())
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "logged" in captured.err and "3f2a" in captured.err


def test_an_ascii_stream_is_no_crash() -> None:
    """A terminal or log that cannot take Unicode gets question marks and plain curves, not a UnicodeEncodeError."""
    raw = io.BytesIO()
    with Console(io.TextIOWrapper(raw, encoding="ascii", errors="strict", write_through=True)) as console:
        console.event("Ünïcødé · peer → 1")
        console.summary(example_summary())
    assert "?n?c?d? - peer > 1" in raw.getvalue().decode("ascii")


def test_a_terminal_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a real pseudo-terminal: the screen is drawn in place, log lines do not break it, the cursor comes back."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    monkeypatch.delenv("NO_COLOR", raising=False)
    controller, terminal = pty.openpty()
    received = bytearray()

    def drain() -> None:
        try:
            while data := os.read(controller, 65536):
                received.extend(data)
        except OSError:
            pass  # the terminal's side is closed

    reader = threading.Thread(target=drain)
    reader.start()
    before = sys.stderr, sys.stdout
    with os.fdopen(terminal, "w", encoding="utf-8") as stream, Console(stream) as console:
        console.event("before there is anything to show")
        for round in (1, 2, 3):
            console.show(example_swarm(round))
        console.log_handler().emit(logging.LogRecord("x", logging.INFO, "x", 1, "a log line", (), None))
        console.show(example_swarm(4))
        assert sys.stdout is before[1]
    reader.join(timeout=10)
    os.close(controller)
    assert (sys.stderr, sys.stdout) == before
    text = received.decode()
    assert "before there is anything" in text and "a log line" in text and "round 4 of 12" in text
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l"), "the cursor stayed hidden"


@given(curves, st.integers(1, 220), st.integers(1, 30), st.booleans())
def test_curves_fit_their_box(points: list[tuple[int, float]], width: int, height: int, braille: bool) -> None:
    """Any points, also none, one, equal or infinite ones, in any box."""
    lines = chart.draw([chart.Line(points, "cyan")], width, height, braille=braille)
    assert len(lines) <= height
    assert all(line.cell_len <= max(width, 0) for line in lines)


def test_a_falling_curve_falls() -> None:
    """The first point is drawn in the top left, the last in the bottom right, and the labels say so."""
    *rows, axis = (line.plain for line in chart.draw([chart.Line([(1, 4.0), (9, 2.0)], "")], 40, 6, braille=False))
    assert rows[0].startswith("4.00 |*") and rows[-1].startswith("2.00 |") and rows[-1].endswith("*")
    assert axis.split() == ["round", "1", "9"]


@given(st.floats(1, 1e17))
def test_short_numbers_are_right(value: float) -> None:
    """Reading a shortened count or size back gives the value to half a per cent."""
    units = {"": 1.0, "k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "PB": 1e15}
    number, unit = re.fullmatch(r"([\d.,]+)(\w*)", count(value)).groups()  # type: ignore[union-attr]
    assert float(number.replace(",", "")) * units[unit] == pytest.approx(value, rel=0.006, abs=0.5)
    number, unit = size(value).split(" ")
    assert float(number) * units.get(unit if unit != "B" else "", 1.0) == pytest.approx(value, rel=0.006, abs=0.5)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1:00"),
        (3599.7, "1:00:00"),
        (90000, "1 d 1 h"),
    ],
)
def test_durations_roll_over(seconds: float, words: str) -> None:
    """No 60 seconds, no 60 minutes: rounding happens before the split."""
    assert duration(seconds) == words


@given(st.text())
def test_clean_text_is_one_printable_line(text: str) -> None:
    """Escape codes, line breaks and control characters do not survive; printable text does."""
    assert clean(text).isprintable()
    if text.isprintable() and len(text) <= 500:
        assert clean(text) == text
