"""The Redis store, for a single server or a Cluster; Valkey is the same.

    <prefix>session:<session id>   hash     the row, and the digests of its generations that still count
    <prefix>token:<digest>         string   the index: a hint at the row, written before the row says so
    <prefix>user:<user id>         zset     the ids of a user's sessions, by when they expire
    <prefix>due                    zset     the outbox: ids of ended sessions, by when OTPLESS is to be told

Only the row decides, and each of its transitions is one script on its key. The other keys may live on other servers,
so they are hints: written first, idempotent, checked against the row when read, and dropped when found to be wrong.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi_otpless_session.errors import StoreError
from fastapi_otpless_session.loops import PerLoop
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
from fastapi_otpless_session.telemetry import logger

DIGESTS = "digests"
LONGEST_LINEAGE = 32
"""How many generations that nobody confirmed a row knows the digests of."""
DIGEST_SHOWN = 8
"""So many bytes of a digest stand in its index entry, as a check that the answer is the question's."""
OLD = "old-"
UNFINISHED_SECONDS = 600.0
"""When an entry of the outbox is looked at again whose session goes on: the end may be under way."""
COMMIT_TRIES = 5
LARGEST = 2.0**53
"""From here on Lua's numbers are no longer exact."""


@dataclass(frozen=True, slots=True)
class _Generation:
    """The digests of a generation's tokens, in hex."""

    number: int
    token: str
    refresh: str


@dataclass(frozen=True, slots=True)
class _Kept:
    """A row as Redis has it, the digests that it backs, and the server's time."""

    row: SessionRow
    lineage: tuple[_Generation, ...]
    digests: str
    now: float

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

    def text(self, digest: bytes) -> str:
        kind = (OLD if self.was_backed else "") + ("refresh" if self.is_refresh else "token")
        return f"{digest[:DIGEST_SHOWN].hex()} {kind} {self.generation} {self.session_id}"

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
        self._links: PerLoop[RedisLink] = PerLoop(lambda: RedisLink(address), RedisLink.close)

    async def open(self) -> None:
        """Connect. Raises `StoreError`."""
        await self.now()

    async def close(self) -> None:
        """Close the running event loop's connections."""
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
        return float(seconds + microseconds / 1e6 + self._offset())

    async def find(self, digest: bytes) -> Found | None:
        """Look a token up by its digest: the index, then the row, which must back it."""
        entry = await self._entry(digest)
        kept = None if entry is None else await self._kept(entry.session_id)
        if entry is None or kept is None or kept.row.expires_at <= kept.now:
            return None
        generation = kept.generation_of(entry, digest.hex())
        return None if generation is None else Found(kept.row, generation, kept.now)

    async def get(self, session_id: str) -> SessionRow | None:
        """Return a session's row."""
        kept = await self._kept(session_id)
        return None if kept is None or kept.row.expires_at <= kept.now else kept.row

    async def create(self, row: SessionRow, token_digest: bytes, refresh_digest: bytes) -> SessionRow | None:
        """Insert a first row with its digests, or return the one that was there."""
        first = _Generation(row.generation, token_digest.hex(), refresh_digest.hex())
        hints = (
            self._hint(token_digest, _Entry(row.session_id, row.generation, is_refresh=False), row, is_new=True),
            self._hint(refresh_digest, _Entry(row.session_id, row.generation, is_refresh=True), row, is_new=True),
            self._remember(row),
        )
        await asyncio.gather(*hints)
        there = await self._run(lua.CREATE, self._row_key(row.session_id), *_flat(row, (first,)))
        if there is None:
            return None
        found = _read(there)
        if found is None:
            raise StoreError("Redis: there is a row of this session which cannot be read")
        return found

    async def take_lease(self, session_id: str, generation: int, owner: str, seconds: float) -> Lease | None:
        """Take the lease of an active row of this generation that nobody holds."""
        taken = await self._run(lua.TAKE_LEASE, self._row_key(session_id), str(generation), owner, _number(seconds))
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
        await asyncio.gather(
            self._hint(rotation.token_digest, _Entry(row.session_id, new.number, is_refresh=False), row),
            self._hint(rotation.refresh_digest, _Entry(row.session_id, new.number, is_refresh=True), row),
            self._remember(row),
            *(self._keep_entries(each, row) for each in kept.lineage),
        )
        return await self._run(
            lua.COMMIT,
            self._row_key(row.session_id),
            str(lease.fence),
            lease.owner,
            kept.digests,
            _lineage_text((*kept.lineage, new)),
            new.token,
            *("session_token", rotation.session_token, "token_expires_at", _number(rotation.token_expires_at)),
            *("refresh_token", rotation.refresh_token, "expires_at", _number(rotation.expires_at)),
        )

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
        await self._make_due(row.session_id, revoke_in, ahead=True)
        damage = await self._damage(row.session_id)
        wanted = (reason.value, _text(revoke_in), _text(fence), damage)
        ended = _read(await self._run(lua.END, self._row_key(row.session_id), *wanted, *_flat(row, ())))
        if ended is None:
            raise StoreError("Redis: a row cannot be read that was written just now")
        if ended.revocation_due is not None:
            await self._make_due(row.session_id, revoke_in)
        return ended

    async def list_user(self, user_id: str) -> Sequence[SessionRow]:
        """Return a user's active rows, the newest first, up to a thousand.

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
        """Take ended rows whose telling is due."""
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
            await self._run(lua.LATER, self._key("due"), row.session_id, due)

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

    async def _hint(self, digest: bytes, entry: _Entry, row: SessionRow, *, is_new: bool = False) -> None:
        key, ends = self._key("token", digest.hex()), self._collected_at(row)
        await self._do(key, lambda client: client.set(key, entry.text(digest), nx=is_new, pxat=ends))

    async def _retire(self, generation: _Generation, row: SessionRow) -> None:
        for digest, is_refresh in ((generation.token, False), (generation.refresh, True)):
            entry = _Entry(row.session_id, generation.number, is_refresh=is_refresh, was_backed=True)
            await self._hint(bytes.fromhex(digest), entry, row)

    async def _keep_entries(self, generation: _Generation, row: SessionRow) -> None:
        ends = self._collected_at(row)
        for digest in (generation.token, generation.refresh):
            await self._prolong(self._key("token", digest), ends)

    async def _prolong(self, key: str, ends: int) -> None:
        await self._do(key, lambda client: client.pexpireat(key, ends))

    async def _remember(self, row: SessionRow) -> None:
        await self._run(lua.REMEMBER, self._key("user", row.user_id), row.session_id, _number(row.expires_at))

    async def _make_due(self, session_id: str, seconds: float | None, *, ahead: bool = False) -> None:
        """Note in the outbox when OTPLESS is to be told; `ahead` of the row, so late that no claim comes before it."""
        if seconds is not None:
            seconds = max(seconds, 2 * PATIENCE) if ahead else seconds
            await self._run(lua.DUE, self._key("due"), session_id, _number(seconds))

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
    return _Kept(row, lineage, values[DIGESTS.encode()].decode(), now)


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
