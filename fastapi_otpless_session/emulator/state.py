"""The sessions and tokens that the emulated OTPLESS knows, and what becomes of them. All in memory."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice
from typing import Any

from fastapi_otpless_session.emulator.keys import KeyRing
from fastapi_otpless_session.emulator.profiles import Person, device, identities, iso, network
from fastapi_otpless_session.emulator.settings import EmulatorSettings

KEPT_TOKENS = 100
"""How many tokens of each kind a session is known by: the newest. Older ones are as unknown as made-up ones."""

_SHARE_FORGOTTEN = 100
"""Of how many sessions one is forgotten at a time, once there are too many: which ones takes a look at all of them."""
_SHOWN = 6
"""How many of a token's last characters the page shows: enough to tell two apart, and the first ones are all alike."""


class Standing(Enum):
    """What a presented token is to the emulator."""

    LIVE = "live"
    DEAD = "dead"
    UNKNOWN = "unknown"
    FOREIGN = "foreign"


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A snapshot of a session. Times are in seconds since the epoch; the counts are of live tokens.

    `generation` is 1 at first and grows by one with each refresh.
    """

    session_id: str
    user_id: str
    foreign: bool
    revoked: bool
    started_at: float
    last_active_at: float
    session_tokens: int
    refresh_tokens: int
    generation: int


@dataclass(frozen=True, slots=True)
class Pair:
    """A session's id with its tokens, as a sign-in or a refresh hands them out."""

    session_id: str
    session_token: str = field(repr=False)
    refresh_token: str = field(repr=False)

    def as_json(self) -> dict[str, str]:
        """The pair under the names of the wire."""
        return {
            "sessionId": self.session_id,
            "sessionToken": self.session_token,
            "refreshToken": self.refresh_token,
        }


@dataclass(slots=True, eq=False)
class Issued:
    """What a session is known by, dead or alive, the oldest first."""

    session_tokens: list[str] = field(default_factory=list, repr=False)
    refresh_tokens: list[str] = field(default_factory=list, repr=False)
    one_time_token: str = field(default="", repr=False)


@dataclass(slots=True, eq=False)
class Session:
    """A session; its token tables map each live token to the time of its expiry."""

    session_id: str
    who: Person
    foreign: bool
    started_at: float
    last_active_at: float
    session_lifetime: float
    refresh_lifetime: float
    revoked: bool = False
    generation: int = 1
    session_tokens: dict[str, float] = field(default_factory=dict, repr=False)
    refresh_tokens: dict[str, float] = field(default_factory=dict, repr=False)
    used_refresh_tokens: set[str] = field(default_factory=set, repr=False)
    issued: Issued = field(default_factory=Issued, repr=False)

    def has_ended(self, now: float) -> bool:
        """Whether it was revoked, or all its tokens are dead."""
        return self.revoked or not (_live(self.session_tokens, now) or _live(self.refresh_tokens, now))

    def revoke(self) -> None:
        """Kill the session and all its tokens."""
        self.revoked = True
        self.session_tokens.clear()
        self.refresh_tokens.clear()

    def record(self, now: float) -> SessionRecord:
        """What the session looks like at `now`."""
        return SessionRecord(
            session_id=self.session_id,
            user_id=self.who.user_id,
            foreign=self.foreign,
            revoked=self.revoked,
            started_at=self.started_at,
            last_active_at=self.last_active_at,
            session_tokens=_live(self.session_tokens, now),
            refresh_tokens=_live(self.refresh_tokens, now),
            generation=self.generation,
        )

    def as_json(self, now: float) -> dict[str, Any]:
        """What the page shows of the session: of each kind only the newest token, which lives longest."""
        return {
            "sessionId": self.session_id,
            "userId": self.who.user_id,
            "knownAs": self.who.name or self.who.mobile or self.who.email,
            "foreign": self.foreign,
            "revoked": self.revoked,
            "generation": self.generation,
            "startedAt": self.started_at,
            "lastActiveAt": self.last_active_at,
            "sessionToken": _newest(self.session_tokens, now, self.session_lifetime),
            "refreshToken": _newest(self.refresh_tokens, now, self.refresh_lifetime),
        }


@dataclass(slots=True)
class OneTimeToken:
    """The token of one sign-in, for validate/token."""

    session: Session
    pair: Pair
    issued_at: float
    used: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """How a presented token stands, with its session where there is one."""

    standing: Standing
    session: Session | None = None


