"""The two commands on a small internet: volunteers behind real NAT, on slow links, contribute like anybody else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from peer.identity import Identity
from peer.ticket import Ticket
from protos import log_pb2
from tests import netns
from tests.commands import records, tiny_config, until

WHY_NOT = netns.missing()
pytestmark = [pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or ""), pytest.mark.timeout(420)]

ROUNDS = 4
LOOKED_AT = 100  # records


@pytest.fixture
def internet() -> Iterator[netns.Internet]:
    with netns.Internet() as net:
        yield net


def config(folder: Path, rounds: int = ROUNDS) -> Path:
    """A model of 0.9 million parameters: a contribution, 1.8 MB in fp16, keeps a link of 10 Mbit/s busy for 1.5 s."""
    path = tiny_config(folder, rounds=rounds, inner_steps=3)
    text = path.read_text().replace("hidden_size = 16", "hidden_size = 128").replace("= 32\nnum", "= 512\nnum")
    text = text.replace("num_hidden_layers = 2", "num_hidden_layers = 3").replace(
        "silence_seconds = 4", "silence_seconds = 8"
    )
    path.write_text(text + '[codec]\nname = "fp16"\n')
    return path


class Program:
    """One of the commands on a host, its words in files."""

    def __init__(self, host: netns.Host, folder: Path, module: str, *arguments: object) -> None:
        self.out, self.err = folder.with_suffix(".out"), folder.with_suffix(".err")
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = host.popen(
                [sys.executable, "-m", module, *arguments, "--dir", folder, "--json"],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def result(self, seconds: float = 240) -> dict[str, Any]:
        assert self.process.wait(seconds) == 0, self.err.read_text()[-2000:]
        value: dict[str, Any] = json.loads(self.out.read_text().splitlines()[-1])
        return value


def serve(host: netns.Host, folder: Path, config: Path) -> Program:
    ports = ("--grpc-port", 7070, "--swarm-port", 7072)
    program = Program(host, folder, "coordinator.cli", "serve", config, "--host", host.address, *ports)
    until(lambda: (folder / "ticket.txt").exists() or program.process.poll() is not None, "the ticket is there")
    assert program.process.poll() is None, program.err.read_text()
    return program


def join(host: netns.Host, folder: Path, ticket: Path, *options: object) -> Program:
    return Program(host, folder, "peer.cli", "join", ticket, "--name", folder.name, "--device", "cpu", *options)


def test_homes_behind_nat_on_slow_links_contribute_fully(internet: netns.Internet, tmp_path: Path) -> None:
    """Two peers behind two routers and a public one, all three on 10 Mbit/s; only the coordinator's link is fast. Every
    contribution of the two that nobody can dial reaches the other, their uplinks carry it about once, nobody is taken
    for gone, and all end with the same bits."""
    server, folder = internet.host("server"), tmp_path / "run"
    leading = serve(server, folder, config(tmp_path))
    hosts = [internet.home("first").host("alice"), internet.home("second").host("bob"), internet.host("carol")]
    peers = {}
    for host, name in zip(hosts, ("alice", "bob", "carol"), strict=True):
        host.limit(10, 10, queue_ms=1000)
        peers[name] = join(host, tmp_path / name, folder / "ticket.txt")
    reports = {name: peer.result() for name, peer in peers.items()}
    status = leading.result()
    assert int(status["round"]) == ROUNDS
    assert {report["state_digest"] for report in reports.values()} == {status["state_digest"]}
    assert " is gone" not in leading.err.read_text()
    payload = max(path.stat().st_size for path in (tmp_path / "alice" / "blobs").glob("??/??/*"))
    for name in ("alice", "bob"):
        report = reports[name]
        assert report["rounds_contributed"] >= ROUNDS - 1, "it may have joined after the first"
        assert report["bytes_sent"] <= 1.3 * ROUNDS * payload
        text = peers[name].err.read_text()
        assert "Traceback" not in text and "diverged" not in text


def test_the_run_is_entered_without_the_coordinator(internet: netns.Internet, tmp_path: Path) -> None:
    """The coordinator is killed. A peer behind NAT that knew the run starts again, with its old ticket; a newcomer
    behind another NAT comes in with the ticket in a peer's folder. Both contribute to rounds that others lead."""
    server, folder = internet.host("server"), tmp_path / "run"
    leading = serve(server, folder, tiny_config(tmp_path, rounds=100_000, inner_steps=30))
    homes = [internet.home("first").host("alice"), internet.home("second").host("dave")]
    carol = join(internet.host("carol"), tmp_path / "carol", folder / "ticket.txt")
    alice = join(homes[0], tmp_path / "alice", folder / "ticket.txt")
    until(lambda: records(tmp_path / "carol") >= 3 and contributed("alice", tmp_path / "carol", 0), "both contribute")
    ticket = tmp_path / "carol" / "ticket.txt"
    until(lambda: ticket.exists() and "/p2p/" in str(Ticket.parse(str(ticket)).swarm_addresses), "her ticket names her")
    until(lambda: knows("alice", "carol", tmp_path), "she knows whom to ask at her next start")
    for program in (leading, alice):
        os.killpg(program.process.pid, signal.SIGKILL)
    alice = join(homes[0], tmp_path / "alice", folder / "ticket.txt")
    dave = join(homes[1], tmp_path / "dave", ticket)

    last = records(folder)

    def led_without(name: str) -> bool:
        return contributed(name, tmp_path / "carol", last + 1)

    until(lambda: led_without("alice") and led_without("dave"), "both contribute without the coordinator", 180)
    for program in (carol, alice, dave):
        assert program.process.poll() is None
        text = program.err.read_text()
        assert "Traceback" not in text, text


def knows(name: str, other: str, folder: Path) -> bool:
    contacts = folder / name / "contacts.json"
    return contacts.exists() and str(Identity.load(folder / other / "identity.key").peer_id) in contacts.read_text()


def contributed(name: str, witness: Path, since: int) -> bool:
    """Whether `name` has a contribution in a record of `witness` from round `since` on."""
    key = witness.with_name(name) / "identity.key"
    if not key.exists():
        return False
    own = Identity.load(key).peer_id.public_key
    newest = sorted((witness / "log").glob("*.record"))[since:][-LOOKED_AT:]  # a log grows fast, and is asked often
    found = [log_pb2.Record.FromString(log_pb2.Signed.FromString(path.read_bytes()).body) for path in newest]
    return any(item.contribution.signer == own for record in found for item in record.accepted)
