"""The page in a real browser, over a real swarm: a coordinator and peers in processes of their own."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import CHROMIUM, Tab, browser
from tests.commands import Command, free_port, records, running, tiny_config, until
from tests.web_server import web_server

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)"),
    pytest.mark.timeout(300),
    pytest.mark.slow,
    pytest.mark.xdist_group("page"),
]

NASTY = "<b onmouseover=alert(1)>bob</b>"
PANELS = """[...document.querySelectorAll("section.panel")].filter((panel) => !panel.querySelector(".empty").hidden)
    .map((panel) => panel.querySelector("h2").textContent)"""
SHIFTS = """new Promise((done) => { let sum = 0; new PerformanceObserver((list) => { for (const it of list.getEntries())
    sum += it.value; }).observe({type: "layout-shift", buffered: true}); setTimeout(() => done(sum), 3000); })"""


class Run:
    """A coordinator that can be killed and started again on the same ports, and its page's address."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "run"
        self.port = free_port()
        self.arguments = (
            "serve", tiny_config(folder, rounds=0), "--dir", self.folder, "--host", "127.0.0.1",
            "--grpc-port", free_port(), "--swarm-port", free_port(), "--web-port", self.port,
        )  # fmt: skip
        self.command = Command(*self.arguments, program="coordinator.cli")
        self.address = f"http://127.0.0.1:{self.port}"

    def start_again(self) -> None:
        self.command.end()
        self.command = Command(*self.arguments, program="coordinator.cli")

    def section(self, name: str) -> Any:
        with urllib.request.urlopen(f"{self.address}/api/{name}", timeout=10) as answer:
            return json.load(answer)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Two peers of one team, one of them with a name that is markup, in a run without end."""
    folder = tmp_path_factory.mktemp("page")
    started = Run(folder)
    try:
        ticket = started.folder / "ticket.txt"
        until(ticket.is_file, "the ticket is written")
        with (
            running("join", ticket, "--dir", folder / "ada", "--name", "ada", "--team", "Lund"),
            running("join", ticket, "--dir", folder / "bob", "--name", NASTY, "--team", "Lund"),
        ):
            until(lambda: records(started.folder) >= 3, "three rounds")
            yield started
    finally:
        started.command.end()


@pytest.fixture
def tab(run: Run, tmp_path: Path) -> Iterator[Tab]:
    with browser(tmp_path / "profile") as opened:
        opened.look(width=1440, height=900)
        opened.open(run.address)
        yield opened


def test_the_page_shows_a_running_swarm(run: Run, tab: Tab) -> None:
    """Numbers move, no panel is empty, every chart has ink, nothing jumps, both losses are shown, and the console stays
    silent."""
    tab.until("document.querySelector('#connection').dataset.state === 'live'")
    tab.until(f"({PANELS}).length === 0", 60)
    before = json.dumps(
        [tab.evaluate(f"document.getElementById('{name}').textContent") for name in ("f-merged", "f-round")]
    )
    tab.until(
        f"JSON.stringify(['f-merged', 'f-round'].map((it) => document.getElementById(it).textContent)) !== {before!r}"
    )
    for canvas in ("#loss-chart canvas", "#speed-chart canvas", "#peers-chart canvas", "#waterfall-canvas"):
        inked = f"""(() => {{ const it = document.querySelector("{canvas}");
            return it.getContext("2d").getImageData(0, 0, it.width, it.height).data.some((value) => value); }})()"""
        assert tab.evaluate(inked), f"{canvas} is blank"
    for figure in ("f-loss", "f-eval"):
        assert float(tab.evaluate(f"document.getElementById('{figure}').textContent")) > 0
    tab.until("/^live \\d/.test(document.getElementById('f-live').textContent)")
    assert tab.evaluate(SHIFTS) < 0.1
    assert tab.evaluate("document.title").startswith(("Training round", "Closing round"))
    assert tab.complaints == []


def test_what_strangers_call_themselves_is_text(tab: Tab) -> None:
    """A name that is markup makes no element; it is read as it was written, in the table, the feed and the ledger."""
    tab.until("document.querySelectorAll('#peers-table tbody tr').length === 2")
    assert not tab.evaluate("document.querySelectorAll('[onmouseover]').length")
    for place in ("#peers-table", "#board-table", "#incidents"):
        assert NASTY in tab.evaluate(f"document.querySelector('{place}').textContent"), place
    assert tab.complaints == []


def test_a_leave_a_team_and_a_download(run: Run, tab: Tab, tmp_path: Path) -> None:
    """Who leaves is told and goes from the table; the team's credit is its members'; the listed files are the files."""
    with running("join", run.folder / "ticket.txt", "--dir", tmp_path / "eve", "--name", "eve") as eve:
        tab.until("document.querySelector('#peers-table').textContent.includes('eve')", 60)
        eve.interrupt()
    tab.until("document.querySelector('#incidents').textContent.includes('eve left')")
    tab.until("!document.querySelector('#peers-table').textContent.includes('eve')")
    tab.evaluate("document.getElementById('by-team').click()")
    tab.until("document.querySelector('#board-table tbody').textContent.includes('Lund')")
    credit = run.section("leaderboard")
    members = [peer["credit_tokens"] for peer in credit["peers"] if peer["team"] == "Lund"]
    assert len(members) == 2 and credit["teams"][0]["credit_tokens"] == sum(members)
    until(lambda: downloads(tab), "a listed file can be downloaded before a newer checkpoint replaces it")


def test_every_sample_can_be_turned_to(tmp_path: Path) -> None:
    """Also the second prompt's of one evaluation; a new one does not take the reader's sample away."""
    texts = [{"round": it // 2, "tokens": 0, "loss": 1.0, "prompt": "x", "text": f"text {it}"} for it in (5, 4, 3, 2)]
    with web_server(tmp_path) as server, browser(tmp_path / "profile") as tab:
        server.show(samples={"samples": texts})
        tab.open(server.address)
        tab.until("document.getElementById('sample').textContent === 'xtext 5'")
        seen = []
        while not tab.evaluate("document.getElementById('sample-older').disabled"):
            tab.evaluate("document.getElementById('sample-older').click()")
            seen.append(tab.evaluate("document.getElementById('sample').textContent"))
        assert seen == ["xtext 4", "xtext 3", "xtext 2"]
        server.show(samples={"samples": [{**texts[0], "round": 3, "text": "newest"}, *texts]})
        tab.until("!document.getElementById('sample-newer').disabled")
        assert tab.evaluate("document.getElementById('sample').textContent") == "xtext 2"
        assert tab.complaints == []


def downloads(tab: Tab) -> bool:
    link = tab.until("document.querySelector('#checkpoints a')?.href")
    try:
        with urllib.request.urlopen(link, timeout=10) as answer:
            return len(answer.read()) > 0
    except urllib.error.HTTPError as error:
        assert error.code == 404
        return False


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_shows_it_without_scrolling_sideways(tab: Tab, dark: bool) -> None:
    """At 360 pixels nothing is wider than the screen, and text keeps a contrast of 4.5 to its ground."""
    tab.look(width=360, height=740, phone=True, dark=dark)
    tab.until(f"({PANELS}).length === 0", 60)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    poor = tab.evaluate(CONTRAST)
    assert not poor, poor
    assert tab.complaints == []


def test_the_page_finds_a_coordinator_that_was_killed_again(run: Run, tab: Tab) -> None:
    """It says that the line is lost, connects again by itself, and shows the round that the log is at."""
    tab.until("document.querySelector('#connection').dataset.state === 'live'")
    merged = run.section("now")["contributions"]
    run.command.end()
    tab.until("document.querySelector('#connection').textContent.includes('lost connection')")
    run.start_again()
    tab.until("document.querySelector('#connection').dataset.state === 'live'", 90)
    tab.until(f"Number(document.getElementById('f-merged').textContent.replace(/,/g, '')) >= {merged + 1}", 90)
    tab.until(f"({PANELS}).length === 0", 60)
    assert run.section("speed")["points"][0][0] < run.section("incidents")["since"]  # what was before the restart, too


CONTRAST = """(() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (it) => it <= .03928 ? it / 12.92 : ((it + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => [r, g, b].map((it) => linear(it / 255))
    .reduce((sum, it, at) => sum + it * [.2126, .7152, .0722][at], 0);
  const ground = (node) => { for (let it = node; it; it = it.parentElement) {
    const found = rgb(getComputedStyle(it).backgroundColor);
    if (found.length === 3 || found[3] === 1) return found; } return [255, 255, 255]; };
  const poor = new Set();
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode.parentElement;
    if (!walk.currentNode.textContent.trim() || !node.checkVisibility()) continue;
    if (node.closest("button:disabled, noscript, .skip")) continue;
    const [a, b] = [light(rgb(getComputedStyle(node).color)), light(ground(node))].sort((x, y) => y - x);
    const contrast = (a + .05) / (b + .05);
    if (contrast < 4.5) poor.add(`${node.tagName} ${node.id} ${node.className}: ${contrast.toFixed(2)}`);
  }
  return [...poor];
})()"""
