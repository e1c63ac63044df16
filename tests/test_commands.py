"""The commands of both programs, run as processes over real hivemind, gRPC and files."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import (
    coordinator,
    free_port,
    journal,
    last_signer,
    processes_with,
    records,
    run,
    running,
    tiny_config,
    until,
)

pytestmark = [pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """The folder of a demo of three peers and four rounds, and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    config = tiny_config(folder)
    command = coordinator("demo", config, "--peers", 3, "--rounds", 4, "--dir", folder / "run", "--json", seconds=240)
    assert command.code == 0, command.err
    return folder / "run", command.json


@pytest.mark.xdist_group("demo")
def test_demo_trains_and_accounts(finished: tuple[Path, dict[str, object]]) -> None:
    """Equal digests, a falling loss, credit that adds up to the tokens and some for everybody, a checkpoint, a log."""
    folder, result = finished
    assert result["digests_equal"] is True and result["rounds"] == 4
    assert result["loss_last"] < result["loss_first"]  # type: ignore[operator]
    peers = result["peers"]
    assert isinstance(peers, list) and len(peers) == 3
    assert sum(peer["credit_tokens"] for peer in peers) == result["tokens"]
    assert all(peer["credit_tokens"] > 0 for peer in peers)
    assert Path(str(result["checkpoint"]), "model.safetensors").is_file() and Path(str(result["log"])).is_dir()
    assert not processes_with(str(folder)), "a process outlived the demo"


