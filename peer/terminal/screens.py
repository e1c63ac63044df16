"""Views as lines of text: what goes where on a screen of a given size.

Every function returns at most `height` lines of at most `width` columns, whatever the view holds: what matters less is
left out first (columns from the right, then the curve, then events, then peers).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.text import Text

from peer.terminal import chart
from peer.terminal.quantities import clean, count, duration, link_rate, loss, size
from peer.terminal.views import Curve, JoinView, PeerView, Summary, SwarmView

SILENT_SECONDS = 5.0  # a peer not heard of for so long is marked

_LABEL = 12  # columns before a fact
_PATH = 4096  # characters that a path may have
_SPARKS = 24  # rounds in a sparkline

_TRAIN, _HELD_OUT = "cyan", "magenta"


@dataclass(frozen=True)
class Event:
    """Something worth a line: a round, a peer that came or went, a refusal."""

    time_seconds: float  # Unix clock
    text: str
    style: str = ""


@dataclass(frozen=True)
class Column:
    title: str
    cells: Sequence[Text | str]
    rank: int = 0  # where there is no room for all columns, those of the highest rank go first
    right: bool = True


def swarm(view: SwarmView, events: Sequence[Event], width: int, height: int, *, braille: bool = True) -> list[Text]:
    """The coordinator's screen."""
    lines = [
        _title(view.run_name, _rounds(view.round, view.target_rounds), width),
        _run_bar(view, view.tokens, width, braille=braille),
        _round_bar(view.round_tokens, view.round_target_tokens, width, braille=braille),
        _figures(
            (_rate(view.tokens_per_second), ""),
            ("loss " + loss(view.loss), _TRAIN),
            ("held-out " + loss(view.eval_loss), _HELD_OUT),
            (clean(view.address), "dim"),
        ),
        Text(clean(view.state), style="bold"),
    ]
    return _compose(lines, view.losses, view.eval_losses, view.peers, events, width, height, braille=braille)


def join(view: JoinView, events: Sequence[Event], width: int, height: int, *, braille: bool = True) -> list[Text]:
    """One peer's screen: its state in words first, then its own work, then the swarm's."""
    me = view.peer
    swarm_peers = "" if view.swarm_peers is None else f"{view.swarm_peers} peer{'s' * (view.swarm_peers != 1)}"
    lines = [
        _title(f"{view.run_name} · {me.name}", _rounds(view.round, view.target_rounds), width),
        Text(clean(view.state), style="bold"),
        _figures(
            ("you", "dim"),
            (_rate(me.tokens_per_second), ""),
            ("loss " + loss(me.loss), ""),
            (f"{count(view.tokens)} tokens", ""),
        ),
        _figures(
            ("credit", "dim"),
            (count(me.credit_tokens), "green"),
            (f"{count(me.credit_tokens - me.pending_tokens)} confirmed, {count(me.pending_tokens)} pending", ""),
            (f"{view.rounds_contributed} round{'s' * (view.rounds_contributed != 1)} merged", ""),
        ),
        _figures(
            ("link", "dim"),
            ("" if view.up_bytes_per_second is None else f"up {link_rate(view.up_bytes_per_second)}", ""),
            ("" if view.down_bytes_per_second is None else f"down {link_rate(view.down_bytes_per_second)}", ""),
            (f"sent {size(me.bytes_sent or 0)}", ""),
            (f"received {size(me.bytes_received or 0)}", ""),
            (view.codec, ""),
            (clean(view.device), "dim"),
        ),
        _figures(
            ("swarm", "dim"),
            (_rate(view.swarm_tokens_per_second), ""),
            (swarm_peers, ""),
            ("loss " + loss(view.loss), _TRAIN),
            (chart.sparkline(view.losses, _SPARKS) if braille else "", _TRAIN),
        ),
        _run_bar(view, view.swarm_tokens, width, braille=braille),
        _round_bar(view.round_tokens, view.round_target_tokens, width, braille=braille),
    ]
    return _compose(lines, view.losses, (), (), events, width, height, braille=braille)


