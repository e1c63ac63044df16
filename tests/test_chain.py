"""The log: what may follow the head, what a folder gives back, and what becomes of damage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peer.errors import VerificationError
from peer.identity import Identity
from peer.log.chain import Log, opened
from peer.log.rules import equivocation, proof_fault
from protos import log_pb2
from protos.signing import sign
from tests.small_run import contribution, start_log

COORDINATOR = Identity.new()
PEERS = sorted((Identity.new() for _ in range(2)), key=lambda identity: identity.peer_id.public_key)


def accepted(
    log: Log, index: int, norm: float = 1.0, signer: Identity | None = None, **fields: Any
) -> log_pb2.Accepted:
    """The contribution of one of `PEERS`: its own four positions, its own payload."""
    start = 8 * log.head.round + 4 * index
    fields = {"consumed": [(start, start + 4)], **fields}
    item = contribution(log, fields.pop("payload_hash", bytes([index + 1]) * 32), 100, **fields)
    return log_pb2.Accepted(contribution=sign(item, (signer or PEERS[index]).private_key), norm=norm)


def record(log: Log, **fields: Any) -> log_pb2.Record:
    """A good record after the head, with one contribution of each peer; `fields` change what it says."""
    value = {
        "run_id": log.run_id,
        "round": log.head.round + 1,
        "previous_hash": log.head.hash,
        "time_seconds": 2.0,
        "base_digest": log.origin.genesis.state_digest,
        "accepted": [accepted(log, 0), accepted(log, 1)],
        "data_cursor": 8 * (log.head.round + 1),
        "deadline_seconds": 1.0,
        **fields,
    }
    return log_pb2.Record(**value)


def grown(folder: Path | None = None, rounds: int = 1) -> Log:
    log = start_log(COORDINATOR, folder)
    for _ in range(rounds):
        log.append(sign(record(log), COORDINATOR.private_key))
    return log


def test_a_good_record_is_appended_and_accounted_for() -> None:
    """Credit, positions and cursor follow from it."""
    log = grown(rounds=2)
    assert log.head.round == 2 and log.accounts.tokens == 2 * 2 * 4 * 32
    assert log.accounts.credit == {peer.peer_id.public_key: 2 * 4 * 32 for peer in PEERS}
    assert log.accounts.accepted.pairs == ((0, 16),) and log.accounts.data_cursor == 16


def test_time_may_go_backwards() -> None:
    """A coordinator's clock is no one's business but people's: speed is then unknown, and nothing else."""
    log = grown()
    log.append(sign(record(log, time_seconds=-5.0), COORDINATOR.private_key))
    assert log.accounts.tokens_per_second == 0.0


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("another run", lambda log: {"run_id": bytes(32)}),
        ("says round 3", lambda log: {"round": 3}),
        ("does not follow", lambda log: {"previous_hash": bytes(32)}),
        ("may carry a genesis", lambda log: {"genesis": log.origin.genesis}),
        ("digest is not 32", lambda log: {"base_digest": b"short"}),
        ("not a finite", lambda log: {"time_seconds": float("nan")}),
        ("not a finite", lambda log: {"deadline_seconds": float("inf")}),
        ("cursor moves", lambda log: {"data_cursor": 0}),
        ("cursor moves", lambda log: {"data_cursor": 1 << 63}),
        ("beyond the data cursor", lambda log: {"data_cursor": 15}),
        ("final record", lambda log: {"final": True}),
        ("cursor moves", lambda log: {"data_cursor": 1 << 50}),
        ("refused peer's key", lambda log: {"refused": [log_pb2.Refused(peer=b"x", reason="no")]}),
        ("order of their signers", lambda log: {"accepted": [accepted(log, 1), accepted(log, 0)]}),
        ("order of their signers", lambda log: {"accepted": [accepted(log, 0), accepted(log, 1, signer=PEERS[0])]}),
        ("copy", lambda log: {"accepted": [accepted(log, 0), accepted(log, 1, payload_hash=b"\1" * 32)]}),
        ("claimed twice", lambda log: {"accepted": [accepted(log, 0), accepted(log, 1, consumed=[(11, 13)])]}),
        ("merged before", lambda log: {"accepted": [accepted(log, 0, consumed=[(7, 9)])]}),
        ("another state", lambda log: {"accepted": [accepted(log, 0, base_digest=bytes(32))]}),
        ("norm is not", lambda log: {"accepted": [accepted(log, 0, norm=float("nan"))]}),
        ("norm is not", lambda log: {"accepted": [accepted(log, 0, norm=-1.0)]}),
        ("for round 1", lambda log: {"accepted": [accepted(log, 0, round=1)]}),
        ("another record 1", lambda log: {"accepted": [accepted(log, 0, previous_hash=bytes(32))]}),
        ("this run uses", lambda log: {"accepted": [accepted(log, 0, codec="sparse/64")]}),
        ("do not match", lambda log: {"accepted": [accepted(log, 0, tokens=1)]}),
        ("makes no sense", lambda log: {"accepted": [accepted(log, 0, mean_loss=float("inf"))]}),
        ("absurdly far", lambda log: {"accepted": [accepted(log, 0, consumed=[(0, (1 << 64) - 1)])]}),
        ("private data", lambda log: {"accepted": [accepted(log, 0, consumed=[], tokens=1 << 40, private_data="x")]}),
        ("private data", lambda log: {"accepted": [accepted(log, 0, private_data="x")]}),
        ("too long", lambda log: {"accepted": [accepted(log, 0, consumed=[], tokens=1, private_data="x" * 300)]}),
        ("larger than", lambda log: {"refused": [log_pb2.Refused(peer=bytes(32), reason="x" * (4 << 20))]}),
    ],
)
def test_a_record_that_makes_no_sense_is_refused(reason: str, change: Callable[[Log], dict[str, Any]]) -> None:
    """With its round and the reason, and the log as it was before."""
    log = grown()
    with pytest.raises(VerificationError, match=reason) as caught:
        log.append(sign(record(log, **change(log)), COORDINATOR.private_key))
    assert str(caught.value).startswith("round 2: ")
    assert log.head.round == 1 and len(log.accounts.losses) == 1