@pytest.mark.xdist_group("demo")
def test_verify_replays_the_demo_and_finds_a_flipped_byte(finished: tuple[Path, dict[str, object]]) -> None:
    """Same digest, same credit; one changed byte in a record: exit code 3 and the round by name. Peers' folders too."""
    folder, result = finished
    verdict = run("verify", folder, "--json")
    assert verdict.code == 0 and verdict.json["ok"] is True
    assert verdict.json["state_digest"] == result["state_digest"]
    peers = result["peers"]
    assert isinstance(peers, list)
    assert verdict.json["credit"] == {peer["peer_id"]: peer["credit_tokens"] for peer in peers}
    assert run("verify", folder / "peers" / "peer-1", "--json").json["state_digest"] == result["state_digest"]
    record = folder / "log" / "00000002.record"
    content = bytearray(record.read_bytes())
    content[len(content) // 2] ^= 1
    record.write_bytes(content)
    damaged = run("verify", folder, "--json")
    content[len(content) // 2] ^= 1
    record.write_bytes(content)
    assert damaged.code == 3 and "round 2:" in damaged.json["errors"][0]


@pytest.mark.xdist_group("demo")
def test_ledger_is_the_fold_of_the_log(finished: tuple[Path, dict[str, object]]) -> None:
    """As JSON, CSV and table, with the names that the peers gave."""
    folder, result = finished
    ledger = coordinator("ledger", "--dir", folder, "--json", "--csv")
    assert ledger.json["tokens"] == result["tokens"]
    assert {row["name"] for row in ledger.json["peers"]} == {"peer-1", "peer-2", "peer-3"}
    assert ledger.out.startswith("peer_id,name,team,credit_tokens,")
    assert "credit" in coordinator("ledger", "--dir", folder).out


@pytest.mark.xdist_group("demo")
def test_the_same_demo_again_says_the_same_at_once(finished: tuple[Path, dict[str, object]]) -> None:
    """A finished run is not trained further."""
    folder, result = finished
    config = folder.parent / "tiny.toml"
    again = coordinator("demo", config, "--peers", 3, "--rounds", 4, "--dir", folder, "--json")
    assert again.code == 0 and again.json["state_digest"] == result["state_digest"]
    other = coordinator("demo", config, "--peers", 3, "--rounds", 5, "--dir", folder)
    assert other.code == 2 and "run.rounds" in other.err and other.err.count("\n") <= 2


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a coordinator that serves an endless run on ports of its own."""
    folder = tmp_path_factory.mktemp("serve")
    config = tiny_config(folder, rounds=0)
    swarm_port = free_port()
    (folder / "swarm-port").write_text(str(swarm_port))
    ports = ("--grpc-port", free_port(), "--swarm-port", swarm_port)
    arguments = ("serve", config, "--dir", folder / "run", "--host", "127.0.0.1", *ports, "--json")
    with running(*arguments, program="coordinator.cli") as command:
        until((folder / "run" / "ticket.txt").is_file, "the ticket is written")
        yield folder / "run"
        command.interrupt()
        assert command.code in (0, 130), command.err


@pytest.mark.xdist_group("serve")
def test_join_with_nothing_but_the_ticket(served: Path, tmp_path: Path) -> None:
    """Two peers contribute; a third that comes later contributes too; status tells; every log replays to its digest."""
    ticket = (served / "ticket.txt").read_text().strip()
    with running("join", ticket, "--dir", tmp_path / "a", "--name", "anna", "--json") as first:
        until(lambda: records(served) >= 3, "three rounds")
        second = run("join", served / "ticket.txt", "--dir", tmp_path / "b", "--rounds", 2, "--json")
        assert second.code == 0, second.err
        assert second.json["rounds_contributed"] == 2 and second.json["credit_tokens"] == second.json["tokens"] > 0
        status = run("status", ticket, "--json").json
        assert status["coordinator_alive"] and "anna" in [peer["name"] for peer in status["peers"]]
        assert status["round"] >= 3 and status["tokens"] > 0
        assert "anna" in run("status", ticket).out
        first.interrupt()
        assert first.code == 0, first.err
    for report, folder in ((first.json, tmp_path / "a"), (second.json, tmp_path / "b")):
        verdict = run("verify", folder, "--json").json
        assert verdict["ok"], verdict
        assert verdict["state_digest"] == report["state_digest"]
    assert not processes_with(str(tmp_path)), "a process outlived its command"


@pytest.mark.xdist_group("serve")
def test_a_port_in_use_is_said_in_one_line(served: Path, tmp_path: Path) -> None:
    """Exit code 2, the option's name, no traceback."""
    port = (served.parent / "swarm-port").read_text()
    config = tiny_config(tmp_path)
    command = coordinator(
        "serve", config, "--dir", tmp_path / "run", "--host", "127.0.0.1", "--swarm-port", port, "--grpc-port", 0
    )
    assert command.code == 2 and "port" in command.err and "Traceback" not in command.err, command.err


@pytest.mark.parametrize("seconds", [1.0, 4.0, 12.0, 20.0])
def test_ctrl_c_of_a_demo_ends_it_cleanly_and_the_same_command_goes_on(tmp_path: Path, seconds: float) -> None:
    """While importing, preparing, starting peers or training: over within ten seconds, no process left, credit kept."""
    config = tiny_config(tmp_path, rounds=0)
    arguments = ("demo", config, "--peers", 2, "--dir", tmp_path / "run", "--json")
    with running(*arguments, program="coordinator.cli") as command:
        with pytest.raises(subprocess.TimeoutExpired):
            command.wait(seconds)
        command.interrupt(seconds=11)
        assert command.code == 130 and "Traceback" not in command.err, command.err
    assert not processes_with(str(tmp_path / "run")), "a process outlived Ctrl-C"
    before = run("verify", tmp_path / "run", "--json").json["credit"] if records(tmp_path / "run") else {}
    if seconds < 20:
        return
    done = records(tmp_path / "run")
    with running(*arguments, program="coordinator.cli") as command:
        until(lambda: records(tmp_path / "run") > done, "the run goes on")
        command.interrupt(signal.SIGTERM, seconds=11)
    after = run("verify", tmp_path / "run", "--json").json
    assert after["ok"] and all(after["credit"][peer] >= tokens for peer, tokens in before.items())


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("join", "cw1nonsense"), 2, "ticket"),
        (("join", "no/such/file"), 2, "ticket"),
        (("status", "hello"), 2, "ticket"),
        (("verify", "/no/such/folder"), 2, "holds no run"),
        (("identity", "show", "--dir", "/no/such/folder"), 2, "identity"),
    ],
)
def test_mistakes_of_a_peers_person_are_said_in_one_line(arguments: tuple[str, ...], code: int, says: str) -> None:
    """Exit code, what is wrong, and no traceback."""
    command = run(*arguments)
    assert command.code == code and says in command.err, command.err
    assert "Traceback" not in command.err and len(command.err.strip().splitlines()) == 1


def test_mistakes_in_a_config_name_the_key(tmp_path: Path) -> None:
    """An unknown key, a missing data file, a missing config: exit code 2 or 1, one line."""
    config = tiny_config(tmp_path)
    text = config.read_text()
    config.write_text(text.replace("batch_sequences", "batch_sequence"))
    command = coordinator("demo", config, "--dir", tmp_path / "run")
    assert command.code == 2 and "train.batch_sequence" in command.err and "did you mean" in command.err
    config.write_text(text.replace('path = "', 'path = "/no/such'))
    command = coordinator("demo", config, "--dir", tmp_path / "run")
    assert command.code in (1, 2) and "data.source.path" in command.err and "Traceback" not in command.err, command.err
    command = coordinator("serve", tmp_path / "none.toml", "--dir", tmp_path / "run")
    assert command.code == 2 and "no such config file" in command.err


def test_an_unreachable_coordinator_is_said_in_one_line(finished_ticket: str) -> None:
    """status says where nobody answers, within a minute."""
    asking = run("status", finished_ticket, seconds=60)
    assert asking.code == 1 and "does not answer" in asking.err and "Traceback" not in asking.err, asking.err


