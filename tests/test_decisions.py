"""Admissions and verdicts in the log: who may decide, what a record may hold, and what the fold makes of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.errors import Refused, VerificationError
from peer.identity import Identity
from peer.log.accounting import PENDING_ROUNDS
from peer.log.chain import Log
from peer.log.receipts import check_receipt, make_receipt
from peer.log.rules import may_sequence
from peer.rounds.gate import Gate
from protos import log_pb2
from protos.signing import sign
from tests.grown_logs import ADA, COORDINATOR, GRACE, admission, grow, verdict
from tests.small_run import start_log

ADA_KEY, GRACE_KEY = ADA.peer_id.public_key, GRACE.peer_id.public_key


def invite_only() -> Log:
    return start_log(COORDINATOR, run={"access": "invite"})


def test_a_verdict_takes_credit_back_and_nothing_else() -> None:
    """The voided tokens leave the peer's and its team's credit; what was merged stays in the run's tokens."""
    log = start_log(COORDINATOR)
    grow(log, (ADA, 4), (GRACE, 2), team="lovelace")
    grow(log, (ADA, 1))
    tokens, credit = log.accounts.tokens, dict(log.accounts.credit)
    grow(log, verdicts=[verdict(log, ADA, 1)])
    length = log.spec.data.sequence_length
    account = log.accounts.peers[ADA_KEY]
    assert account.voided_tokens == 4 * length and account.credit_tokens == credit[ADA_KEY] - 4 * length
    assert log.accounts.teams["lovelace"].credit_tokens == 2 * length
    assert log.accounts.tokens == tokens and log.accounts.credit[GRACE_KEY] == credit[GRACE_KEY]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()), max_size=14))
def test_credit_is_what_was_accepted_and_not_voided(rounds: list[tuple[int, int, bool]]) -> None:
    """Over any log: credit + voided = accepted, peer by peer; pending is what the newest rounds hold of the credit."""
    log = start_log(COORDINATOR)
    void: set[tuple[int, bytes]] = set()
    for ada, grace, judged in rounds:
        shares = [(peer, count) for peer, count in ((ADA, ada), (GRACE, grace)) if count]
        pending = [(r, key) for r, works in log.accounts.pending.items() for key in works if (r, key) not in void]
        verdicts = []
        if judged and pending:
            round_, key = pending[0]
            void.add(pending[0])
            verdicts = [verdict(log, ADA if key == ADA_KEY else GRACE, round_)]
        grow(log, *shares, verdicts=verdicts)
    for key in (ADA_KEY, GRACE_KEY):
        works = [(e.round, item.tokens) for e in log.entries for signer, item in e.contributions if signer == key]
        standing = [(round_, tokens) for round_, tokens in works if (round_, key) not in void]
        assert log.accounts.credit.get(key, 0) == sum(tokens for _, tokens in standing)
        newest = [tokens for round_, tokens in standing if round_ > log.head.round - PENDING_ROUNDS]
        assert log.accounts.pending_tokens(key) == sum(newest)


def test_confirmed_credit_cannot_be_voided() -> None:
    """After `PENDING_ROUNDS` records, and after the last one, no verdict on a contribution is taken."""
    log = start_log(COORDINATOR)
    grow(log, (ADA, 1))
    judged = verdict(log, ADA, 1)
    for _ in range(PENDING_ROUNDS - 1):
        grow(log)
    assert log.accounts.pending_tokens(ADA_KEY)
    grow(log)
    assert not log.accounts.pending_tokens(ADA_KEY)
    with pytest.raises(VerificationError, match="no pending contribution"):
        grow(log, verdicts=[judged])


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"by": ADA}, "not signed by the run's coordinator"),
        ({"run_id": bytes(32)}, "another run"),
        ({"reason": ""}, "has a reason"),
        ({"reason": "x" * 201}, "has a reason"),
        ({"payload_hash": bytes(32)}, "no pending contribution"),
        ({"peer": bytes(3)}, "about no peer"),
    ],
)
def test_a_verdict_that_nobody_may_give_is_refused(fields: dict[str, object], reason: str) -> None:
    """A forged or senseless verdict makes the record that holds it invalid, whoever sequences."""
    log = start_log(COORDINATOR)
    grow(log, (ADA, 4))
    with pytest.raises(VerificationError, match=reason):
        grow(log, verdicts=[verdict(log, ADA, 1, **fields)], signer=ADA)  # type: ignore[arg-type]


def test_the_same_is_not_judged_twice() -> None:
    """Neither in one record nor in two."""
    log = start_log(COORDINATOR)
    grow(log, (ADA, 4))
    judged = verdict(log, ADA, 1)
    with pytest.raises(VerificationError, match="two verdicts"):
        grow(log, verdicts=[judged, judged])
    grow(log, verdicts=[judged])
    with pytest.raises(VerificationError, match="void already"):
        grow(log, verdicts=[judged])


def test_who_is_barred_neither_contributes_nor_leads() -> None:
    """From the next record on; its credit so far stays."""
    log = start_log(COORDINATOR)
    grow(log, (ADA, 4))
    grow(log, (ADA, 1), verdicts=[verdict(log, ADA)])
    credit = log.accounts.credit[ADA_KEY]
    assert not may_sequence(ADA_KEY, log)
    with pytest.raises(VerificationError, match="barred"):
        grow(log, (ADA, 1))
    with pytest.raises(VerificationError):
        grow(log, signer=ADA)
    assert log.accounts.credit[ADA_KEY] == credit