@pytest.mark.parametrize(("codec", "welcome"), [
    ("dense4", False), ("lowbit2", True), ("sign", True), ("sparse/16", True), ("sparse/32", False), ("none", False),
])  # fmt: skip
def test_any_rung_between_the_two_may_be_in_a_record_and_no_other(codec: str, welcome: bool) -> None:
    """Rungs mix in one round; one that is richer than the run's or sparser than its sparsest is refused by name."""
    log = start_log(COORDINATOR, codec={"name": "lowbit2", "down_to": "sparse/16"})
    both = sign(record(log, accepted=[accepted(log, 0), accepted(log, 1, codec=codec)]), COORDINATOR.private_key)
    if welcome:
        assert [item.codec for _, item in log.append(both).contributions] == ["lowbit2", codec]
        return
    with pytest.raises(VerificationError, match=f"codec '{codec}'; this run uses 'lowbit2', .*'sparse/16'$"):
        log.append(both)


def test_a_newcomer_sequences_nothing_and_nobody_after_the_end() -> None:
    """Keys cost nothing, so credit in the log comes first; and no signature may be changed."""
    log = grown()
    with pytest.raises(VerificationError, match="does not sequence this run: it has no credit"):
        log.append(sign(record(log, term=1), Identity.new().private_key))
    changed = sign(record(log), COORDINATOR.private_key)
    changed.signature = bytes(64)
    with pytest.raises(VerificationError, match="round 2: .*not signed"):
        log.append(changed)
    with pytest.raises(VerificationError, match="before its time"):
        log.append(sign(record(log, accepted=[], final=True, term=1), PEERS[0].private_key))
    log.append(sign(record(log, accepted=[], final=True), COORDINATOR.private_key))
    assert log.finished
    with pytest.raises(VerificationError, match="ended with round 2"):
        log.append(sign(record(log), COORDINATOR.private_key))


def test_a_term_has_one_signer_and_never_falls() -> None:
    """The coordinator, a peer with credit, the coordinator again: each with a higher term, and no other way."""
    log = grown()
    one, two = PEERS
    with pytest.raises(VerificationError, match="term 0 is that of"):
        log.append(sign(record(log), one.private_key))
    log.append(sign(record(log, term=3), one.private_key))
    log.append(sign(record(log, term=3), one.private_key))
    for key, term in [(two, 3), (COORDINATOR, 3), (COORDINATOR, 2), (one, 2), (two, 1 << 40)]:
        with pytest.raises(VerificationError, match="term"):
            log.append(sign(record(log, term=term), key.private_key))
    log.append(sign(record(log, term=4), COORDINATOR.private_key))
    assert [entry.record.term for entry in log.entries] == [0, 0, 3, 3, 4]


def two_tales(log: Log, teller: Identity, **fields: Any) -> log_pb2.Equivocation:
    tales = [
        opened(sign(record(log, time_seconds=at, **fields), teller.private_key), log.head.round + 1)
        for at in (5.0, 6.0)
    ]
    proof = equivocation(*tales)
    assert proof is not None and equivocation(*reversed(tales)) == proof and equivocation(tales[0], tales[0]) is None
    return proof


