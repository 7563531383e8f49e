"""The Redis store's transitions: each is one script on one key, so that it works in a Cluster too.

The first argument is the offset to the server's clock. A script's writes come after all its checks, because Redis does
not roll back. Numbers stay the text that they were written as: Lua's own conversion would lose digits.

What sign-outs and their outbox write begins with the removal of a name that is never there: that takes no memory, and a
script that has written may go on in a full Redis.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from fastapi_otpless_session.stores.base import LEASES_AHEAD

KEPT_LONGER = 3600
"""How many seconds a key outlives its row's expiry. Keys expire to free memory only; nothing is decided by it."""

_TIME = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000 + ARGV[1]
local function stamp(seconds) return string.format('%.6f', seconds) end
local function keep_until(seconds)
  redis.call('PEXPIREAT', KEYS[1], string.format('%.0f', (seconds - ARGV[1] + {kept_longer}) * 1000))
end
""".replace("{kept_longer}", str(KEPT_LONGER))

_ROW = """
local function get(column) return redis.call('HGET', KEYS[1], column) end
local function all(...) return unpack(redis.call('HMGET', KEYS[1], ...)) end
local function set(...) redis.call('HSET', KEYS[1], ...) end
local function row() return redis.call('HGETALL', KEYS[1]) end
local function set_though_full(...)
  redis.call('HDEL', KEYS[1], '')
  set(...)
end
"""

_OUTBOX = """
local function put_though_full(...)
  redis.call('ZREM', KEYS[1], '')
  redis.call('ZADD', KEYS[1], ...)
end
"""


@dataclass(frozen=True, slots=True)
class Script:
    """A script and the name that Redis knows it by."""

    text: str
    sha: str


def _script(*parts: str) -> Script:
    text = "".join(parts)
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


def _on_row(body: str) -> Script:
    return _script(_TIME, _ROW, body)


def _without_time(body: str) -> Script:
    return _script(_ROW, body)


READ = _on_row("return {stamp(now), row()}")

CREATE = _on_row("""
local is_over = get('state') == 'active' and tonumber(get('expires_at')) <= now
if redis.call('EXISTS', KEYS[1]) == 1 and not is_over then return row() end
redis.call('DEL', KEYS[1])
set(unpack(ARGV, 2))
keep_until(get('expires_at'))
return false
""")

TAKE_LEASE = _on_row(
    f"local leases_ahead = {LEASES_AHEAD}"
    """
local generation, owner, seconds, not_after = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
if now - ARGV[1] > tonumber(not_after) then return false end
local state, its_generation, busy_until, before, fence =
  all('state', 'generation', 'lease_until', 'lease_owner', 'fence')
if state ~= 'active' or its_generation ~= generation then return false end
local ends, busy_for = stamp(now + seconds), busy_until - now
if busy_for > leases_ahead * seconds then set('lease_until', ends) end
if busy_for > 0 then return false end
fence = string.format('%.0f', fence + 1)
set('lease_owner', owner, 'lease_until', ends, 'fence', fence)
return {fence, ends, before}
"""
)

RENEW_LEASE = _on_row("""
local fence, owner, seconds = ARGV[2], ARGV[3], ARGV[4]
local state, its_fence, its_owner = all('state', 'fence', 'lease_owner')
if state ~= 'active' or its_fence ~= fence or its_owner ~= owner then return false end
local ends = stamp(now + seconds)
set('lease_until', ends)
return ends
""")

RELEASE_LEASE = _without_time("""
local fence, owner, left = ARGV[2], ARGV[3], ARGV[4]
local its_fence, its_owner = all('fence', 'lease_owner')
if its_fence == fence and its_owner == owner then set('lease_owner', left, 'lease_until', '0.0') end
""")

COMMIT = _on_row("""
local fence, owner, as_read, digests, token, answered_at = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local state, its_fence, its_owner, before, its_digests = all('state', 'fence', 'lease_owner', 'generation', 'digests')
if state ~= 'active' or its_fence ~= fence then return false end
if its_owner ~= owner then
  if string.find(its_digests, token, 1, true) then return row() end
  return false
end
if its_digests ~= as_read then return 'again' end
set('generation', string.format('%.0f', before + 1), 'digests', digests, 'lease_owner', '',
  'lease_until', '0.0', 'rotated_at', stamp(now), 'last_seen_at', stamp(now),
  'validated_at', stamp(math.min(now, answered_at)), unpack(ARGV, 8))
keep_until(get('expires_at'))
return row()
""")

PAID = _without_time("if get('digests') == ARGV[2] then redis.call('HDEL', KEYS[1], 'owes') end")
"""What leads to a row is written, as far as the row knew of it."""

CONFIRM = _without_time("""
local generation, as_read, confirmations, digests = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
if get('generation') == generation and get('confirmations') == as_read then
  set('confirmations', confirmations, 'digests', digests)
