"""SIGKILL of the coordinator, again and again, while a peer trains: what is on its disk is always whole.

KILLS=30 python -m pytest tests/test_kills.py    for the long version (some five minutes)
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from coordinator.rebuild_ledger import rebuild_ledger
from coordinator.settings import FILE_NAME
from coordinator.store import open_store, queries
from coordinator.store.database import default_url
from coordinator.store.fold import newest_round
from peer.checkpoints.verification import verify_checkpoint
from peer.identity import PeerId
from peer.log.chain import Log
from tests.commands import coordinator, free_port, records, running, tiny_config, until

KILLS = int(os.environ.get("KILLS", "3"))
SEED = int(os.environ.get("KILLS_SEED", "0"))
MOST_SECONDS = float(os.environ.get("KILLS_SECONDS", "12"))  # from a start to its kill: sometimes before it leads

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240 + 60 * KILLS)]


def check_disk(folder: Path) -> None:
    """What a start would find: a valid log, a sound database whose ledger is the log's fold up to some round, and only
    whole checkpoints, as they were signed."""
    log = Log.load(folder / "log")
    with closing(sqlite3.connect(folder / "database.sqlite")) as plain:
        assert plain.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    with open_store(default_url(folder), log.run_id) as store, store.engine.begin() as connection:
        newest = newest_round(connection)
        shared = log.branch(min(newest, log.head.round))
        if newest >= 0 and queries.rounds_page(connection, None, 1)[0].round == shared.head.round:
            held = {PeerId.parse(it.peer_id).public_key: it for it in queries.leaderboard(connection)}
            credit = {key: account.credit_tokens for key, account in held.items() if account.credit_tokens}
            assert credit == shared.accounts.credit
    for checkpoint in (folder / "checkpoints").glob("round-*"):
        verdict = verify_checkpoint(checkpoint)  # files, signature, weights; its place in the log may be another's now
        assert verdict.ok, (checkpoint, verdict.errors)


def test_a_coordinator_that_is_killed_at_any_moment_leaves_a_whole_folder(tmp_path: Path) -> None:
    """Database, log and checkpoints are consistent after every kill; in the end credit is the fold, everywhere."""
    chance = random.Random(SEED)
    config, folder = tiny_config(tmp_path, rounds=0, inner_steps=100), tmp_path / "run"
    folder.mkdir()
    often = "[checkpoints]\nevery_rounds = 1\nkeep_last = 2\n"  # at many a kill one is being written or dropped
    (folder / FILE_NAME).write_text(often)
    ports = ("--grpc-port", free_port(), "--swarm-port", free_port(), "--web-port", 0)
    serve = ("serve", config, "--dir", folder, "--host", "127.0.0.1", *ports, "--json")
    with ExitStack() as stack:
        first = stack.enter_context(running(*serve, program="coordinator.cli"))
        until((folder / "ticket.txt").is_file, "the ticket is written")
        peer = stack.enter_context(running("join", folder / "ticket.txt", "--dir", tmp_path / "peer", "--json"))
        until(lambda: records(folder) >= 2, "two rounds", seconds=120)
        first.interrupt(signal.SIGKILL)
        check_disk(folder)
        for _ in range(KILLS - 1):
            with running(*serve, program="coordinator.cli") as again:
                time.sleep(chance.uniform(0.5, MOST_SECONDS))  # the random moment
                assert again.process.poll() is None, again.wait().err
                again.interrupt(signal.SIGKILL)
            check_disk(folder)
        with running(*serve, program="coordinator.cli") as last:
            before = records(folder)
            until(lambda: records(folder) >= before + 3, "the run goes on", seconds=120)
            until(lambda: coordinator("finish", "--dir", folder).code == 0, "it leads again, and ends the run")
            assert last.wait(120).code == 0, last.err
        report = peer.wait(60)
        assert report.code == 0, report.err
    log = Log.load(folder / "log")
    verdict = verify_checkpoint(max((folder / "checkpoints").glob("round-*")), log)
    assert verdict.ok and verdict.round == log.head.round - 1, verdict.errors
    assert rebuild_ledger(log, folder) == []
    assert report.json["credit_tokens"] == sum(log.accounts.credit.values()) > 0
    check_disk(folder)
