"""The Redis store, for a single server or a Cluster; Valkey is the same.

    <prefix>session:<session id>   hash     the row, and the digests of its generations that still count
    <prefix>token:<digest>         string   the index: a hint at the row, written before the row says so
    <prefix>user:<user id>         zset     the ids of a user's sessions, by when they expire
    <prefix>due                    zset     the outbox: ids of ended sessions, by when OTPLESS is to be told

Only the row decides, and each of its transitions is one script on its key. The other keys may live on other servers,
so they are hints: written first, idempotent, checked against the row when read, and dropped when found to be wrong.

A server of a Cluster that is away keeps no session from being refreshed or ended whose row is on another. The row notes
that a commit could not write all that leads to it. Housekeeping makes up for that; and `get`, which is asked before a
new token goes out, fails where it cannot, so that the client comes with its old one until then. What an end could not
write into the outbox, housekeeping makes up for too; or, where its worker is gone, whoever comes with the session.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from fastapi_otpless_session.errors import StoreError
from fastapi_otpless_session.loops import PerLoop
from fastapi_otpless_session.lru import Lru
from fastapi_otpless_session.stores import lua
from fastapi_otpless_session.stores.base import (
    LONGEST_LIST,
    MOST_COUNTED,
    PATIENCE,
    REFRESH_TOKEN,
    EndReason,
    Found,
    Lease,
    Rotation,
    SessionRow,
    State,
)
from fastapi_otpless_session.stores.records import COLUMNS, TYPES, confirmations_text, record_of, row_of
from fastapi_otpless_session.stores.redis_cluster import Work
from fastapi_otpless_session.stores.redis_link import Address, ForeignValueError, RedisLink, dangers
from fastapi_otpless_session.stores.server_clock import ServerClock
from fastapi_otpless_session.telemetry import logger

DIGESTS = "digests"
OWES = "owes"
"""A row's field that says whether some of what leads to it is yet to be written."""
LONGEST_LINEAGE = 32
"""How many generations that nobody confirmed a row knows the digests of."""
DIGEST_SHOWN = 8
"""So many bytes of a digest stand in its index entry, as a check that the answer is the question's."""
OLD = "old-"
UNFINISHED_SECONDS = 600.0
"""When an entry of the outbox is looked at again whose session goes on: the end may be under way.

And how long a telling is overdue before whoever reads its row takes it for one that the outbox does not have.
"""
MADE_UP_AT_ONCE = 100
INCOMPLETE_REMEMBERED = 100_000
COMMIT_TRIES = 5
LARGEST = 2.0**53
"""From here on Lua's numbers are no longer exact."""


@dataclass(frozen=True, slots=True)
class _Generation:
    """The digests of a generation's tokens, in hex."""

    number: int
    token: str
    refresh: str

    def entries(self, session_id: str, *, was_backed: bool = False) -> Iterator[tuple[str, _Entry]]:
        """Return what the index is to have for each of the digests."""
        for digest, is_refresh in ((self.token, False), (self.refresh, True)):
            yield digest, _Entry(session_id, self.number, is_refresh, was_backed)


@dataclass(frozen=True, slots=True)
class _Kept:
    """A row as Redis has it, the digests that it backs, and the server's time."""

    row: SessionRow
    lineage: tuple[_Generation, ...]
    digests: str
    now: float
    owes: bool
    """Whether some of what leads to the row could not be written at a commit."""

    @property
    def is_overdue(self) -> bool:
        """Whether OTPLESS should have been told long ago."""
        due = self.row.revocation_due
        return due is not None and due + UNFINISHED_SECONDS < self.now

    def generation_of(self, entry: _Entry, digest: str) -> int | None:
        """Return a digest's generation; None: this row does not back it."""
        for each in reversed(self.lineage):
            if digest == each.token:
                return each.number
            if digest == each.refresh:
                return REFRESH_TOKEN
        if not entry.was_backed:
            return None  # left by a commit that came too late, or by another sign-in
        return REFRESH_TOKEN if entry.is_refresh else entry.generation