end
""")

TOUCH = _on_row("""
local generation, is_validated = ARGV[2], ARGV[3] == '1'
if get('state') ~= 'active' then return end
set('last_seen_at', stamp(now))
if is_validated and get('generation') == generation then set('validated_at', stamp(now)) end
""")

END = _on_row("""
-- A row that cannot be read is replaced, if it is still the one that was read: `damage` is its state and fence.
local reason, revoke_in, fence, damage = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local function damaged()
  if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then return 'foreign' end
  return (get('state') or '') .. ' ' .. (get('fence') or '')
end
local is_there = redis.call('EXISTS', KEYS[1]) == 1
if is_there and damage ~= '' and damaged() == damage then is_there = false end
local given = {}
for place = 6, #ARGV, 2 do given[ARGV[place]] = ARGV[place + 1] end
local state, before = given['state'], given['fence']
if is_there then state, before = get('state'), get('fence') end
if state == 'ended' or (fence ~= '' and before ~= fence) then return is_there and row() or {unpack(ARGV, 6)} end
if not is_there then
  redis.call('DEL', KEYS[1])
  set(unpack(ARGV, 6))
end
local due = revoke_in ~= '' and stamp(now + revoke_in) or ''
set_though_full('state', 'ended', 'end_reason', reason, 'fence', string.format('%.0f', before + 1), 'lease_owner', '',
  'lease_until', '0.0', 'revocation_due', due)
local over = row() -- it is gone at once where its expiry is long past
keep_until(get('expires_at'))
return over
""")

CLAIM = _on_row("""
local due = get('revocation_due')
if get('state') == 'active' then return 'active' end
if not due or due == '' then return 'settled' end
if tonumber(due) > now then return due end
set_though_full('revocation_due', stamp(now + ARGV[2]))
return row()
""")
"""What a row says to a claim: the row; or why it has nothing to tell now; or from when on it has."""

POSTPONE = _on_row("""
local session_token, seconds = ARGV[2], ARGV[3]
local due = get('revocation_due')
if not due or due == '' or get('session_token') ~= session_token then return false end
due = stamp(now + seconds)
local attempts = string.format('%.0f', get('revocation_attempts') + 1)
set_though_full('revocation_due', due, 'revocation_attempts', attempts)
return due
""")

REPLACE = _on_row("""
local session_token, refresh_token, at_least, due_in = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local state, expires_at = all('state', 'expires_at')
if state ~= 'ended' then return end
if tonumber(at_least) > tonumber(expires_at) then expires_at = at_least end
set_though_full('session_token', session_token, 'refresh_token', refresh_token,
  'revocation_due', stamp(now + due_in),
  'expires_at', expires_at)
keep_until(expires_at)
""")

SETTLE = _without_time("""
if get('session_token') == ARGV[2] then set_though_full('revocation_due', '') end
""")

PROLONG = _script("""
local left, time = redis.call('PTTL', KEYS[1]), redis.call('TIME')
if left >= 0 and time[1] * 1000 + time[2] / 1000 + left < tonumber(ARGV[2]) then
  redis.call('PEXPIREAT', KEYS[1], ARGV[2])
end
""")
"""Never shorten: whoever writes it may have been overtaken. (`PEXPIREAT … GT` takes Redis 7.)"""

REMEMBER = _script(
    _TIME,
    """
local session_id, expires_at = ARGV[2], ARGV[3]
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', stamp(now))
redis.call('ZADD', KEYS[1], 'GT', expires_at, session_id)
keep_until(redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')[2])
""",
)
"""A user's list: session ids by when they expire, those that have expired dropped."""

LIST = _script(_TIME, "return redis.call('ZREVRANGEBYSCORE', KEYS[1], '+inf', '(' .. stamp(now), 'LIMIT', 0, ARGV[2])")

DUE = _script(_TIME, _OUTBOX, "put_though_full('LT', stamp(now + ARGV[3]), ARGV[2])")
"""The outbox: session ids by when OTPLESS is to be told; the sooner of two times counts."""

LATER = _script(_OUTBOX, "put_though_full(ARGV[3], ARGV[2])")
"""The outbox, again: a telling was put off, whatever it says now."""

CLAIM_DUE = _script(
    _TIME,
    _OUTBOX,
    """
local limit, hold = ARGV[2], stamp(now + ARGV[3])
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', stamp(now), 'LIMIT', 0, limit)
for _, session_id in ipairs(due) do put_though_full(hold, session_id) end
return {hold, due}
""",
)

RESCHEDULE = _script(
    _OUTBOX,
    """
local session_id, held, later = ARGV[2], ARGV[3], ARGV[4]
local score = redis.call('ZSCORE', KEYS[1], session_id)
if not score or tonumber(score) ~= tonumber(held) then return end
if later == '' then redis.call('ZREM', KEYS[1], session_id) else put_though_full(later, session_id) end
""",
)
"""Drop an entry of the outbox, or put it off, unless somebody made it due anew since it was claimed."""
