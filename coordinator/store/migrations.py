"""From any earlier schema to this version's: steps in order, each run once, in one transaction with its number.

Not alembic: one program owns the database, goes forwards only, and must bring it up by itself at a volunteer's first
start; a list of functions does that in a page, is tested on both databases, and needs no folder of scripts in the
package. The ledger's tables need no care in here: a step may drop them, and the coordinator folds the log again.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection, inspect, select

from coordinator.store.schema import meta, metadata
from peer.errors import UsageError


def _create(connection: Connection) -> None:
    metadata.create_all(connection)


# A released step is never changed: databases out there have run it. A new one goes to the end; `_create` makes the
# newest schema, so a step after it runs on older databases only.
STEPS: tuple[Callable[[Connection], None], ...] = (_create,)


def version_of(connection: Connection) -> int:
    """How many steps a database has taken; 0: it is empty."""
    if not inspect(connection).has_table(meta.name):
        return 0
    found = connection.execute(select(meta.c.value).where(meta.c.key == "schema_version")).scalar()
    return int(found or 0)


def migrate(connection: Connection, steps: tuple[Callable[[Connection], None], ...] = STEPS) -> int:
    """Bring the database up to the last step, within the connection's transaction; how many steps were taken.

    Raises:
        UsageError: a newer version of the program has been here.
    """
    version = version_of(connection)
    if version > len(steps):
        raise UsageError(
            f"the database has schema version {version}, this program knows {len(steps)}: "
            "update commonweights, or use another --database"
        )
    if version == 0:
        steps[0](connection)
        version = len(steps)
        connection.execute(meta.insert().values(key="schema_version", value=str(version)))
        return version
    for step in steps[version:]:
        step(connection)
    connection.execute(meta.update().where(meta.c.key == "schema_version").values(value=str(len(steps))))
    return len(steps) - version