def summary(result: Summary, width: int, *, braille: bool = True) -> list[Text]:
    """What a demo leaves on the screen: 23 lines with three peers. Paths and commands are not cut, to be copied."""
    lines = [
        Text(
            f"{clean(result.run_name)}: {count(result.rounds)} rounds, {count(result.tokens)} tokens "
            f"in {duration(result.seconds)}",
            style="bold",
        )
    ]
    lines += _curve(result.losses, result.eval_losses, width, 7, braille=braille)
    lines.append(
        _figures(
            (f"loss {_from_to(result.losses)}", _TRAIN),
            (f"held-out {_from_to(result.eval_losses)}", _HELD_OUT),
        )
    )
    lines.append(Text())
    peers = result.peers
    lines += _table(
        [
            Column("peer", [clean(peer.name, 24) for peer in peers], right=False),
            Column("tokens", [count(peer.round_tokens) for peer in peers]),
            Column("credit", [Text(count(peer.credit_tokens), style="green") for peer in peers]),
            Column("sent", [_size(peer.bytes_sent) for peer in peers], 1),
            Column("received", [_size(peer.bytes_received) for peer in peers], 2),
        ],
        width,
    )
    lines.append(Text())
    if result.digests_equal:
        lines.append(_fact("weights", f"the same on every node, to the last bit: {clean(result.state_digest)[:16]}"))
    else:
        lines.append(_fact("weights", "DIFFERENT between nodes: see the log", style="bold red"))
    lines.append(_fact("checkpoint", clean(result.checkpoint, _PATH)))
    lines += _sample(result.prompt, result.sample, max(width - _LABEL, 8), rows=4)
    gap = max((cell_len(command) for command, _ in result.next_steps), default=0) + 3
    for row, (command, purpose) in enumerate(result.next_steps):
        step = Text(clean(command, _PATH).ljust(gap), style="bold")
        if width - _LABEL - gap >= 10:
            step.append(_short(clean(purpose), width - _LABEL - gap), style="not bold dim")
        lines.append(_fact("next" if row == 0 else "", step))
    return lines


def round_line(view: SwarmView) -> str:
    """One line for one finished round, for logs."""
    peers = f"{len(view.peers)} peer{'s' * (len(view.peers) != 1)}"
    parts = [f"loss {loss(view.loss)}", f"held-out {loss(view.eval_loss)}", peers, _rate(view.tokens_per_second)]
    return f"{_rounds(view.round, view.target_rounds)}: {_of(view.tokens, view.target_tokens)} tokens, " + ", ".join(
        [*(part for part in parts if part), *([_left(view.eta_seconds)] if view.eta_seconds is not None else [])]
    )


def join_line(view: JoinView) -> str:
    """One line for one round that this peer has applied, for logs."""
    me = view.peer
    parts = [
        f"loss {loss(view.loss)}",
        f"{count(view.tokens)} tokens of mine",
        f"credit {count(me.credit_tokens)}",
        _rate(me.tokens_per_second),
        f"sent {size(me.bytes_sent or 0)}",
        f"received {size(me.bytes_received or 0)}",
    ]
    return f"{_rounds(view.round, view.target_rounds)}: " + ", ".join(part for part in parts if part)