@dataclass(frozen=True, slots=True)
class _Entry:
    """What the index has for a digest."""

    session_id: str
    generation: int
    is_refresh: bool
    was_backed: bool = False
    """Whether the row knew the digest when it forgot it."""

    def text(self, digest: str) -> str:
        kind = (OLD if self.was_backed else "") + ("refresh" if self.is_refresh else "token")
        return f"{digest[: 2 * DIGEST_SHOWN]} {kind} {self.generation} {self.session_id}"

    @classmethod
    def read(cls, text: bytes | None, digest: bytes) -> _Entry | None:
        try:
            shown, kind, generation, session_id = (text or b"").decode().split(" ", 3)
            is_old = kind.startswith(OLD)
            entry = cls(session_id, int(generation), kind.removeprefix(OLD) == "refresh", is_old)
            return entry if digest.hex().startswith(shown) else None
        except ValueError:
            return None


class RedisStore:
    """Sessions in Redis. Implements `SessionStore`. `offset`: seconds to add to the server's time, for tests."""

    def __init__(self, url: str, *, offset: Callable[[], float] = float) -> None:
        address = Address.parse(url)
        self._prefix = address.prefix
        self._offset = offset
        self._clock = ServerClock()
        self._links: PerLoop[RedisLink] = PerLoop(lambda: RedisLink(address), RedisLink.close)
        self._incomplete: Lru[str, bool] = Lru(INCOMPLETE_REMEMBERED)
        """Ids of sessions of which this worker could write the row and not all of the rest."""

    async def open(self) -> None:
        """Connect. Raises `StoreError`."""
        await self.now()

    async def close(self) -> None:
        """Close the running event loop's connections, having made up for what can be in a few seconds."""
        names = [name for name, _ in self._incomplete.items()]
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    for start in range(0, len(names), MADE_UP_AT_ONCE):
                        await self._make_up(names[start : start + MADE_UP_AT_ONCE])
        finally:
            await self._links.close()

    async def dangers(self) -> Mapping[str, str]:
        """Return what `open` warns of, of a server, any one of a Cluster's: dangers, each under the setting without it.

        Raises `StoreError`, also where the server may not be asked for its settings.
        """
        found: Mapping[str, str] = await self._do(None, dangers, is_read=True)
        return found

    async def now(self) -> float:
        """Return the server's time. The servers of a Cluster must agree on it to a second or so."""
        seconds, microseconds = await self._do(None, lambda client: client.time(), is_read=True)
        now = float(seconds + microseconds / 1e6)
        self._clock.told(now)
        return now + self._offset()

    async def find(self, digest: bytes) -> Found | None:
        """Look a token up by its digest: the index, then the row, which must back it."""
        entry = await self._entry(digest)
        kept = None if entry is None else await self._kept(entry.session_id)
        if entry is None or kept is None or kept.row.expires_at <= kept.now:
            return None
        await self._make_overdue_known(kept)
        generation = kept.generation_of(entry, digest.hex())
        return None if generation is None else Found(kept.row, generation, kept.now)

    async def get(self, session_id: str) -> SessionRow | None:
        """Return a session's row. From then on its newest token is found by its digest: where not, this is a fault."""
        kept = await self._kept(session_id)
        if kept is None or kept.row.expires_at <= kept.now:
            return None
        await self._make_overdue_known(kept)
        await self._pay(kept)
        return kept.row

    async def create(self, row: SessionRow, token_digest: bytes, refresh_digest: bytes) -> SessionRow | None:
        """Insert a first row with its digests, or return the one that was there."""
        first = _Generation(row.generation, token_digest.hex(), refresh_digest.hex())
        entries = first.entries(row.session_id)
        hints = (self._hint(digest, entry, row, is_new=True) for digest, entry in entries)
        await asyncio.gather(*hints, self._remember(row))
        there = await self._run(lua.CREATE, self._row_key(row.session_id), *_flat(row, (first,)))
        if there is None:
            return None
        values = _values(there)
        found = _row(values)
        if found is None:
            raise StoreError("Redis: there is a row of this session which cannot be read")
        if _owes(values) and (kept := await self._kept(row.session_id)) is not None:
            await self._pay(kept)
        return found

    async def take_lease(self, session_id: str, generation: int, owner: str, seconds: float) -> Lease | None:
        """Take the lease of an active row of this generation that nobody holds."""
        not_after = _number(self._clock.in_time_for(seconds))
        key = self._row_key(session_id)
        taken = await self._run(lua.TAKE_LEASE, key, str(generation), owner, _number(seconds), not_after)
        if taken is None:
            return None
        fence, until, owner_before = taken
        return Lease(session_id, owner, int(fence), float(until), bool(owner_before))

    async def renew_lease(self, lease: Lease, seconds: float) -> Lease | None:
        """Hold a lease for longer."""
        key = self._row_key(lease.session_id)
        until = await self._run(lua.RENEW_LEASE, key, str(lease.fence), lease.owner, _number(seconds))
        return None if until is None else replace(lease, until=float(until))

    async def release_lease(self, lease: Lease, *, answer_lost: bool) -> None:
        """Give a lease back; an owner that stays on a free lease tells the next one of a lost answer."""
        left = lease.owner if answer_lost or lease.follows_lost_answer else ""
        await self._run(lua.RELEASE_LEASE, self._row_key(lease.session_id), str(lease.fence), lease.owner, left)

    async def commit(self, lease: Lease, rotation: Rotation) -> SessionRow | None:
        """Make the rotation the next generation, if the fence is still the lease's."""
        for _ in range(COMMIT_TRIES):
            kept = await self._kept(lease.session_id)
            if kept is None or kept.row.state is State.ENDED or kept.row.fence != lease.fence:
                return None
            if kept.row.lease_owner != lease.owner:  # given back; unless by an earlier try of this commit
                is_done = any(each.token == rotation.token_digest.hex() for each in kept.lineage)
                return kept.row if is_done else None
            committed = await self._commit(kept, lease, rotation)
            if committed != b"again":
                return None if committed is None else _read(committed)
        raise StoreError("Redis: the row changes too often to be committed")

    async def _commit(self, kept: _Kept, lease: Lease, rotation: Rotation) -> Any:
        row = replace(kept.row, expires_at=max(kept.row.expires_at, rotation.expires_at))
        new = _Generation(row.generation + 1, rotation.token_digest.hex(), rotation.refresh_digest.hex())
        is_complete = await self._is_led_to(
            row,
            *(self._hint(digest, entry, row) for digest, entry in new.entries(row.session_id)),
            *(self._keep_entries(each, row, anew=kept.owes) for each in kept.lineage),
        )
        return await self._run(
            lua.COMMIT,
            self._row_key(row.session_id),
            str(lease.fence),
            lease.owner,
            kept.digests,
            _lineage_text((*kept.lineage, new)),
            new.token,
            _number(rotation.answered_at),
            *("session_token", rotation.session_token, "token_expires_at", _number(rotation.token_expires_at)),
            *("refresh_token", rotation.refresh_token, "expires_at", _number(rotation.expires_at)),
            *(OWES, "" if is_complete else "1"),
        )

    async def _is_led_to(self, row: SessionRow, *entries: Awaitable[None]) -> bool:
        """Write what leads to a row; False: some of it cannot be written now, and is to be made up for."""
        outcomes = await asyncio.gather(self._remember(row), *entries, return_exceptions=True)
        failures = [each for each in outcomes if each is not None]
        for failure in failures:
            if not isinstance(failure, StoreError):
                raise failure
        if failures:
            self._incomplete.put(row.session_id, True)
            logger.warning("What leads to a session is written later: %s", failures[0])
        return not failures

    async def _pay(self, kept: _Kept) -> None:
        """Write what a commit could not, without undoing what others wrote since.

        Raises `StoreError` where the newest session token's entry cannot be written. What is known here to be missing
        beside that is left to housekeeping: a server that is away would keep each request waiting.
        """
        row = kept.row
        if not kept.owes or row.state is State.ENDED:
            return
        digest, entry = next(kept.lineage[-1].entries(row.session_id))
        await self._hint(digest, entry, row, is_new=True)
        if row.session_id in self._incomplete.keys:
            return
        if await self._is_led_to(row, *(self._keep_entries(each, row, anew=True) for each in kept.lineage)):
            await self._run(lua.PAID, self._row_key(row.session_id), kept.digests)

    async def confirm(self, row: SessionRow, grace: float) -> None:
        """Note that the client has the row's generation, and forget the digests of those that have no grace left."""
        kept = await self._kept(row.session_id)
        if kept is None or kept.row.generation != row.generation:
            return
        current = kept.row
        if current.confirmed_generation == current.generation:
            return
        confirmations = current.confirmed(kept.now, grace)
        lineage = tuple(each for each in kept.lineage if each.number >= confirmations[0][0])
        gone = [each for each in kept.lineage if each not in lineage]
        await asyncio.gather(*(self._retire(each, current) for each in gone))
        await self._run(
            lua.CONFIRM,
            self._row_key(row.session_id),
            str(current.generation),
            confirmations_text(current.confirmations),
            confirmations_text(confirmations),
            _lineage_text(lineage),
        )

    async def touch(self, session_id: str, generation: int, *, validated: bool) -> None:
        """Note that the session was seen now, and is valid."""
        await self._run(lua.TOUCH, self._row_key(session_id), str(generation), "1" if validated else "0")

    async def end(
        self, row: SessionRow, reason: EndReason, *, revoke_in: float | None, fence: int | None = None
    ) -> SessionRow:
        """End a session; see `SessionStore.end`. The outbox hears of it before (a crash) and after (a hasty claim)."""
        before = self._make_due(row.session_id, revoke_in, ahead=True)
        _, damage = await asyncio.gather(before, self._damage(row.session_id))
        wanted = (reason.value, _text(revoke_in), _text(fence), damage)
        ended = _read(await self._run(lua.END, self._row_key(row.session_id), *wanted, *_flat(row, ())))
        if ended is None:
            raise StoreError("Redis: a row cannot be read that was written just now")
        if ended.revocation_due is not None:
            await self._make_due(row.session_id, revoke_in)
        return ended

    async def list_user(self, user_id: str) -> Sequence[SessionRow]:
        """Return a user's active rows, the newest first, up to a thousand.

        While a node of a Cluster is away that has one of them, or the list, that is a fault: whoever ends all of a
        user's sessions is not to believe that there were no others.

        Ids of sessions that go on may stand behind many others: the list is read anew, without those that ended and
        further by those that have no row, until there are enough of them, or no more.
        """
        key, limit = self._key("user", user_id), LONGEST_LIST
        while True:
            ids = [name.decode() for name in await self._run(lua.LIST, key, str(limit), is_read=True)]
            rows = [each.row for each in await asyncio.gather(*map(self._kept, ids)) if each is not None]
            over = [row.session_id for row in rows if row.state is State.ENDED]
            mine = [row for row in rows if row.state is State.ACTIVE and row.user_id == user_id]
            await self._forget(key, over)
            if len(ids) < limit or len(mine) >= LONGEST_LIST:
                return sorted(mine, key=lambda row: (-row.created_at, row.session_id))[:LONGEST_LIST]
            limit = LONGEST_LIST + len(ids) - len(over) - len(mine)

    async def _forget(self, key: str, over: Sequence[str]) -> None:
        """Drop ended sessions from a list. Not what has no row: a sign-in is on the list before its row is there."""
        if over:
            await self._do(key, lambda client: client.zrem(key, *over))

    async def claim_revocations(self, limit: int, hold: float) -> Sequence[SessionRow]:
        """Take ended rows whose telling is due, having made up for what could not be written."""
        await self._make_up([name for name, _ in self._incomplete.items()[:MADE_UP_AT_ONCE]])
        held, due = await self._run(lua.CLAIM_DUE, self._key("due"), str(limit), _number(hold))
        claimed = await asyncio.gather(*(self._claim_if_possible(name.decode(), held, hold) for name in due))
        return [row for row in claimed if row is not None]

    async def waiting_revocations(self) -> int:
        """Return how long the outbox is."""
        outbox = self._key("due")
        return min(MOST_COUNTED, int(await self._do(outbox, lambda client: client.zcard(outbox), is_read=True)))

    async def _claim_if_possible(self, session_id: str, held: bytes, hold: float) -> SessionRow | None:
        """Claim a row; None, too, where its node of a cluster is down, or it is damaged: the others are told of."""
        try:
            return await self._claim(session_id, held, hold)
        except StoreError as error:
            logger.warning("OTPLESS is told of a sign-out later: %s", error)
            return None

    async def _claim(self, session_id: str, held: bytes, hold: float) -> SessionRow | None:
        """Take a row whose telling the outbox calls due; put the outbox right where the row does not."""
        try:
            claimed = await self._run(lua.CLAIM, self._row_key(session_id), _number(hold))
        except ForeignValueError:
            claimed = b"settled"
        if isinstance(claimed, list):
            return _read(claimed)
        later = {b"settled": b"", b"active": _number(float(held) + UNFINISHED_SECONDS)}.get(claimed, claimed)
        await self._run(lua.RESCHEDULE, self._key("due"), session_id, held, later)
        return None

    async def postpone_revocation(self, row: SessionRow, seconds: float) -> None:
        """Make a telling due again in `seconds`."""
        key = self._row_key(row.session_id)
        due = await self._run(lua.POSTPONE, key, row.session_token, _number(seconds))
        if due is not None:
            await self._to_outbox(lua.LATER, row.session_id, due)

    async def replace_revocation(
        self,
        session_id: str,
        session_token: bytes,
        refresh_token: bytes,
        *,
        due_in: float = 0.0,
        keep_until: float = 0.0,
    ) -> None:
        """Make an ended row's telling due, with other tokens."""
        await self._make_due(session_id, due_in, ahead=True)
        key = self._row_key(session_id)
        await self._run(lua.REPLACE, key, session_token, refresh_token, _number(keep_until), _number(due_in))
        await self._make_due(session_id, due_in)

    async def settle_revocation(self, row: SessionRow) -> None:
        """Note that OTPLESS knows; the next claim drops the entry of the outbox."""
        await self._run(lua.SETTLE, self._row_key(row.session_id), row.session_token)

    async def purge(self, limit: int) -> int:  # noqa: ARG002 - as the Protocol has it
        """Delete nothing: Redis lets keys expire, and each list drops its expired entries when it is written."""
        return 0

    # Keys and commands

    def _key(self, *parts: str) -> str:
        return self._prefix + ":".join(parts)

    def _row_key(self, session_id: str) -> str:
        return self._key("session", session_id)

    async def _do(self, key: str | None, work: Work, *, is_read: bool = False) -> Any:
        link = self._links.there() or await self._links.get()
        return await link.do(key, work, is_read=is_read)

    async def _run(self, script: lua.Script, key: str, *arguments: str | bytes, is_read: bool = False) -> Any:
        link = self._links.there() or await self._links.get()
        return await link.run(script, key, repr(self._offset()), *arguments, is_read=is_read)

    async def _kept(self, session_id: str) -> _Kept | None:
        try:
            now, flat = await self._run(lua.READ, self._row_key(session_id), is_read=True)
        except ForeignValueError:
            return None
        self._clock.told(float(now) - self._offset())
        return _kept(_values(flat), session_id, float(now))

    async def _damage(self, session_id: str) -> bytes | str:
        """Return state and fence of what this package cannot have written in a row's place; empty: there is no such."""
        try:
            now, flat = await self._run(lua.READ, self._row_key(session_id), is_read=True)
        except ForeignValueError:
            return "foreign"
        values = _values(flat)
        if not values or _kept(values, session_id, float(now)) is not None:
            return ""
        return values.get(b"state", b"") + b" " + values.get(b"fence", b"")

    async def _entry(self, digest: bytes) -> _Entry | None:
        key = self._key("token", digest.hex())
        try:
            return _Entry.read(await self._do(key, lambda client: client.get(key), is_read=True), digest)
        except ForeignValueError:
            return None

    async def _hint(self, digest: str, entry: _Entry, row: SessionRow, *, is_new: bool = False) -> None:
        key, ends = self._key("token", digest), self._collected_at(row)
        await self._do(key, lambda client: client.set(key, entry.text(digest), nx=is_new, pxat=ends))

    async def _retire(self, generation: _Generation, row: SessionRow) -> None:
        for digest, entry in generation.entries(row.session_id, was_backed=True):
            await self._hint(digest, entry, row)

    async def _keep_entries(self, generation: _Generation, row: SessionRow, *, anew: bool) -> None:
        """Have a generation's entries stay as long as the row; `anew`: some may be missing.

        One that is there is left as it is: it may tell that the row has forgotten the digest since it was read.
        """
        ends = str(self._collected_at(row))
        for digest, entry in generation.entries(row.session_id):
            if anew:
                await self._hint(digest, entry, row, is_new=True)
            await self._run(lua.PROLONG, self._key("token", digest), ends)

    async def _remember(self, row: SessionRow) -> None:
        await self._run(lua.REMEMBER, self._key("user", row.user_id), row.session_id, _number(row.expires_at))

    async def _make_due(self, session_id: str, seconds: float | None, *, ahead: bool = False) -> None:
        """Note in the outbox when OTPLESS is to be told; `ahead` of the row, so late that no claim comes before it."""
        if seconds is not None:
            seconds = max(seconds, 2 * PATIENCE) if ahead else seconds
            await self._to_outbox(lua.DUE, session_id, _number(seconds))

    async def _make_overdue_known(self, kept: _Kept) -> None:
        if kept.is_overdue:
            await self._make_due(kept.row.session_id, 0.0)

    async def _to_outbox(self, script: lua.Script, session_id: str, when: str | bytes) -> None:
        """Write into the outbox, now or later: the row says when OTPLESS is to be told, and that it is to be."""
        try:
            await self._run(script, self._key("due"), session_id, when)
        except StoreError as error:
            self._incomplete.put(session_id, True)
            logger.warning("The outbox hears of a sign-out later: %s", error)

    async def _make_up(self, session_ids: Iterable[str]) -> None:
        """Make up for what could not be written; what still cannot, another time, behind the others."""
        await asyncio.gather(*map(self._complete, session_ids))

    async def _complete(self, session_id: str) -> None:
        """Write what a session's row tells that there has to be."""
        self._incomplete.drop(session_id)
        try:
            kept = await self._kept(session_id)
            if kept is not None and kept.row.revocation_due is not None:
                await self._make_due(session_id, 0.0)  # if that is too early, the next claim puts it right
            elif kept is not None:
                await self._pay(kept)
        except StoreError:
            self._incomplete.put(session_id, True)
        except asyncio.CancelledError:  # the worker stops: `close` tries again
            self._incomplete.put(session_id, True)
            raise

    def _collected_at(self, row: SessionRow) -> int:
        """Return when, in milliseconds of the server's own time, a key of a row may go."""
        return max(1, int((row.expires_at - self._offset() + lua.KEPT_LONGER) * 1000))


