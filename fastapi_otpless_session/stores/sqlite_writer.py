"""The one thread that writes to a SQLite file. What waits for it meanwhile shares a commit, and a wait for the disk.

A queue and a thread of our own. An executor takes twice as long for the way to its thread and back, which is as much as
a small transaction takes, and knows nothing of work that can be done together.
"""

from __future__ import annotations

import asyncio
import math
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from queue import Empty, SimpleQueue
from threading import Lock, Thread, current_thread
from typing import Any, Generic, TypeVar

from fastapi_otpless_session.errors import StoreError

MOST_TOGETHER = 100
"""How many transactions share a commit: as long as it takes, no other process can write."""

PROOF_SECONDS = 1.0
"""For how long a commit that waited for the disk proves that the disk takes what is written."""

T = TypeVar("T")


class _Job(Generic[T]):
    """Something to do with the connection, and who waits for what comes of it."""

    __slots__ = ("_error", "_result", "_work", "answer", "is_durable", "is_transaction", "loop", "since")

    def __init__(
        self, work: Callable[[sqlite3.Connection], T], *, is_transaction: bool, is_durable: bool = False
    ) -> None:
        self._work = work
        self.is_transaction = is_transaction
        self.is_durable = is_durable
        self.loop = asyncio.get_running_loop()
        self.answer: asyncio.Future[Any] = self.loop.create_future()
        self.since = time.monotonic()
        self._result: T | None = None
        self._error: BaseException | None = None

    @property
    def has_failed(self) -> bool:
        """Whether it failed, the last time that it was done."""
        return self._error is not None

    def do(self, db: sqlite3.Connection) -> None:
        """Do it by itself. A transaction was begun for it, and is over then."""
        self._error = None  # of a time that was in vain
        try:
            self._result = _committed(db, self._work) if self.is_transaction else self._work(db)
        except BaseException as error:  # noqa: BLE001 - whoever waits gets it
            self._error = error

    def do_within(self, db: sqlite3.Connection) -> None:
        """Do it as a part of a transaction, unless nobody waits for it any more. Raises what ended all of that."""
        if self.answer.cancelled():
            return
        db.execute("SAVEPOINT job")
        try:
            self._result = self._work(db)
        except BaseException as error:
            if not db.in_transaction:
                raise
            self._error = error
            db.execute("ROLLBACK TO job")
        db.execute("RELEASE job")

    def fail(self, error: BaseException) -> None:
        """Have who waits get an error."""
        self._error = error

    def tell(self) -> None:
        """Tell who waits, if anybody still does."""
        error, self._error = self._error, None  # its traceback leads here
        if self.answer.done():
            return
        if error is not None:
            self.answer.set_exception(error)
        else:
            self.answer.set_result(self._result)


