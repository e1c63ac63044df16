"""The coordinator dies and comes back, with real processes on a real (loopback) network."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import pytest

from peer.log.chain import Log
from tests.commands import Command, coordinator, free_port, last_signer, records, run, running, tiny_config, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Run:
    """A coordinator's command, and three peers that have trained some rounds under it."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.folder, self.stack = folder, stack
        config = tiny_config(folder, rounds=0)
        ports = ("--grpc-port", free_port(), "--swarm-port", free_port())
        self.serve = ("serve", config, "--dir", folder / "run", "--host", "127.0.0.1", *ports)
        self.first = self.start()
        ticket = folder / "run" / "ticket.txt"
        until(ticket.is_file, "the ticket is written")
        self.peers = {
            name: stack.enter_context(running("join", ticket, "--dir", folder / name, "--name", name, "--json"))
            for name in ("one", "two", "three")
        }
        until(lambda: records(folder / "run") >= 2 and self.contributors() == 3, "everybody contributes", 240)
        until(
            lambda: all((folder / name / "contacts.json").exists() for name in self.peers), "they know each other", 120
        )

    def start(self, *more: object) -> Command:
        return self.stack.enter_context(running(*self.serve, *more, program="coordinator.cli"))

    def contributors(self) -> int:
        return len(Log.load(self.folder / "run" / "log").accounts.credit)

    def finish(self, leader: Command) -> None:
        """Everybody leaves; all folders verify, and ledger and fold say the same."""
        for peer in self.peers.values():
            peer.interrupt(seconds=40)
            assert peer.code == 0, peer.err
        assert leader.interrupt(seconds=40).code == 0, leader.err
        verdict = run("verify", self.folder / "run", "--json").json
        assert verdict["ok"], verdict["errors"]
        ledger = coordinator("ledger", "--dir", self.folder / "run", "--json").json
        assert {row["peer_id"]: row["credit_tokens"] for row in ledger["peers"]} == verdict["credit"]
        for name in self.peers:
            assert run("verify", self.folder / name, "--json").json["ok"]


def test_rounds_go_on_under_a_peer_and_the_coordinator_leads_again(tmp_path: Path) -> None:
    """SIGKILL of serve in mid-run; a peer's key signs the next records; the same command again leads the run on."""
    with contextlib.ExitStack() as stack:
        swarm = Run(tmp_path, stack)
        own = last_signer(tmp_path / "run")
        swarm.first.process.kill()
        swarm.first.process.wait()
        before = records(tmp_path / "one")
        until(lambda: records(tmp_path / "one") >= before + 4, "rounds without the coordinator")
        assert last_signer(tmp_path / "one") != own
        second = swarm.start()
        until(lambda: records(tmp_path / "run") >= before + 4, "it has caught up")
        until(lambda: last_signer(tmp_path / "run") == own, "it leads again")
        again = records(tmp_path / "run")
        until(lambda: records(tmp_path / "run") >= again + 2, "rounds under it")
        assert swarm.contributors() == 3
        swarm.finish(second)


def test_a_lost_folder_is_begun_again_from_the_key_and_the_peers(tmp_path: Path) -> None:
    """Killed and deleted; with the backup of its key `serve --recover` brings the run back, and leads it."""
    with contextlib.ExitStack() as stack:
        swarm = Run(tmp_path, stack)
        own = last_signer(tmp_path / "run")
        shutil.copy(tmp_path / "run" / "identity.key", tmp_path / "backup.key")
        swarm.first.process.kill()
        swarm.first.process.wait()
        before = records(tmp_path / "one")
        shutil.rmtree(tmp_path / "run")
        second = swarm.start("--recover", "--identity", tmp_path / "backup.key")
        until(lambda: records(tmp_path / "run") > before, "the log is back", 180)
        until(lambda: last_signer(tmp_path / "run") == own, "it leads again")
        swarm.finish(second)