def test_an_invite_only_log_holds_work_of_the_admitted_alone() -> None:
    """Any node may lead and show the admission; without one the record is invalid, and one is enough for good."""
    log = invite_only()
    with pytest.raises(VerificationError, match="nobody invited it"):
        grow(log, (ADA, 1))
    grow(log, (ADA, 1), admissions=[admission(log, ADA)])
    grow(log, (ADA, 1), (GRACE, 1), admissions=[admission(log, GRACE)], signer=ADA)
    grow(log, (ADA, 1), (GRACE, 1), signer=ADA)
    assert log.accounts.admitted == {ADA_KEY, GRACE_KEY}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({"by": GRACE}, "not signed by the run's coordinator"), ({"run_id": bytes(32)}, "another run")],
)
def test_a_forged_admission_admits_nobody(fields: dict[str, object], reason: str) -> None:
    """Only the coordinator's word counts, and only for its own run."""
    log = invite_only()
    with pytest.raises(VerificationError, match=reason):
        grow(log, (ADA, 1), admissions=[admission(log, ADA, **fields)])  # type: ignore[arg-type]


def test_an_open_run_knows_no_admissions() -> None:
    """They would only be ballast."""
    log = start_log(COORDINATOR)
    with pytest.raises(VerificationError, match="open to everybody"):
        grow(log, admissions=[admission(log, ADA)])


def test_the_gate_lets_in_whom_the_log_or_an_admission_names() -> None:
    """Another's admission does not help; a barred peer is refused at once, before any record says so."""
    log = invite_only()
    gate = Gate(log)
    with pytest.raises(Refused, match="--invite"):
        gate.pass_(ADA_KEY)
    with pytest.raises(Refused, match="another key"):
        gate.pass_(ADA_KEY, admission(log, GRACE))
    gate.pass_(ADA_KEY, admission(log, ADA))
    gate.pass_(ADA_KEY)
    grow(log, (ADA, 1), **gate.decisions([ADA_KEY]))
    assert gate.decisions([ADA_KEY]) == {"admissions": [], "verdicts": []}
    gate.decide(verdict(log, ADA))
    with pytest.raises(Refused, match="barred"):
        gate.pass_(ADA_KEY)
    grow(log, **gate.decisions([]))
    assert gate.decisions([])["verdicts"] == [] and ADA_KEY in log.accounts.barred


def test_a_verdict_that_was_rolled_back_comes_again() -> None:
    """A log that lost the record with the verdict gets it with the next one."""
    log, branch = start_log(COORDINATOR), start_log(COORDINATOR)
    for either in (log, branch):
        grow(either, (ADA, 1))
    gate = Gate(log)
    gate.decide(verdict(log, ADA))
    grow(log, **gate.decisions([]))
    grow(branch, (GRACE, 3))
    log.adopt(branch)
    assert len(gate.decisions([])["verdicts"]) == 1


def test_a_receipt_of_a_round_that_another_led_ends_with_the_coordinators_word() -> None:
    """While the coordinator is away there is no receipt yet; its next record vouches for those before."""
    log = start_log(COORDINATOR)
    grow(log, (ADA, 1))
    grow(log, (GRACE, 2), signer=ADA)
    with pytest.raises(Refused, match="the coordinator was away"):
        make_receipt(log, GRACE.peer_id, 0)
    grow(log)
    receipt = make_receipt(log, GRACE.peer_id, 2)
    content = receipt.SerializeToString(deterministic=True)
    statement = check_receipt(content, log.run_id)
    assert statement.sequencer == str(ADA.peer_id) and statement.tokens == 2 * log.spec.data.sequence_length
    del receipt.records[-1]
    with pytest.raises(VerificationError, match="not signed by the run's coordinator"):
        check_receipt(receipt.SerializeToString(deterministic=True), log.run_id)


def test_a_receipt_of_a_run_of_ones_own_is_told_apart() -> None:
    """Anybody can make a run that says anything: with the id of the real one it proves nothing."""
    liar = Identity.new()
    real, forged = start_log(COORDINATOR), start_log(liar)
    grow(forged, (ADA, 9), signer=liar, term=0)
    content = make_receipt(forged, ADA.peer_id, 1).SerializeToString(deterministic=True)
    assert check_receipt(content).run_id == forged.run_id.hex()
    with pytest.raises(VerificationError, match="is of run"):
        check_receipt(content, real.run_id)


def test_names_travel_signed_in_contributions() -> None:
    """The account has the newest name and team; credit stays with the team it was earned under."""
    log = start_log(COORDINATOR)
    grow(log, (ADA, 4), team="first")
    grow(log, (ADA, 1), team="second")
    length = log.spec.data.sequence_length
    assert log.accounts.peers[ADA_KEY].team == "second"
    assert {name: team.credit_tokens for name, team in log.accounts.teams.items()} == {
        "first": 4 * length,
        "second": length,
    }
    with pytest.raises(VerificationError, match="printable"):
        grow(log, (ADA, 1), team="a\x1b[2J")


def test_what_is_no_admission_or_verdict_makes_no_record() -> None:
    """Bytes that were signed as something else, or not at all, are refused with a reason."""
    log = start_log(COORDINATOR)
    other = sign(log_pb2.Range(start=1, stop=2), COORDINATOR.private_key)
    for field in ("admissions", "verdicts"):
        for bad in (other, log_pb2.Signed(), log_pb2.Signed(body=b"\xff" * 40, signer=bytes(32), signature=bytes(64))):
            with pytest.raises(VerificationError):
                grow(log, **{field: [bad]})  # type: ignore[arg-type]