def _number(value: float) -> str:
    if not math.isfinite(value):
        raise StoreError("Redis: a number to be stored is not finite")
    return repr(value)


def _text(value: Any) -> str | bytes:
    if value is None:
        return ""
    return _number(value) if isinstance(value, float) else value if isinstance(value, bytes) else str(value)


def _flat(row: SessionRow, lineage: Iterable[_Generation]) -> Iterator[str | bytes]:
    """Return a row's columns and values, one after the other. None is an empty text."""
    for column, value in record_of(row).items():
        yield column
        yield _text(value)
    yield DIGESTS
    yield _lineage_text(lineage)


def _values(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _read(flat: Sequence[bytes]) -> SessionRow | None:
    return _row(_values(flat))


def _kept(values: Mapping[bytes, bytes], session_id: str, now: float) -> _Kept | None:
    row, lineage = _row(values), _lineage(values.get(DIGESTS.encode()))
    if row is None or lineage is None or row.session_id != session_id:
        return None
    return _Kept(row, lineage, values[DIGESTS.encode()].decode(), now, _owes(values))


def _owes(values: Mapping[bytes, bytes]) -> bool:
    return bool(values.get(OWES.encode()))


def _row(values: Mapping[bytes, bytes]) -> SessionRow | None:
    """Read a row; None where it is absent, or this package cannot have written it."""
    try:
        return row_of([_value(TYPES[column], values[column.encode()]) for column in COLUMNS])
    except (KeyError, ValueError):
        return None


def _value(kind: Any, text: bytes) -> Any:
    """Return what `_text` was given, by the column's type. Raises `ValueError`."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if type(None) in kinds and not text:
        return None
    if bytes in kinds:
        return text
    return text.decode() if str in kinds else _sane(float(text) if float in kinds else int(text))


def _sane(value: float) -> float:
    if not abs(value) < LARGEST:  # nor is NaN
        raise ValueError("too large")
    return value


def _lineage(text: bytes | None) -> tuple[_Generation, ...] | None:
    """Read the digests that a row backs; None where they cannot be read."""
    try:
        parts = (each.split(":") for each in (text or b"").decode().split(",") if each)
        return None if text is None else tuple(_Generation(int(n), token, refresh) for n, token, refresh in parts)
    except ValueError:
        return None


def _lineage_text(lineage: Iterable[_Generation]) -> str:
    """Return digests as a row keeps them: of the generation that the client was seen to have, and of the newest."""
    known = list(lineage)
    if len(known) > LONGEST_LINEAGE:
        known = [known[0], *known[1 - LONGEST_LINEAGE :]]
    return ",".join(f"{each.number}:{each.token}:{each.refresh}" for each in known)
