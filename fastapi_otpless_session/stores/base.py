"""What a session store is: one row a session, an index from token digests to rows, and a few atomic transitions.

The contract, for whoever writes another store (`fastapi_otpless_session.testing.store_contract` is its test suite):

- Only the row is atomic. Each transition below happens wholly or not at all, and is decided by the row's state at that
  moment, never by what the caller read before.
- `fence` grows with every lease and with every end, so that whoever slept through either is refused.
- A row that ended is never active again. A commit updates; it never inserts.
- A row may be gone as soon as its `expires_at` has passed, and its digests with it.
- All times are the store's own clock (`now`), in seconds since the epoch, so that hosts need not agree.
- A digest that its row does not back is unknown: `find` returns None for it.
- Every method may raise `StoreError`, and nothing else. It then says nothing about what happened: a commit may have
  happened, and is safe to try again.
- The store never sees a token: digests and sealed values only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, runtime_checkable

REFRESH_TOKEN = 0
"""The generation under which a refresh token's digest is indexed; session tokens start at 1."""
FIRST_GENERATION = 1
CONFIRMATIONS_KEPT = 16
PATIENCE = 5.0
"""How many seconds a call to a store's server may take before it is a fault."""
LEASES_AHEAD = 10
"""A lease that ends more than so many lengths ahead was taken before the store's clock was set back."""
LONGEST_LIST = 1000
"""How many of a user's sessions are listed at most."""


class State(StrEnum):
    """Whether a row's session goes on."""

    ACTIVE = "active"
    ENDED = "ended"


class EndReason(StrEnum):
    """Why a row's session ended."""

    REVOKED = "revoked"
    EXPIRED = "expired"
    REUSED = "reused"


class Standing(StrEnum):
    """How a generation of a session's token stands to the current one."""

    CURRENT = "current"
    OLDER = "older"
    """Superseded, and still good: its successor was not seen yet, or only just."""
    SUPERSEDED = "superseded"
    FORGOTTEN = "forgotten"
    """Superseded by now; the row no longer tells whether it was at the time that is asked about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRow:
    """One session. Tokens are sealed; times are seconds since the epoch by the store's clock."""

    session_id: str
    user_id: str
    state: State = State.ACTIVE
    end_reason: EndReason | None = None
    generation: int = FIRST_GENERATION
    """Counts the session's tokens: each refresh that is committed adds one."""
    confirmations: tuple[tuple[int, float], ...] = ((FIRST_GENERATION, 0.0),)
    """Which generations the client was seen to have, and since when; oldest first, pruned to the grace."""
    rotated_at: float = 0.0
    """When the current generation was committed."""
    session_token: bytes = field(default=b"", repr=False)
    token_expires_at: float = 0.0
    """When the session token expires, which is what a refresh is for."""
    refresh_token: bytes = field(default=b"", repr=False)
    lease_owner: str | None = None
    """Who may refresh the session. One that is left on a free lease never learned OTPLESS's answer."""
    lease_until: float = 0.0
    """When the lease is free again; 0: it was given back."""
    fence: int = 0
    """Counts leases: whoever commits with an older one is too late."""
    validated_at: float = 0.0
    """When OTPLESS last said that the session is valid."""
    created_at: float = 0.0
    last_seen_at: float = 0.0
    """When a request last brought it, as noted now and then."""
    expires_at: float = 0.0
    """When the last of its tokens expires; the row may be deleted from then on."""
    summary: str = "{}"
    """What a list of the user's devices shows, as JSON."""
    revocation_due: float | None = None
    """When OTPLESS is to be told, once more maybe, that the session ended; None: it need not be."""
    revocation_attempts: int = 0

    @property
    def confirmed_generation(self) -> int:
        """The newest generation that the client was seen to have."""
        return self.confirmations[-1][0]

    @property
    def is_confirmed(self) -> bool:
        """Whether the client was seen to have the current generation."""
        return self.confirmed_generation >= self.generation

    def standing(self, generation: int, now: float, grace: float) -> Standing:
        """Say whether a token of `generation` still counts, `grace` seconds after its successor was confirmed.

        `now` may lie before a confirmation: such a token did count then, as long as the row tells of its successor's.
        """
        if generation == self.generation:
            return Standing.CURRENT
        if generation >= self.confirmed_generation:
            return Standing.OLDER
        oldest, since = self.confirmations[0]
        if generation < oldest - 1:
            return Standing.SUPERSEDED if now - since >= grace else Standing.FORGOTTEN
        superseded_at = next(at for confirmed, at in self.confirmations if confirmed > generation)
        return Standing.OLDER if now - superseded_at < grace else Standing.SUPERSEDED

    def confirmed(self, now: float, grace: float) -> tuple[tuple[int, float], ...]:
        """Return `confirmations` with the current generation added, and all but one of those past their grace gone."""
        known = list(self.confirmations)
        while len(known) > 1 and (known[1][1] <= now - grace or len(known) >= CONFIRMATIONS_KEPT):
            known.pop(0)
        return (*known, (self.generation, now))


@dataclass(frozen=True, slots=True)
class Found:
    """What the index has for a digest: the row, the token's generation, and the store's time."""

    row: SessionRow
    generation: int
    now: float


