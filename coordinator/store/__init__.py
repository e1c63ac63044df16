"""What the coordinator remembers, in SQLite or PostgreSQL, for the API and the page to read.

Two kinds of tables, which matters when a database is lost: the **ledger** (rounds, contributions, refusals, accounts)
is a cache of the log and can be folded from it again at any time; the **history** (when peers came and went, how fast
it went, invitations) was only ever seen by this coordinator.

`Store` runs reads and writes in threads of its own, so neither the event loop nor a round ever waits for a disk or a
database server. What to read is a function of a connection (`queries`), what to write too (`history`, `fold`).
"""

from coordinator.store.database import Store, open_store

__all__ = ["Store", "open_store"]