@pytest.fixture
def finished_ticket() -> str:
    """A ticket whose coordinator does not run."""
    from peer.identity import Identity
    from peer.ticket import Ticket

    port = free_port()
    return str(Ticket(bytes(32), Identity.new().peer_id, (f"127.0.0.1:{port}",), (f"/ip4/127.0.0.1/tcp/{port}",)))


def test_identity_survives_export_and_import(tmp_path: Path) -> None:
    """The same peer id on the other side; a wrong passphrase and a second identity are refused."""
    made = run("identity", "new", "--dir", tmp_path / "a")
    assert made.code == 0 and made.out.startswith("12D3KooW")
    assert run("identity", "new", "--dir", tmp_path / "a").code == 2
    exported = run("identity", "export", "--dir", tmp_path / "a", COMMONWEIGHTS_PASSPHRASE="open sesame")
    (tmp_path / "exported").write_text(exported.out)
    wrong = run("identity", "import", tmp_path / "exported", "--dir", tmp_path / "b", COMMONWEIGHTS_PASSPHRASE="no")
    assert wrong.code == 2 and "passphrase" in wrong.err
    right = run(
        "identity", "import", tmp_path / "exported", "--dir", tmp_path / "b", COMMONWEIGHTS_PASSPHRASE="open sesame"
    )
    assert right.out == made.out == run("identity", "show", "--dir", tmp_path / "b").out


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system")
def test_a_full_disk_is_said_in_one_line(tmp_path: Path) -> None:
    """A demo in a folder with 300 kB left ends with what to do, not with a traceback, and leaves no process."""
    config = tiny_config(tmp_path)
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", small], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        command = coordinator("demo", config, "--peers", 1, "--dir", small / "run")
        assert command.code == 1 and "Traceback" not in command.err, command.err
        assert "space" in command.err or "room" in command.err or "full" in command.err
        assert not processes_with(str(small))
    finally:
        subprocess.run(["umount", "-l", small], check=True)


def test_a_peer_waits_for_its_coordinator(tmp_path: Path) -> None:
    """join before the coordinator is up: it says that it tries again, without a traceback, and contributes when the
    coordinator is there. A second peer in its folder is refused and told which process has it."""
    config = tiny_config(tmp_path, rounds=0)
    ports = ("--grpc-port", free_port(), "--swarm-port", free_port())
    serve = ("serve", config, "--dir", tmp_path / "run", "--host", "127.0.0.1", *ports)
    with running(*serve, program="coordinator.cli") as first:
        until((tmp_path / "run" / "ticket.txt").is_file, "the ticket is written")
        first.interrupt()
    with running("join", tmp_path / "run" / "ticket.txt", "--dir", tmp_path / "peer", "--json") as peer:
        until(lambda: any("trying again in" in line["message"] for line in journal(tmp_path / "peer")), "it says so")
        second = run("join", tmp_path / "run" / "ticket.txt", "--dir", tmp_path / "peer")
        assert second.code == 2 and f"process {peer.process.pid}" in second.err, second.err
        with running(*serve, program="coordinator.cli") as again:
            until(lambda: records(tmp_path / "run") >= 2, "two rounds")
            peer.interrupt()
            again.interrupt()
    assert peer.code == 0 and "Traceback" not in peer.err and peer.json["rounds_contributed"] >= 1, peer.err
    rounds = [line for line in journal(tmp_path / "peer") if "round" in line]
    assert rounds[-1]["rounds_contributed"] >= 1 and rounds[-1]["loss"] > 0


def test_a_killed_coordinator_comes_back_and_its_peers_go_on(tmp_path: Path) -> None:
    """SIGKILL of serve in mid-run; the same command leads the log on, and the peer that stayed contributes to it."""
    config = tiny_config(tmp_path, rounds=0)
    ports = ("--grpc-port", free_port(), "--swarm-port", free_port())
    serve = ("serve", config, "--dir", tmp_path / "run", "--host", "127.0.0.1", *ports)
    with running(*serve, program="coordinator.cli") as first:
        until((tmp_path / "run" / "ticket.txt").is_file, "the ticket is written")
        with running("join", tmp_path / "run" / "ticket.txt", "--dir", tmp_path / "peer", "--json") as peer:
            until(lambda: records(tmp_path / "run") >= 3, "three rounds")
            first.process.kill()
            first.process.wait()
            before, own = records(tmp_path / "run"), last_signer(tmp_path / "run")
            with running(*serve, program="coordinator.cli") as second:
                until(lambda: records(tmp_path / "run") >= before + 2, "two rounds after the restart")
                until(lambda: last_signer(tmp_path / "run") == own, "the coordinator leads again")
                peer.interrupt()
                second.interrupt()
                assert peer.code == 0 and second.code == 0, (peer.err, second.err)
    verdict = run("verify", tmp_path / "run", "--json").json
    assert verdict["ok"], verdict["errors"]
    assert verdict["credit"][peer.json["peer_id"]] >= peer.json["credit_tokens"] > 0
