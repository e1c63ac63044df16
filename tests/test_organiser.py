"""The organiser's commands, TLS and an invite-only run, end to end with the programs as people start them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peer.ticket import Ticket
from tests.commands import coordinator, records, run, running, tiny_config, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def readable_in(folder: Path, *secrets: str) -> set[str]:
    """Names of files below `folder` in which one of these can be read."""
    wanted = [secret.encode() for secret in secrets]
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.name for path in files if any(secret in path.read_bytes() for secret in wanted)}


def test_an_invite_only_run_over_tls_from_invitation_to_receipt(tmp_path: Path) -> None:
    """Invite, join, look, void, receipt, verify offline, checkpoint, download, end: each command does what it says, in
    the run's folder or from elsewhere; the ticket carries the certificate's hash; no token is in any log or message."""
    config = tiny_config(tmp_path, rounds=500)
    config.write_text(config.read_text().replace("[run]", '[run]\naccess = "invite"'))
    folder, said = tmp_path / "run", []

    def ask(*arguments: object, code: int = 0) -> str:
        command = coordinator(*arguments, "--dir", folder)
        said.append(command.out + command.err)
        assert command.code == code, command.err
        return command.out.strip()

    serve = (
        "serve",
        config,
        "--dir",
        folder,
        "--host",
        "127.0.0.1",
        "--grpc-port",
        0,
        "--swarm-port",
        0,
        "--tls",
        "--json",
    )
    with running(*serve, program="coordinator.cli") as server:
        until((folder / "ticket.txt").is_file, "the ticket is written")
        ticket = Ticket.parse(str(folder / "ticket.txt"))
        assert ticket.tls and len(ticket.certificate_hash) == 32
        turned_away = run("join", str(ticket), "--dir", tmp_path / "nobody", "--json")
        assert turned_away.code == 2 and "--invite" in turned_away.err and "Traceback" not in turned_away.err
        token = ask("invite", "--note", "for anna")
        with running("join", str(ticket), "--dir", tmp_path / "anna", "--name", "anna", "--team", "them", "--json",
                     COMMONWEIGHTS_INVITE=token) as anna:  # fmt: skip
            until(lambda: records(folder) >= 3, "three rounds")
            peer = run("identity", "show", "--dir", tmp_path / "anna").out.strip()
            status = run("status", str(ticket), "--json").json
            assert [item["name"] for item in status["peers"]] == ["anna"]
            receipt = run("receipt", str(ticket), peer, "--out", tmp_path / "receipt.bin")
            assert receipt.code == 0, receipt.err
            secret = (folder / "admin-token").read_text().strip()
            for key, code in (("not-the-organisers-token", 2), (secret, 0)):  # from elsewhere, without the folder
                elsewhere = run("pause", "--ticket", str(ticket), program="coordinator.cli",
                                COMMONWEIGHTS_ADMIN_TOKEN=key)  # fmt: skip
                assert elsewhere.code == code, elsewhere.err
                said.append(elsewhere.out + elsewhere.err)
            round_ = records(folder)
            ask("revoke", "--peer", peer, "--round", round_, "--reason", "a test of the organiser")
            ask("revoke", "--peer", peer, "--round", 999, "--reason", "there is no such round", code=1)
            ask("resume")
            until(lambda: records(folder) > round_, "the run goes on")
            about = run("status", str(ticket), "--peer", peer, "--json").json
            assert about["team"] == "them" and about["credit_tokens"] > 0
            assert any("voided" in sentence for sentence in about["hindrances"]), about
            assert "anna" in run("status", str(ticket), "--peer", peer).out
            assert "for anna" in ask("invites")
            assert "round-" in ask("checkpoint")
            fetched = run("download", str(ticket), "--dir", tmp_path / "fetched", "--json").json["checkpoint"]
            assert run("verify", fetched, "--run", str(ticket), "--json").json["log_checked"]
            ask("finish")
            ended = server.wait(90)
            assert ended.code == 0 and ended.json["finished"], ended.err
            report = anna.wait(60)
            assert report.code == 0, report.err
    ask("pause", code=1)  # it is not running any more
    proven = run("verify", "--receipt", tmp_path / "receipt.bin", "--run", ticket.run_id.hex(), "--json")
    assert proven.code == 0 and proven.json["peer_id"] == peer and proven.json["team"] == "them"
    forged = tmp_path / "forged.bin"
    content = (tmp_path / "receipt.bin").read_bytes()
    forged.write_bytes(content[:-10] + bytes([content[-10] ^ 1]) + content[-9:])
    assert run("verify", "--receipt", forged).code == 3
    assert run("verify", folder, "--json").code == 0
    teams = json.loads(ask("ledger", "--teams", "--json").splitlines()[-1])["teams"]
    assert [team["team"] for team in teams] == ["them"] and report.json["credit_tokens"] == teams[0]["credit_tokens"]
    assert ask("ledger", "--teams", "--csv").splitlines()[0] == "team,credit_tokens,contributions,peers"
    assert readable_in(tmp_path, token, secret) == {"admin-token"}
    shown = [*said[1:], ended.out, ended.err, report.out, report.err]
    assert not [text for text in shown if token in text or secret in text]


def test_a_ledger_that_was_lost_is_folded_again(tmp_path: Path) -> None:
    """Without the database the ledger is the log's all the same; the rebuild makes one that holds as much."""
    config, folder = tiny_config(tmp_path, rounds=2), tmp_path / "run"
    assert coordinator("demo", config, "--peers", 1, "--dir", folder, seconds=240).code == 0
    whole = coordinator("ledger", "--dir", folder, "--rebuild", "--json")
    assert whole.code == 0 and "0 differences" in whole.err, whole.err
    for file in folder.glob("database.sqlite*"):
        file.unlink()
    again = coordinator("ledger", "--dir", folder, "--rebuild", "--json")
    assert again.code == 0 and again.json == whole.json and "0 differences" not in again.err
    assert "0 differences" in coordinator("ledger", "--dir", folder, "--rebuild").err
