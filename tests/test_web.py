"""The page's web server, over real sockets: what it answers, what it refuses, and what watchers cannot do to it."""

from __future__ import annotations

import gzip
import json
import math
import re
import socket
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args

import pytest
from prometheus_client.parser import text_string_to_metric_families

from coordinator.store.history import Kind
from coordinator.web import sections
from coordinator.web.publisher import encoded
from tests.web_server import WebServer, web_server

ROOT = Path(__file__).parent.parent
NOW = {"time": 1.0, "state": "training", "title": "Training round 3", "detail": "half of it", "tokens": 7, "round": 3}
NASTY = "<img src=x onerror=alert(1)>&\"'\u2028</script>"
PEER = {
    "id": "12D3KooWabc", "name": NASTY, "team": 'a"b\\c', "tokens_per_second": 5.0, "round_tokens": 6,
    "credit_tokens": 7, "rounds_behind": 0, "seen_seconds_ago": 0.5, "bytes_sent": 1, "bytes_received": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    with web_server(tmp_path_factory.mktemp("checkpoints")) as running:
        running.show(
            now=NOW,
            run={
                "name": NASTY,
                "description": NASTY,
                "run_id": "ff",
                "ticket": "cw1abc",
                "join": f"commonweights join {NASTY}",
            },
            peers={"total": 1, "peers": [PEER]},
        )
        yield running


def test_each_section_is_json_and_all_of_them_are_the_snapshot(server: WebServer) -> None:
    """/api lists the sections, each is what the coordinator said last, /api/snapshot holds them all."""
    assert server.get("/api/now").json == NOW
    listed = server.get("/api").json
    assert {"now", "run", "peers", "snapshot", "events"} <= set(listed)
    assert server.get("/api/snapshot").json["peers"]["peers"] == [PEER]
    assert server.get("/ticket").text == "cw1abc\n"
    assert server.get("/api/nothing").status == 404 and "/api lists them" in server.get("/api/nothing").text


def test_what_strangers_write_is_text(server: WebServer) -> None:
    """A name with markup appears in the page's HTML escaped, and in the metrics as one label value."""
    html = server.get("/").text
    assert "<img src=x" not in html and "&lt;img src=x" in html
    line = next(line for line in server.get("/metrics").text.split("\n") if "member_tokens_per_second{" in line)
    assert line.endswith("} 5.0") and r"a\"b\\c" in line


def tags_of(html: str) -> list[tuple[str, dict[str, str | None]]]:
    """Every start tag with its attributes."""
    found: list[tuple[str, dict[str, str | None]]] = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.append((tag, dict(attrs)))

    Parser().feed(html)
    return found


def test_the_page_can_only_run_its_own_scripts(server: WebServer) -> None:
    """The policy has no inline script or style, the page needs none, and nothing comes from elsewhere."""
    answer = server.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    tags = tags_of(answer.text)
    assert all("src" in attributes for tag, attributes in tags if tag == "script")
    assert not [it for it in tags if it[0] == "style" or any(key.startswith("on") or key == "style" for key in it[1])]
    sources = [str(it.get("src") or it.get("href")) for _, it in tags if "src" in it or "href" in it]
    assert all(source.startswith(("/", "#")) and not source.startswith("//") for source in sources)
    for source in sources:
        if source.startswith("/static/"):
            assert server.get(source).status == 200, source


def test_a_figure_that_is_no_number_is_not_known() -> None:
    """NaN and infinity become null at any depth, since a browser would refuse the whole section; the rest stays."""
    value = {"loss": math.nan, "train": [[1, 2.5], [2, -math.inf]], "name": "NaN", "points": ((1.0, math.inf),)}
    expected = {"loss": None, "train": [[1, 2.5], [2, None]], "name": "NaN", "points": [[1.0, None]]}
    assert json.loads(encoded(value)) == expected


def test_nothing_can_be_changed(server: WebServer) -> None:
    """Every other method is refused, on every route."""
    for path in ("/", "/api/now", "/api/events", "/metrics", "/static/page.js"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as line:
            line.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
            assert line.recv(100).split()[1] == b"405"


def test_an_unchanged_answer_is_not_sent_again(server: WebServer) -> None:
    """With its tag, the answer is 304 and empty; compressed, it is the same bytes."""
    plain = server.get("/static/page.css")
    assert server.get("/static/page.css", If_None_Match=plain.headers["etag"]).status == 304
    packed = server.get("/static/page.css", Accept_Encoding="gzip")
    assert packed.headers["content-encoding"] == "gzip" and gzip.decompress(packed.body) == plain.body


def test_only_listed_files_can_be_downloaded(server: WebServer) -> None:
    """A listed file comes whole; its neighbour and what lies outside do not."""
    folder = server.folder / "round-000002"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "secret").write_text("no")
    (server.folder / "outside").write_text("no")
    files = [{"name": "model.safetensors", "bytes": 7}]
    checkpoint = {"name": "round-000002", "round": 2, "time": 1.0, "bytes": 7, "files": files}
    server.show(checkpoints={"checkpoints": [checkpoint]})
    answer = server.get("/checkpoints/round-000002/model.safetensors")
    assert answer.body == b"weights" and "attachment" in answer.headers["content-disposition"]
    for path in ("round-000002/secret", "round-000002/../outside", "round-000002/%2e%2e/outside", "..%2foutside/x"):
        assert server.get(f"/checkpoints/{path}").status == 404, path


def read_events(line: socket.socket, until: bytes) -> bytes:
    found = b""
    while until not in found:
        more = line.recv(65536)
        assert more, "the line was closed"
        found += more
    return found


def test_a_watcher_gets_everything_at_once_and_then_what_changes(server: WebServer) -> None:
    """First all sections; after that only the one that is new."""
    with server.events() as line:
        first = read_events(line, b"event: peers")
        assert b"event: now" in first and b"event: page" in first and b"text/event-stream" in first
        server.tell(losses={"train": [[1, 2.5]], "eval": []})
        news = read_events(line, b'"eval":[]}')
        assert b"event: losses" in news and b"event: run" not in news


def test_a_watcher_that_does_not_read_costs_a_bounded_amount_and_harms_nobody(server: WebServer) -> None:
    """While one never reads, thousands of large sections pass; the others are served, and memory stays."""

    def resident_bytes() -> int:
        return int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * 4096

    with server.events() as stuck:
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        before = resident_bytes()
        for number in range(400):
            server.tell(speed={"points": [[number, 0, 0]] * 20_000, "marks": []})
        server.show(now={**NOW, "round": 400})
        assert resident_bytes() - before < 60e6  # 400 sections would be 90 MB
        with server.events() as other:
            assert b'"round":400' in read_events(other, b'"round":400')
    server.show(speed={"points": [], "marks": []})


def test_a_finished_watcher_is_forgotten(server: WebServer) -> None:
    """The number of open streams goes back to none."""

    def watchers() -> float:
        return float(re.findall(r"^commonweights_web_watchers (\S+)", server.get("/metrics").text, re.M)[0])

    lines = [server.events() for _ in range(20)]
    for line in lines:
        read_events(line, b"event: now")
    assert watchers() >= 20
    for line in lines:
        line.close()
    end = time.monotonic() + 30
    while watchers() > 0:
        server.tell(now={**NOW, "time": time.time()})  # a closed line is noticed when something is sent
        assert time.monotonic() < end, "streams that were closed are still counted"
        time.sleep(0.1)


FULL = {
    "now": {
        **NOW, "live_loss": 1.0, "loss": 1.0, "eval_loss": 1.0, "round_tokens": 1, "tokens_per_second": 1.0, "peers": 1,
        "contributors": 1, "contributions": 1, "refusals": 1, "term": 0, "eta_seconds": 1.0, "eta_seconds_p90": 2.0,
        "incidents": dict.fromkeys(get_args(Kind), 0),
        "copies": [{"destination": "s3://bucket/run", "complete": False, "failures": 2}],
    },
    "run": {"target_tokens": 1, "target_rounds": 1, "round_target_tokens": 1, "parameters": 1, "name": "x"},
    "recent": {"rounds": [{"opened": 1.0, "closing": 2.0, "published": 3.0}]},
    "checkpoints": {"checkpoints": [{"name": "round-000002", "round": 2, "time": 1.0, "bytes": 7, "files": []}]},
}  # fmt: skip


def samples_of(text: str) -> dict[str, list[dict[str, str]]]:
    """Labels of every sample, by its name; read by Prometheus' own parser."""
    found: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


def test_every_metric_is_documented_and_every_documented_metric_exists(server: WebServer) -> None:
    """docs/page.md lists the names that /metrics answers with, no more and no fewer; also of a run that has just
    begun."""
    server.show(checkpoints={"checkpoints": []})
    early = set(samples_of(server.get("/metrics").text))
    server.show(**FULL)
    told = set(samples_of(server.get("/metrics").text))
    documented = set(re.findall(r"^\| `(commonweights_\w+)", (ROOT / "docs/page.md").read_text(), re.M))
    assert told == documented and early < told


def test_the_dashboard_asks_for_what_is_served(server: WebServer) -> None:
    """Every expression of the Grafana dashboard names metrics, labels and values of labels that /metrics has."""
    server.show(**FULL)
    served = samples_of(server.get("/metrics").text)
    dashboard = json.loads((ROOT / "docker/grafana/commonweights.json").read_text())
    targets = [target for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(targets) > 20
    for target in targets:
        expression, names = target["expr"], re.findall(r"commonweights_\w+", target["expr"])
        assert names and set(names) <= set(served), expression
        labels = [labels for name in names for labels in served[name]]
        known = {key for it in labels for key in it}
        matched = dict(re.findall(r'(\w+)=~?"([^"]*)"', expression))
        assert matched.pop("instance") == "$instance", expression  # Prometheus adds that one
        for key, values in matched.items():
            assert set(values.split("|")) <= {it.get(key) for it in labels}, expression
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= known, expression


def test_sections_are_documented(server: WebServer) -> None:
    """docs/page.md has a paragraph for each section the coordinator sends."""
    text = (ROOT / "docs/page.md").read_text()
    for name in ("now", *sections.EACH_ROUND, *sections.EACH_SECOND):
        assert f"| `{name}` |" in text, name


def test_health_is_bad_before_the_first_word(tmp_path: Path) -> None:
    """503 until the coordinator has said something, then 200; the page is there from the start."""
    with web_server(tmp_path) as server:
        assert server.get("/healthz").status == 503 and server.get("/").status == 200
        server.show(now=NOW)
        assert server.get("/healthz").json["ok"] is True


def test_the_server_ends_with_its_coordinator(tmp_path: Path) -> None:
    """Its input ends, so does it, watchers or not: nothing is left behind when a coordinator is killed."""
    with web_server(tmp_path) as server:
        server.show(now=NOW)
        with server.events() as line:
            read_events(line, b"event: now")
            assert server.process.stdin is not None
            server.process.stdin.close()
            assert server.process.wait(10) == 0
