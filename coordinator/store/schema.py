"""The tables. Times are Unix seconds, tokens are counts of training tokens, losses are nats per token.

A peer is a small number here (`peers.number`): its 32-byte key would make up most of a million contributions.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData()

# SQLite numbers rows by itself only in a column that it calls INTEGER; PostgreSQL's INTEGER would be too short.
Number = BigInteger().with_variant(Integer, "sqlite")

meta = Table(
    "meta",
    metadata,
    Column("key", String(40), primary_key=True),  # "schema_version", "run_id"
    Column("value", Text, nullable=False),
)

peers = Table(
    "peers",
    metadata,
    Column("number", Number, primary_key=True, autoincrement=True),
    Column("peer_id", String(64), nullable=False, unique=True),
    Column("name", Text, nullable=False, default=""),  # what the peer calls itself: shown, never trusted
    Column("team", Text, nullable=False, default=""),
    Column("hardware", Text, nullable=False, default=""),
    Column("first_seen", Double),  # null: known from the log alone
    Column("last_seen", Double),
    Column("uptime_seconds", Double, nullable=False, default=0.0),  # heard of without a gap, summed up
    Column("bytes_sent", BigInteger, nullable=False, default=0),  # as the peer reports, over all its starts
    Column("bytes_received", BigInteger, nullable=False, default=0),
)

# --- the ledger: a cache of the log -----------------------------------------------------------------------------------

rounds = Table(
    "rounds",
    metadata,
    Column("round", BigInteger, primary_key=True, autoincrement=False),  # 0: the genesis
    Column("hash", LargeBinary(32), nullable=False),  # of the record
    Column("term", BigInteger, nullable=False),
    Column("sequencer", ForeignKey(peers.c.number), nullable=False),  # who signed the record
    Column("time_seconds", Double, nullable=False),  # of publication, by the sequencer's clock
    Column("tokens", BigInteger, nullable=False),  # accepted in this round
    Column("total_tokens", BigInteger, nullable=False),  # accepted up to and including it
    Column("loss", Double),  # token-weighted mean over its contributions; null: there are none
    Column("contributions", Integer, nullable=False),
    Column("refused", Integer, nullable=False),
    Column("payload_bytes", BigInteger, nullable=False),  # of all its contributions
    Column("deadline_seconds", Double, nullable=False),  # that the next round may stay open after its close
    Column("final", Boolean, nullable=False),
)

contributions = Table(
    "contributions",
    metadata,
    Column("round", BigInteger, primary_key=True, autoincrement=False),
    Column("peer", ForeignKey(peers.c.number), primary_key=True),
    Column("tokens", BigInteger, nullable=False),
    Column("inner_steps", BigInteger, nullable=False),
    Column("mean_loss", Double, nullable=False),
    Column("norm", Double, nullable=False),
    Column("codec", String(40), nullable=False),
    Column("payload_bytes", BigInteger, nullable=False),
    Column("train_seconds", Double, nullable=False),
    Column("private_data", Text, nullable=False),  # what the peer calls its own data; empty: leased sequences
    Column("team", Text, nullable=False),  # whose name the peer signed it with
    Column("voided_in", BigInteger),  # the round whose record took the credit back; null: it stands
    Index("contributions_by_peer", "peer", "round"),
)

refusals = Table(
    "refusals",
    metadata,
    Column("round", BigInteger, primary_key=True, autoincrement=False),
    Column("position", Integer, primary_key=True, autoincrement=False),  # in the record
    Column("peer", ForeignKey(peers.c.number), nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Index("refusals_by_peer", "peer", "round"),
)

accounts = Table(
    "accounts",
    metadata,
    Column("peer", ForeignKey(peers.c.number), primary_key=True),
    Column("credit_tokens", BigInteger, nullable=False),  # accepted and not voided, pending ones included
    Column("voided_tokens", BigInteger, nullable=False),
    Column("contributions", BigInteger, nullable=False),
    Column("refused", BigInteger, nullable=False),
    Column("rounds_sequenced", BigInteger, nullable=False),
    Column("first_round", BigInteger, nullable=False),  # with a contribution; 0: none yet
    Column("last_round", BigInteger, nullable=False),
    Index("accounts_by_credit", "credit_tokens", "peer"),
)

team_credit = Table(
    "team_credit",  # by team and peer: a team is the sum of its rows
    metadata,
    Column("team", Text, primary_key=True),
    Column("peer", ForeignKey(peers.c.number), primary_key=True),
    Column("credit_tokens", BigInteger, nullable=False),
    Column("contributions", BigInteger, nullable=False),
    Index("team_credit_by_peer", "peer"),
)

# --- access: what the organiser decided -------------------------------------------------------------------------------

invites = Table(
    "invites",
    metadata,
    Column("number", Number, primary_key=True, autoincrement=True),
    Column("token_hash", LargeBinary(32), nullable=False, unique=True),  # blake3: the token itself is nowhere
    Column("note", Text, nullable=False),
    Column("uses", Integer, nullable=False),  # how many keys it admits
    Column("used", Integer, nullable=False),
    Column("created", Double, nullable=False),
    Column("expires", Double),  # null: never
    Column("revoked", Boolean, nullable=False),
)

admissions = Table(
    "admissions",  # keys that redeemed an invitation
    metadata,
    Column("peer_id", String(64), primary_key=True),
    Column("invite", ForeignKey(invites.c.number), nullable=False),
    Column("time_seconds", Double, nullable=False),
    Index("admissions_by_invite", "invite"),
)

verdicts = Table(
    "verdicts",  # that the coordinator signed, until long after a record holds them: a log may be rolled back
    metadata,
    Column("number", Number, primary_key=True, autoincrement=True),
    Column("signed", LargeBinary, nullable=False),  # protos Signed
    Column("time_seconds", Double, nullable=False),
)

# --- history: what only this coordinator has seen ---------------------------------------------------------------------

round_times = Table(
    "round_times",
    metadata,
    Column("round", BigInteger, primary_key=True, autoincrement=False),
    Column("opened", Double),  # null: not seen, another node sequenced it
    Column("closing", Double),  # null: every peer had submitted before it had to close
    Column("published", Double),
    Column("applied", Double),  # here
)

spans = Table(
    "spans",  # the waterfall: what each peer did when, as its heartbeats told
    metadata,
    Column("number", Number, primary_key=True, autoincrement=True),
    Column("round", BigInteger, nullable=False),  # the open round at the span's start
    Column("peer", ForeignKey(peers.c.number), nullable=False),
    Column(
        "phase", String(20), nullable=False
    ),  # "training", "encoding", "submitting", "waiting", "applying", "syncing"
    Column("started", Double, nullable=False),
    Column("ended", Double, nullable=False),
    Index("spans_by_round", "round"),
)

incidents = Table(
    "incidents",  # the feed: joins, leaves, refusals, failovers, resyncs, and what the organiser did
    metadata,
    Column("number", Number, primary_key=True, autoincrement=True),
    Column("time_seconds", Double, nullable=False),
    Column("kind", String(20), nullable=False),  # see history.KINDS
    Column("peer", ForeignKey(peers.c.number)),
    Column("round", BigInteger, nullable=False),  # the open round then
    Column("text", Text, nullable=False),
)

samples = Table(
    "samples",  # the swarm every few seconds; thinned out as it grows old
    metadata,
    Column("time_seconds", Double, primary_key=True, autoincrement=False),
    Column("round", BigInteger, nullable=False),  # the open one
    Column("tokens", BigInteger, nullable=False),  # accepted so far
    Column("tokens_per_second", Double, nullable=False),  # as the peers report
    Column("peers", Integer, nullable=False),
    Column("loss", Double),  # of the newest record
    Column("eval_loss", Double),  # newest held-out loss
    Column("bytes_sent", BigInteger, nullable=False),  # by this node, since it started
    Column("bytes_received", BigInteger, nullable=False),
)