def test_who_tells_two_tales_is_banned_by_a_later_record() -> None:
    """From the record with the proof on, neither its records nor its contributions are taken, and a folder says so
    too."""
    log = grown()
    liar, honest = PEERS
    proof = two_tales(log, liar, term=1)
    assert proof_fault(proof, log.run_id) == ""
    log.append(proof.first)
    log.append(sign(record(log, term=2, accepted=[], equivocations=[proof]), COORDINATOR.private_key))
    assert log.accounts.banned == {liar.peer_id.public_key}
    with pytest.raises(VerificationError, match="banned"):
        log.append(sign(record(log, term=3), liar.private_key))
    with pytest.raises(VerificationError, match="contribution of .* banned"):
        log.append(sign(record(log, term=2), COORDINATOR.private_key))
    with pytest.raises(VerificationError, match="each proven once"):
        log.append(sign(record(log, term=2, accepted=[], equivocations=[proof]), COORDINATOR.private_key))
    log.append(sign(record(log, term=3, accepted=[accepted(log, 1)]), honest.private_key))


def test_what_proves_nothing_bans_nobody() -> None:
    """One record twice, two terms, another run, a changed byte."""
    log, liar = grown(), PEERS[0]
    good = two_tales(log, liar, term=1)
    other_term = sign(record(log, term=2), liar.private_key)
    for proof, run_id in [
        (log_pb2.Equivocation(first=good.first, second=good.first), log.run_id),
        (log_pb2.Equivocation(first=good.second, second=good.first), log.run_id),
        (log_pb2.Equivocation(first=good.first, second=other_term), log.run_id),
        (log_pb2.Equivocation(first=good.first), log.run_id),
        (good, bytes(32)),
    ]:
        assert proof_fault(proof, run_id)
    changed = log_pb2.Equivocation()
    changed.CopyFrom(good)
    changed.second.body += b"x"
    with pytest.raises(VerificationError, match="equivocation of"):
        log.append(sign(record(log, equivocations=[changed]), COORDINATOR.private_key))
    assert not log.accounts.banned


def test_a_genesis_of_another_run_is_refused() -> None:
    """The run's id is the hash of its genesis; a ticket names it."""
    genesis = start_log(COORDINATOR).head.signed
    other = start_log(Identity.new())
    with pytest.raises(VerificationError, match="round 0: this is run"):
        Log.start(genesis, run_id=other.run_id)
    with pytest.raises(VerificationError, match="round 0: .*not a genesis"):
        Log.start(grown().head.signed)


def test_a_folder_gives_back_what_was_appended(tmp_path: Path) -> None:
    """And remembers nothing of a write that was torn before it was whole."""
    log = grown(tmp_path, rounds=3)
    (tmp_path / "00000004.tmp").write_bytes(b"torn")
    again = Log.load(tmp_path)
    assert again.head.hash == log.head.hash and again.accounts == log.accounts
    assert list(again.records(1, 2, 1 << 20)) == [log.entries[1].signed, log.entries[2].signed]
    assert len(list(again.records(1, 9, 1))) == 1, "one record at least, however large"


DAMAGE: dict[str, Callable[[Path], object]] = {
    "torn": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "empty": lambda path: path.write_bytes(b""),
    "flipped": lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
    "missing": lambda path: path.unlink(),
    "enormous": lambda path: path.write_bytes(bytes(9 << 20)),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("round_", [2, 3])
def test_damage_is_named_or_cut_off(tmp_path: Path, round_: int, damage: str) -> None:
    """Who reads only refuses and names the round; a node keeps what is good, fetches the rest again, and can put
    everything back as it was."""
    log = grown(tmp_path, rounds=3)
    DAMAGE[damage](tmp_path / f"{round_:08d}.record")
    if damage != "missing" or round_ < 3:  # without its last record a log is just shorter
        with pytest.raises(VerificationError, match=f"round {round_}: "):
            Log.load(tmp_path)
    cut = Log.load(tmp_path, cut_damage=True)
    assert cut.head.hash == log.entries[round_ - 1].hash
    if damage != "missing" or round_ < 3:
        assert f"round {round_}: " in cut.damage
        cut.put_back()
        with pytest.raises(VerificationError, match=f"round {round_}: "):
            Log.load(tmp_path)
        cut = Log.load(tmp_path, cut_damage=True)
    assert Log.load(tmp_path).head.round == round_ - 1, "and the folder is whole again"
    for entry in log.entries[round_:]:
        cut.append(entry.signed)
    assert not list(tmp_path.glob("*.cut"))
    assert Log.load(tmp_path).head.hash == log.head.hash


def test_a_damaged_genesis_is_refused_by_everybody(tmp_path: Path) -> None:
    """Nothing can be built on it."""
    grown(tmp_path)
    DAMAGE["torn"](tmp_path / "00000000.record")
    with pytest.raises(VerificationError, match="round 0: "):
        Log.load(tmp_path, cut_damage=True)
