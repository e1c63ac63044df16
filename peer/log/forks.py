"""Which of two chains wins, as a pure function of both: after a partition everybody must come to the same one.

Availability comes first: both sides of a partition go on. When they meet again, the chain with more accepted tokens
since the common record wins. Tokens are only as good as those who vouch for them, and keys cost nothing, so they are
counted in two ways, the first of which decides unless it is equal:

1. tokens of peers that had credit at the common record, no more of each than that credit was, or some rounds' worth if
   that is more. Whoever wants to rewrite history from some round on can therefore not outweigh those who trained before
   it and since, however much it claims;
2. all tokens;
3. then the longer chain, and at last the smaller hash of the first record in which they differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from peer.log.chain import Log, common
from peer.log.rules import Entry

FLOOR_ROUNDS = 8  # tokens of so many rounds count of everybody with credit: near the start, nobody has much


def weight(credit: dict[bytes, int], floor: int, branch: Sequence[Entry]) -> tuple[int, int, int]:
    """(tokens of peers with `credit`, each at most that or `floor`; all tokens; rounds) of the records after a fork."""
    tokens: Counter[bytes] = Counter()
    for entry in branch:
        for signer, contribution in entry.contributions:
            tokens[signer] += contribution.tokens
    vouched = sum(min(count, max(credit[signer], floor)) for signer, count in tokens.items() if signer in credit)
    return vouched, tokens.total(), len(branch)


def wins(theirs: Log, ours: Log) -> bool:
    """Whether `theirs`, another chain of the same run, is to replace `ours`. False when they are equal."""
    shared = common(ours.entries, theirs.entries)
    mine, other = ours.entries[shared + 1 :], theirs.entries[shared + 1 :]
    if not mine or not other:
        return bool(other)
    credit = ours.branch(shared).accounts.credit
    floor = FLOOR_ROUNDS * ours.spec.round.target_tokens
    ranks = weight(credit, floor, other), weight(credit, floor, mine)
    return ranks[0] > ranks[1] or (ranks[0] == ranks[1] and other[0].hash < mine[0].hash)
