"""A database and the threads that talk to it: one that writes, in order, and a few that read.

A write that nobody waits for (`put`) is tried again while the database is away, and given up with a line in the log
when it stays away: the ledger is folded from the log once it is back, history has a gap. The run never notices.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import sqlalchemy
from sqlalchemy import Connection, Engine, event, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError

from coordinator.store.migrations import migrate
from coordinator.store.schema import meta
from peer.errors import UnreachableError, UsageError

logger = logging.getLogger(__name__)

READERS = 4
WAITING_WRITES = 10_000  # more are dropped: the database has been away for long
RETRY_SECONDS = 120.0  # for a write that nobody waits for
ANSWER_SECONDS = 15.0  # for a read, or a write that somebody waits for
CLOSE_SECONDS = 5.0

P = ParamSpec("P")
T = TypeVar("T")


class _Write(NamedTuple):
    work: Callable[[Connection], Any]
    answer: Future[Any] | None  # None: nobody waits


class Store:
    """Use as a context manager; `close` carries out what is queued, within `CLOSE_SECONDS`."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._writes: queue.Queue[_Write | None] = queue.Queue(WAITING_WRITES)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="store-read")
        self._closing = threading.Event()
        self._writer = threading.Thread(target=self._write_all, name="store-write", daemon=True)
        self._writer.start()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._closing.set()
        with contextlib.suppress(queue.Full):  # then the thread is stuck, and a daemon
            self._writes.put_nowait(None)
        self._writer.join(CLOSE_SECONDS)
        self._readers.shutdown(wait=not self._writer.is_alive(), cancel_futures=True)
        self.engine.dispose()

    def put(self, work: Callable[Concatenate[Connection, P], object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Queue `work(connection, ...)` as one transaction; returns at once and never fails."""
        try:
            self._writes.put_nowait(_Write(lambda connection: work(connection, *args, **kwargs), None))
        except queue.Full:
            logger.warning("the database has not kept up; %s is not recorded", getattr(work, "__name__", "something"))

    async def write(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Carry out `work(connection, ...)` as one transaction, after everything that was queued before.

        Raises:
            UnreachableError: the database does not answer; whether it was carried out is not known.
            CommonweightsError: what `work` raises; nothing of it was stored.
        """
        answer: Future[T] = Future()
        try:
            self._writes.put_nowait(_Write(lambda connection: work(connection, *args, **kwargs), answer))
        except queue.Full:
            raise UnreachableError("the database does not answer; try again later") from None
        return await self._answered(answer)

    async def read(self, question: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The answer of `question(connection, ...)`, from one consistent state of the database.

        Raises:
            UnreachableError: the database does not answer.
        """

        def ask() -> T:
            with self.engine.begin() as connection:
                return question(connection, *args, **kwargs)

        return await self._answered(self._readers.submit(ask))

    async def _answered(self, answer: Future[T]) -> T:
        try:
            return await asyncio.wait_for(asyncio.wrap_future(answer), ANSWER_SECONDS)
        except (TimeoutError, OperationalError, InterfaceError) as error:
            logger.warning("the database does not answer: %s", _reason(error))
            raise UnreachableError("the database does not answer; try again later") from None

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """One transaction that writes, in this thread: for commands, which have no event loop to keep free."""
        with self.engine.connect().execution_options(writes=True) as connection, connection.begin():
            yield connection

    def _write_all(self) -> None:
        while (item := self._writes.get()) is not None:
            if item.answer is None:
                self._persist(item)
            elif item.answer.set_running_or_notify_cancel():
                try:
                    with self.writing() as connection:
                        result = item.work(connection)
                except Exception as error:
                    item.answer.set_exception(error)
                else:
                    item.answer.set_result(result)

    def _persist(self, item: _Write) -> None:
        give_up, pause = time.monotonic() + RETRY_SECONDS, 0.1
        while True:
            try:
                with self.writing() as connection:
                    item.work(connection)
                return
            except (OperationalError, InterfaceError) as error:
                if time.monotonic() > give_up or self._closing.wait(pause):
                    logger.warning("the database does not answer, something is not recorded: %s", _reason(error))
                    return
                pause = min(2 * pause, 5.0)
            except Exception:  # a fault of ours: it must not end the thread that writes everything else
                logger.exception("something is not recorded; the run goes on")
                return


def default_url(folder: Path) -> str:
    """Of the database in the folder of a run."""
    return f"sqlite:///{(folder / 'database.sqlite').absolute()}"


def open_store(url: str, run_id: bytes) -> Store:
    """The database at `url`, made or migrated as needed, for this run and no other.

    Args:
        url: "sqlite:///FILE" or "postgresql://USER:PASSWORD@HOST/NAME".

    Raises:
        UsageError: it cannot be opened, holds another run, or was made by a newer version.
    """
    engine = _engine(url)
    try:
        with engine.connect().execution_options(writes=True) as connection, connection.begin():
            if engine.dialect.name == "postgresql":  # two that start at once must not both create the tables
                connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(7070)"))
            migrate(connection)
            _claim(connection, run_id)
    except DBAPIError as error:
        engine.dispose()
        raise UsageError(f"--database {engine.url!r}: cannot be used: {_reason(error)}") from None
    except UsageError:
        engine.dispose()
        raise
    return Store(engine)


def _claim(connection: Connection, run_id: bytes) -> None:
    found = connection.execute(select(meta.c.value).where(meta.c.key == "run_id")).scalar()
    if found is None:
        connection.execute(meta.insert().values(key="run_id", value=run_id.hex()))
    elif found != run_id.hex():
        raise UsageError(
            f"the database holds run {found[:16]}; every run needs a database of its own: use another --database"
        )


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
        if parsed.drivername in ("postgresql", "postgres"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        if parsed.get_backend_name() not in ("sqlite", "postgresql"):
            raise UsageError(
                f"--database: {parsed.get_backend_name()} is not supported; use sqlite:/// or postgresql://"
            )
        engine = sqlalchemy.create_engine(parsed, **_engine_options(parsed))
    except ArgumentError:  # without the text: it may hold a password
        raise UsageError(
            "--database: not a URL; write sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME"
        ) from None
    except ModuleNotFoundError as error:
        raise UsageError(
            f"--database: {error.name} is not installed; for PostgreSQL run: pip install 'commonweights[postgres]'"
        ) from None
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _engine_options(url: URL) -> dict[str, Any]:
    if url.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": 10.0, "check_same_thread": False}}
    return {"pool_pre_ping": True, "pool_size": READERS + 2, "connect_args": {"connect_timeout": 10}}


def _set_up_sqlite(connection: Any, record: object) -> None:
    connection.isolation_level = None  # the driver's own idea of transactions leaves schema changes outside of them
    for setting in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "cache_size=-65536"):
        connection.execute(f"PRAGMA {setting}")


def _begin_sqlite(connection: Connection) -> None:
    """A writer takes its lock at once: a reader's snapshot cannot be upgraded once another process has written."""
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _reason(error: BaseException) -> str:
    cause = getattr(error, "orig", None) or error
    return " ".join(str(cause).split()) or type(error).__name__