class Writer:
    """Does what it is given, one after the other, in its thread. The connection is its own, and closed with it.

    The connection comes with `synchronous` FULL: commits wait for the disk.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._waits_for_disk: bool | None = True
        self._proven_at = -math.inf
        """When the disk was last seen to take what was written, as far as nothing has failed since."""
        self._in_vain = -math.inf
        """When a wait for the file was given up. Whoever waited by then fails with it: a wait of its own for each would
        add up to any length."""
        self._why = ""
        self._jobs: SimpleQueue[_Job[Any] | None] = SimpleQueue()
        self._lock = Lock()
        self._is_closed = False
        self._thread = Thread(target=self._run, name="otpless-session-store", daemon=True)
        self._thread.start()

    async def transact(self, transaction: Callable[[sqlite3.Connection], T], *, durable: bool) -> T:
        """Return what a transaction does, once all can see it. Where it was in vain, it may be done again.

        `durable`: and once it is on the disk. The disk keeps the order: what is there has all with it that was before.
        """
        return await self._put(_Job(transaction, is_transaction=True, is_durable=durable))

    def is_disk_proven(self) -> bool:
        """Whether the disk was just seen to take what was written."""
        return time.monotonic() - self._proven_at < PROOF_SECONDS

    async def read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """Return what may be much, and so is read apart from the event loop."""
        return await self._put(_Job(query, is_transaction=False))

    def close(self) -> None:
        """Finish what was begun, and end the thread."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._jobs.put(None)
        if current_thread() is not self._thread:  # where the last reference to a store may be dropped
            self._thread.join()

    async def _put(self, job: _Job[T]) -> T:
        with self._lock:
            if self._is_closed:
                raise StoreError("the session store was closed")
            self._jobs.put(job)
        result: T = await job.answer
        return result

    def _run(self) -> None:
        try:
            while self._do_some():  # in a frame of its own: one that waits would keep alive what was done before
                pass
        finally:
            self._db.close()

    def _do_some(self) -> bool:
        """Wait for jobs, and do them; False: there will be no more."""
        jobs = self._taken()
        for is_transaction, group in groupby((job for job in jobs if job is not None), key=_is_transaction):
            together = list(group)
            try:
                wanted = [job for job in together if not job.answer.cancelled()]
                if is_transaction:
                    self._transact(wanted)
                else:
                    for job in wanted:
                        job.do(self._db)
            except BaseException as error:  # noqa: BLE001 - whatever it is, nobody may wait for ever
                for job in together:
                    job.fail(error)
            _tell(together)
        return jobs[-1] is not None

    def _transact(self, jobs: Sequence[_Job[Any]]) -> None:
        """Do transactions, several in one. A fault of one of them is no other's."""
        in_time = self._in_time(jobs)
        if not in_time or not self._begin(in_time):
            return
        changes = self._db.total_changes
        if len(in_time) == 1:
            in_time[0].do(self._db)
            self._note_disk(is_done=not in_time[0].has_failed, has_changed=self._db.total_changes > changes)
        elif _done_together(self._db, in_time):
            self._note_disk(is_done=True, has_changed=self._db.total_changes > changes)
        else:
            for job in in_time:
                self._transact([job])

    def _in_time(self, jobs: Sequence[_Job[Any]]) -> Sequence[_Job[Any]]:
        """Return those that did not wait for the file in vain; the others fail."""
        if not jobs or jobs[0].since > self._in_vain:  # as a rule; the rest came later
            return jobs
        for job in jobs:
            if job.since <= self._in_vain:
                job.fail(sqlite3.OperationalError(self._why))
        return [job for job in jobs if job.since > self._in_vain]

    def _begin(self, jobs: Sequence[_Job[Any]]) -> bool:
        """Begin a transaction for jobs; where that fails they do."""
        try:
            self._wait_for_disk(any(job.is_durable for job in jobs))
            _begin(self._db)
        except BaseException as error:  # noqa: BLE001 - whoever waits gets it
            self._in_vain, self._why = time.monotonic(), str(error)
            for job in jobs:
                job.fail(error)
            return False
        return True

    def _wait_for_disk(self, waits: bool) -> None:
        """Have the next commits wait for the disk, or not."""
        if waits is not self._waits_for_disk:
            _end_leftover(self._db)  # SQLite changes this between transactions only
            self._waits_for_disk = None  # it may have changed where that fails
            self._db.execute(f"PRAGMA synchronous = {'FULL' if waits else 'NORMAL'}")
            self._waits_for_disk = waits

    def _note_disk(self, *, is_done: bool, has_changed: bool) -> None:
        """Note what a transaction says of the disk: a commit that has nothing to write says nothing."""
        if not is_done:
            self._proven_at = -math.inf
        elif self._waits_for_disk and has_changed:
            self._proven_at = time.monotonic()

    def _taken(self) -> Sequence[_Job[Any] | None]:
        """Wait for a job, and take what else waits with it; None comes last."""
        jobs = [self._jobs.get()]
        while jobs[-1] is not None and len(jobs) < MOST_TOGETHER:
            try:
                jobs.append(self._jobs.get_nowait())
            except Empty:
                break
        return jobs


def transact(db: sqlite3.Connection, transaction: Callable[[sqlite3.Connection], T]) -> T:
    """Return what an immediate transaction does: wholly or not at all."""
    _begin(db)
    return _committed(db, transaction)


def _committed(db: sqlite3.Connection, transaction: Callable[[sqlite3.Connection], T]) -> T:
    """Return what a transaction does that was begun."""
    try:
        result = transaction(db)
        db.execute("COMMIT")
    except BaseException:
        _roll_back(db)
        raise
    return result


def _done_together(db: sqlite3.Connection, jobs: Sequence[_Job[Any]]) -> bool:
    """Do several transactions in the one that was begun. False: nothing of it happened, and whose fault is not seen."""
    try:
        for job in jobs:
            job.do_within(db)
        db.execute("COMMIT")
    except BaseException:  # noqa: BLE001 - each gets its own when it is done by itself
        _roll_back(db)
        return False
    return True


def _begin(db: sqlite3.Connection) -> None:
    _end_leftover(db)
    db.execute("BEGIN IMMEDIATE")


def _end_leftover(db: sqlite3.Connection) -> None:
    """End a transaction that was left open where even its rollback failed."""
    if db.in_transaction:
        db.execute("ROLLBACK")


def _roll_back(db: sqlite3.Connection) -> None:
    if db.in_transaction:
        try:
            db.execute("ROLLBACK")
        except (sqlite3.Error, MemoryError):  # what led here is told, and the next transaction tries again
            return


def _is_transaction(job: _Job[Any]) -> bool:
    return job.is_transaction


def _tell(jobs: Iterable[_Job[Any]]) -> None:
    """Tell who waits, on each event loop at once."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Job[Any]]] = defaultdict(list)
    for job in jobs:
        by_loop[job.loop].append(job)
    for loop, its in by_loop.items():
        try:
            loop.call_soon_threadsafe(_tell_all, its)
        except RuntimeError:  # it was closed, and nobody waits any more
            continue


def _tell_all(jobs: Iterable[_Job[Any]]) -> None:
    for job in jobs:
        job.tell()