def _compose(
    head: list[Text],
    losses: Curve,
    eval_losses: Curve,
    peers: Sequence[PeerView],
    events: Sequence[Event],
    width: int,
    height: int,
    *,
    braille: bool,
) -> list[Text]:
    room = height - len(head)
    table: list[Text] = []
    if peers and room >= 3:
        shown = min(len(peers), max(room // 2 - 1, min(room - 2, 4)))
        table = [Text(), *_peers(peers, shown, width)]
        room -= len(table)
    curve: list[Text] = []
    reserved = min(len(events), 3) + 1 if events else 0
    if room - reserved >= 6:
        curve = _curve(losses, eval_losses, width, min(room - reserved - 1, 12), braille=braille)
        if curve:
            curve.insert(0, Text())
            room -= len(curve)
    feed: list[Text] = []
    if events and room >= 2:
        feed = [Text(), *(_event(event) for event in events[-min(room - 1, 8) :])]
    lines = [*head, *curve, *table, *feed][: max(height, 1)]
    for line in lines:
        line.no_wrap = True
        line.truncate(width, overflow="ellipsis")
    return lines


def _peers(peers: Sequence[PeerView], shown: int, width: int) -> list[Text]:
    """A header and `shown` rows; the last row counts the rest when not all fit."""
    rest = len(peers) - shown
    listed = peers[: shown - 1] if rest else peers
    rows = _table(
        [
            Column("peer", [clean(peer.name, 24) for peer in listed], right=False),
            Column("phase", [_phase(peer) for peer in listed], right=False),
            Column("this round", [count(peer.round_tokens) for peer in listed], 1),
            Column("tokens/s", [_number(peer.tokens_per_second) for peer in listed], 2),
            Column("loss", [loss(peer.loss) for peer in listed], 6),
            Column("credit", [Text(count(peer.credit_tokens), style="green") for peer in listed], 3),
            Column("sent", [_size(peer.bytes_sent) for peer in listed], 4),
            Column("received", [_size(peer.bytes_received) for peer in listed], 5),
        ],
        width,
    )
    return [*rows, Text(f"and {rest + 1} more", style="dim")] if rest else rows


def _phase(peer: PeerView) -> Text:
    if peer.silent_seconds >= SILENT_SECONDS:
        return Text(f"silent {duration(peer.silent_seconds)}", style="yellow")
    return Text(clean(peer.phase, 16), style="" if peer.phase == "training" else "dim")


def _table(columns: Sequence[Column], width: int) -> list[Text]:
    """A header line and a line per row. The first column is shortened, then columns are left out, until it fits."""
    cells = [[Text(column.title, style="dim"), *(_text(cell) for cell in column.cells)] for column in columns]
    widths = [max(cell.cell_len for cell in some) for some in cells]
    kept = list(range(len(columns)))
    while len(kept) > 1 and min(widths[0], 12) + sum(3 + widths[number] for number in kept[1:]) > width:
        kept.remove(max(kept, key=lambda number: columns[number].rank))
    widths[0] = max(min(widths[0], width - sum(3 + widths[number] for number in kept[1:])), 1)
    lines = [Text() for _ in cells[0]]
    for number in kept:
        column, widest = columns[number], widths[number]
        for line, cell in zip(lines, cells[number], strict=True):
            cell.truncate(widest, overflow="ellipsis")
            padding = " " * (widest - cell.cell_len)
            line.append("   " if number else "")
            line.append_text(Text(padding) + cell if column.right else cell + Text(padding))
    return lines


def _curve(losses: Curve, eval_losses: Curve, width: int, height: int, *, braille: bool) -> list[Text]:
    lines = [chart.Line(losses, _TRAIN, "*"), chart.Line(eval_losses, _HELD_OUT, "o")]
    return chart.draw(lines, min(width, 100), height, braille=braille)


def _title(name: str, right: str, width: int) -> Text:
    left = Text("Commonweights · ", style="dim").append(clean(name), style="not dim bold")
    room = width - cell_len(right) - 2
    left.truncate(max(room, 1), overflow="ellipsis")
    return left.append(" " * max(width - left.cell_len - cell_len(right), 1)).append(right, style="not dim bold")


def _run_bar(view: SwarmView | JoinView, tokens: int, width: int, *, braille: bool) -> Text:
    """By tokens; by rounds in a run that ends after so many rounds only."""
    share = tokens / view.target_tokens if view.target_tokens else None
    if share is None and view.target_rounds:
        share = view.round / view.target_rounds
    return _bar("run", _of(tokens, view.target_tokens), share, width, _left(view.eta_seconds), braille=braille)


def _round_bar(tokens: int, target: int, width: int, *, braille: bool) -> Text:
    return _bar("round", _of(tokens, target), tokens / target if target else None, width, braille=braille)


def _bar(label: str, tokens: str, done: float | None, width: int, after: str = "", *, braille: bool) -> Text:
    """`done`: a share; None where there is no end to it."""
    line = Text(f"{label:<6}", style="dim")
    share = min(done or 0.0, 1.0)
    words = f"{tokens} tokens" + (f"  {int(share * 100)} %" if done is not None and width >= 60 else "")
    words += f"  {after}" if after else ""
    length = min(width - 6 - 2 - cell_len(words), 48)
    if done is not None and length >= 6:
        full = int(share * length)
        bar, rest = ("━", "─") if braille else ("#", ".")
        line.append(bar * full, style="not dim green").append(rest * (length - full), style="dim").append("  ")
    return line.append(words, style="not dim")


def _figures(*parts: tuple[str, str]) -> Text:
    line = Text()
    for text, style in parts:
        if text:
            line.append("   " if line else "").append(text, style=style)
    return line


def _fact(label: str, value: Text | str, style: str = "") -> Text:
    return Text(label.ljust(_LABEL), style="dim").append_text(
        Text(value, style=style) if isinstance(value, str) else value
    )


def _sample(prompt: str, sample: str, width: int, rows: int) -> list[Text]:
    """The first `rows` lines of prompt and continuation, folded at `width`, the prompt dimmed."""
    found: list[Text] = []
    start = 0
    for line in (prompt + sample).splitlines(keepends=True) if sample else []:
        for offset in range(0, max(len(line.rstrip("\r\n")), 1), width):
            text = Text(clean(line.rstrip("\r\n")[offset : offset + width]))
            text.truncate(width, overflow="ellipsis")  # wide characters take two columns
            text.stylize("dim", 0, max(len(prompt) - start - offset, 0))
            found.append(text)
        start += len(line)
        if len(found) >= rows:
            break
    return [_fact("" if row else "sample", text) for row, text in enumerate(found[:rows])]


def _short(text: str, width: int) -> str:
    short = Text(text)
    short.truncate(width, overflow="ellipsis")
    return short.plain


def _event(event: Event) -> Text:
    clock = time.strftime("%H:%M:%S", time.localtime(event.time_seconds))
    return Text(f"{clock}  ", style="dim").append(clean(event.text), style=f"not dim {event.style}")


def _text(cell: Text | str) -> Text:
    return cell if isinstance(cell, Text) else Text(cell)


def _rounds(done: int, target: int) -> str:
    return f"round {done:,} of {target:,}" if target else f"round {done:,}"


def _of(value: int, target: int) -> str:
    return f"{count(value)} of {count(target)}" if target else count(value)


def _left(seconds: float | None) -> str:
    return "" if seconds is None else f"{duration(seconds)} left"


def _rate(tokens_per_second: float | None) -> str:
    return "" if tokens_per_second is None else f"{count(tokens_per_second)} tokens/s"


def _number(value: float | None) -> str:
    return "-" if value is None else count(value)


def _size(value: int | None) -> str:
    return "-" if value is None else size(value)


def _from_to(curve: Curve) -> str:
    return f"{loss(curve[0][1])} → {loss(curve[-1][1])}" if curve else "-"