class State:
    """All that the emulator remembers."""

    def __init__(self, settings: EmulatorSettings, keys: KeyRing, clock: Callable[[], float]) -> None:
        self.settings = settings
        self.keys = keys
        self.clock = clock
        self._sessions: dict[str, Session] = {}
        self._session_token_owners: dict[str, Session] = {}
        self._refresh_token_owners: dict[str, Session] = {}
        self._one_time: dict[str, OneTimeToken] = {}

    # What the tests and the control API do

    def sign_in(
        self,
        who: Person,
        *,
        foreign: bool = False,
        session_lifetime: float | None = None,
        refresh_lifetime: float | None = None,
    ) -> dict[str, Any]:
        """Start a session and return the SDK's `otplessUser`."""
        now = self.clock()
        session = Session(
            session_id=secrets.token_hex(16),
            who=who,
            foreign=foreign,
            started_at=now,
            last_active_at=now,
            session_lifetime=session_lifetime or self.settings.session_lifetime,
            refresh_lifetime=refresh_lifetime or self.settings.refresh_lifetime,
        )
        self._sessions[session.session_id] = session
        pair = Pair(session.session_id, self._new_session_token(session), self._new_refresh_token(session))
        token = secrets.token_hex(16)
        self._one_time[token] = OneTimeToken(session, pair, now)
        session.issued.one_time_token = token
        self._make_room()
        return {
            **self.sign_in_answer(session, token),
            "idToken": self._id_token(session),
            "sessionInfo": pair.as_json(),
        }

    def sign_in_answer(self, session: Session, token: str) -> dict[str, Any]:
        """What the SDK and validate/token both say about a sign-in."""
        started = session.started_at
        return {
            "token": token,
            "status": "SUCCESS",
            "userId": session.who.user_id,
            "timestamp": iso(started),
            "identities": identities(session.who, started, self.settings.verified_at),
            "network": network(),
            "deviceInfo": device(),
        }

    def sessions(self) -> list[Session]:
        """All sessions, in the order of their start."""
        return list(self._sessions.values())

    def newest(self, most: int) -> tuple[int, list[Session]]:
        """How many sessions there are, and the newest of them, the newest first."""
        return len(self._sessions), list(islice(reversed(self._sessions.values()), most))

    def get(self, session_id: str) -> Session:
        """The session with this id. Raises KeyError when there is none."""
        return self._sessions[session_id]

    def expire(self, session_id: str) -> None:
        """Kill the session tokens issued so far; the refresh token keeps working."""
        self.get(session_id).session_tokens.clear()

    def kill_refresh(self, session_id: str) -> None:
        """Kill the refresh tokens issued so far."""
        self.get(session_id).refresh_tokens.clear()

    # What the wire asks

    def find_session_token(self, token: str) -> Found:
        """How a token stands that was presented as a session token."""
        session = self._session_token_owners.get(token)
        return self._found(session, token, session.session_tokens if session else {})

    def find_refresh_token(self, token: str) -> Found:
        """How a token stands that was presented as a refresh token."""
        session = self._refresh_token_owners.get(token)
        return self._found(session, token, session.refresh_tokens if session else {})

    def refresh(self, session: Session, refresh_token: str) -> Pair:
        """New tokens for a live refresh token, by the settings' rotation."""
        if self.settings.refresh_kills_old_token:
            session.session_tokens.clear()
        session.last_active_at = self.clock()
        session.generation += 1
        return Pair(session.session_id, self._new_session_token(session), self._rotated(session, refresh_token))

    def punish_reuse(self, session: Session, refresh_token: str) -> None:
        """Revoke the session if `refresh_token` was used up by an earlier refresh."""
        if refresh_token in session.used_refresh_tokens:
            session.revoke()

    def redeem(self, token: str) -> OneTimeToken | None:
        """Use a one-time token; None if it is unknown, foreign, too old or used up."""
        found = self._one_time.get(token)
        if found is None or found.session.foreign or found.session.revoked:
            return None
        if self.clock() >= found.issued_at + self.settings.one_time_token_lifetime:
            return None
        if found.used and not self.settings.one_time_token_reusable:
            return None
        found.used = True
        return found

    def one_time_session_id(self, token: str) -> str | None:
        """The session that a one-time token was made for, used up or not."""
        found = self._one_time.get(token)
        return found.session.session_id if found else None

    # Inside

    def _found(self, session: Session | None, token: str, live: dict[str, float]) -> Found:
        if session is None:
            return Found(Standing.UNKNOWN)
        if session.foreign:
            return Found(Standing.FOREIGN, session)
        alive = self.clock() < live.get(token, 0.0)
        return Found(Standing.LIVE if alive else Standing.DEAD, session)

    def _rotated(self, session: Session, refresh_token: str) -> str:
        if self.settings.rotation == "fixed":
            return refresh_token
        if self.settings.rotation == "strict":
            session.refresh_tokens.pop(refresh_token)
            session.used_refresh_tokens.add(refresh_token)
        return self._new_refresh_token(session)

    def _new_session_token(self, session: Session) -> str:
        claims = self._claims(session, session.session_lifetime)
        named = {"name": session.who.name or "", "email": session.who.email or ""}
        token = self.keys.sign(claims | named)
        session.session_tokens[token] = claims["exp"]
        self._session_token_owners[token] = session
        session.issued.session_tokens.append(token)
        if len(session.issued.session_tokens) > KEPT_TOKENS:
            self._forget_session_token(session, session.issued.session_tokens.pop(0))
        return token

    def _new_refresh_token(self, session: Session) -> str:
        claims = self._claims(session, session.refresh_lifetime)
        token = self.keys.sign(claims)
        session.refresh_tokens[token] = claims["exp"]
        self._refresh_token_owners[token] = session
        session.issued.refresh_tokens.append(token)
        if len(session.issued.refresh_tokens) > KEPT_TOKENS:
            self._forget_refresh_token(session, session.issued.refresh_tokens.pop(0))
        return token

    def _forget_session_token(self, session: Session, token: str) -> None:
        self._session_token_owners.pop(token, None)
        session.session_tokens.pop(token, None)

    def _forget_refresh_token(self, session: Session, token: str) -> None:
        self._refresh_token_owners.pop(token, None)
        session.refresh_tokens.pop(token, None)
        session.used_refresh_tokens.discard(token)

    def _make_room(self) -> None:
        """Forget sessions once there are too many: those that have ended, then the oldest."""
        excess = len(self._sessions) - self.settings.kept_sessions
        if excess <= 0:
            return
        now = self.clock()
        in_turn = sorted(self._sessions.values(), key=lambda session: not session.has_ended(now))
        for session in in_turn[: excess + self.settings.kept_sessions // _SHARE_FORGOTTEN]:
            self._forget(session)

    def _forget(self, session: Session) -> None:
        self._sessions.pop(session.session_id, None)
        self._one_time.pop(session.issued.one_time_token, None)
        for token in session.issued.session_tokens:
            self._session_token_owners.pop(token, None)
        for token in session.issued.refresh_tokens:
            self._refresh_token_owners.pop(token, None)

    def _claims(self, session: Session, lifetime: float) -> dict[str, Any]:
        now = self.clock()
        return {
            "sub": session.session_id,
            "sessionId": session.session_id,
            "userId": session.who.user_id,
            "iss": self.settings.issuer,
            "iat": int(now),
            "exp": int(now + lifetime),
            # Two tokens of the same second differ.
            "jti": secrets.token_hex(8),
        }

    def _id_token(self, session: Session) -> str:
        now = int(self.clock())
        who = session.who
        claims = {
            "iss": self.settings.issuer,
            "aud": "ANOTHER" + self.settings.app_id if session.foreign else self.settings.app_id,
            "sub": who.user_id,
            "iat": now,
            "exp": int(now + session.session_lifetime),
            "phone_number": who.mobile or "",
            "email": who.email or "",
            "name": who.name or "",
        }
        return self.keys.sign(claims)


def _newest(tokens: dict[str, float], now: float, lifetime: float) -> dict[str, Any] | None:
    for token, expires_at in list(islice(reversed(tokens.items()), 1)):
        if now < expires_at:
            return {"shortened": "…" + token[-_SHOWN:], "expiresAt": expires_at, "lifetime": lifetime}
    return None


def _live(tokens: dict[str, float], now: float) -> int:
    return sum(now < expires_at for expires_at in list(tokens.values()))