@dataclass(frozen=True, slots=True)
class Lease:
    """The sole right to refresh a session, until `until` by the store's clock."""

    session_id: str
    owner: str
    fence: int
    until: float
    follows_lost_answer: bool
    """Whether a holder before this one asked OTPLESS and never learned the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """What a refresh brings: the next generation's tokens, sealed, and their digests."""

    token_digest: bytes
    session_token: bytes = field(repr=False)
    token_expires_at: float
    refresh_digest: bytes
    refresh_token: bytes = field(repr=False)
    expires_at: float
    answered_at: float
    """When OTPLESS gave them, by the store's clock. `validated_at` is to be that, or now if that is less."""


@runtime_checkable
class WatchfulStore(Protocol):
    """A store that can tell without waiting that nothing has changed, which is the case of most requests.

    A store need not be one: it is asked with `find` then.
    """

    def unchanged_at(self, digest: bytes, row: SessionRow) -> float | None:
        """Return the store's time if the active row of a session is as `row`; None: it is not, or cannot be told now.

        What is compared: the generation, and when the session was validated and seen and its token expires. `digest`
        led to the row when it was read, as its current token's; it may be looked up again, and need not be.
        """
        ...

    def unknown_at(self, digest: bytes, session_id: str) -> float | None:
        """Return the store's time if no token has this digest and no session of this id has ended; else None."""
        ...


MOST_COUNTED = 10_000


@runtime_checkable
class CountingStore(Protocol):
    """A store that can say how long its outbox is, for the metrics. A store need not be one."""

    async def waiting_revocations(self) -> int:
        """Return of how many ended sessions OTPLESS has yet to be told; `MOST_COUNTED` stands for that or more."""
        ...


class SessionStore(Protocol):
    """A place for session rows. One object serves all event loops of a process."""

    async def open(self) -> None:
        """Make ready, creating what is missing. Calling it again is harmless. Raises `StoreError`."""
        ...

    async def close(self) -> None:
        """Let go of what `open` took. A later `open` works again."""
        ...

    async def now(self) -> float:
        """Return the store's time."""
        ...

    async def find(self, digest: bytes) -> Found | None:
        """Look a token up by its digest."""
        ...

    async def get(self, session_id: str) -> SessionRow | None:
        """Return a session's row."""
        ...

    async def create(self, row: SessionRow, token_digest: bytes, refresh_digest: bytes) -> SessionRow | None:
        """Insert a first row with its digests. Return None; or, changing nothing, the row that was there."""
        ...

    async def take_lease(self, session_id: str, generation: int, owner: str, seconds: float) -> Lease | None:
        """Take the lease of an active row of this generation that nobody holds; the fence grows. None: not now.

        One that was taken before the clock was set back (`LEASES_AHEAD`) ends `seconds` from now: whoever has it may be
        at it still, and may as well be gone. A call that was given up takes none, however late the server gets to it:
        nobody would know who holds it.
        """
        ...

    async def renew_lease(self, lease: Lease, seconds: float) -> Lease | None:
        """Hold a lease for `seconds` from now. None: it is somebody else's now, or the session ended."""
        ...

    async def release_lease(self, lease: Lease, *, answer_lost: bool) -> None:
        """Give a lease back; `answer_lost`: OTPLESS may have acted on a call whose answer did not arrive."""
        ...

    async def commit(self, lease: Lease, rotation: Rotation) -> SessionRow | None:
        """Make the rotation the active row's next generation, if the fence is still the lease's. None: it is not."""
        ...

    async def confirm(self, row: SessionRow, grace: float) -> None:
        """Note that the client has the row's generation. Harmless where the row moved on."""
        ...

    async def touch(self, session_id: str, generation: int, *, validated: bool) -> None:
        """Note that the session was seen now and, for an active row of this generation, that it is valid.

        It is written when this returns: by it a refresh finds out whether the store can be written.
        """
        ...

    async def end(
        self, row: SessionRow, reason: EndReason, *, revoke_in: float | None, fence: int | None = None
    ) -> SessionRow:
        """End a session: its row, or `row` itself inserted as ended where there is none.

        `revoke_in`: OTPLESS is to be told, by any worker so many seconds from now; None: it knows. `fence`: only
        if the row's is this one. Return the row as it is then; one that had ended before is left alone.
        """
        ...

    async def list_user(self, user_id: str) -> Sequence[SessionRow]:
        """Return a user's active rows, the newest first, up to `LONGEST_LIST`, however many others have ended.

        Whoever ends what is listed until nothing is has ended all that there was.
        """
        ...

    async def claim_revocations(self, limit: int, hold: float) -> Sequence[SessionRow]:
        """Take up to `limit` ended rows whose telling is due, and put it off by `hold` seconds for other workers."""
        ...

    async def postpone_revocation(self, row: SessionRow, seconds: float) -> None:
        """Make a telling due again in `seconds`, counting an attempt, if its session token is still the row's."""
        ...

    async def replace_revocation(
        self,
        session_id: str,
        session_token: bytes,
        refresh_token: bytes,
        *,
        due_in: float = 0.0,
        keep_until: float = 0.0,
    ) -> None:
        """Make an ended row's telling due in `due_in` seconds, with these sealed tokens: those before are dead.

        The row does not expire before `keep_until`.
        """
        ...

    async def settle_revocation(self, row: SessionRow) -> None:
        """Note that OTPLESS knows, if it was told of the session token that is still the row's."""
        ...

    async def purge(self, limit: int) -> int:
        """Delete up to `limit` rows, and as many digests, that expired; one worker at a time does.

        A digest whose token still counts stays as long as its session. Return how many of both were dealt with; fewer
        than `limit`: nothing is left for now.
        """
        ...
