"""The contract of `SessionStore` as a test suite, for whoever writes a store.

It needs pytest and pytest-asyncio. Subclass `StoreContract` and give it one fixture:

    class TestMyStore(StoreContract):
        @pytest.fixture
        def make_store(self) -> Callable[[ContractClock], SessionStore]:
            return lambda clock: MyStore("my://…", offset=lambda: clock.offset)

The store that it makes is empty and not yet opened. It adds `clock.offset` seconds to its own time. For a store that is
watchful, too, subclass `WatchfulContract`.
"""
# ruff: noqa: S101 - tests assert

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import pytest_asyncio

from fastapi_otpless_session.stores.base import (
    FIRST_GENERATION,
    LONGEST_LIST,
    REFRESH_TOKEN,
    EndReason,
    Lease,
    Rotation,
    SessionRow,
    SessionStore,
    Standing,
    State,
    WatchfulStore,
)

SLACK = 5.0
"""How much of the store's own time may pass during a test, in seconds."""
LEASE = 60.0
GRACE = 600.0
LIFE = 86_400.0
TAKERS = 50


@dataclass
class ContractClock:
    """How many seconds a test has put the store's clock forward."""

    offset: float = 0.0

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.offset += seconds


def digest(text: str) -> bytes:
    """Return the digest of a made-up token."""
    return hashlib.sha256(text.encode()).digest()


def refresh_digest(session_id: str) -> bytes:
    """Return the digest of a session's first refresh token."""
    return digest(f"{session_id} refresh 1")


def token_digest(session_id: str, generation: int = FIRST_GENERATION) -> bytes:
    """Return the digest of a session's token of a generation."""
    return digest(f"{session_id} token {generation}")


def new_row(now: float, session_id: str = "s-1", **values: Any) -> SessionRow:
    """Return a first row, with something in every field."""
    row = SessionRow(
        session_id=session_id,
        user_id="MO-1",
        confirmations=((FIRST_GENERATION, now),),
        rotated_at=now,
        session_token=b"sealed\x00session\xff",
        token_expires_at=now + 3600.5,
        refresh_token=b"sealed\x00refresh\xff",
        validated_at=now,
        created_at=now,
        last_seen_at=now,
        expires_at=now + LIFE,
        summary='{"city": "Z\u00fcrich"}',
    )
    return replace(row, **values)


def rotation(session_id: str, generation: int, expires_at: float, answered_at: float | None = None) -> Rotation:
    """Return what a refresh to `generation` brings, just now or at `answered_at`."""
    return Rotation(
        token_digest=token_digest(session_id, generation),
        session_token=f"sealed session {generation}".encode(),
        token_expires_at=expires_at - 60,
        refresh_digest=digest(f"{session_id} refresh {generation}"),
        refresh_token=f"sealed refresh {generation}".encode(),
        expires_at=expires_at,
        answered_at=expires_at if answered_at is None else answered_at,
    )


class Subject:
    """The store under test, with the steps that many tests begin with."""

    def __init__(self, store: SessionStore, clock: ContractClock) -> None:
        self.store = store
        self.clock = clock

    async def sign_in(self, session_id: str = "s-1", **values: Any) -> SessionRow:
        """Create a row and return it."""
        row = new_row(await self.store.now(), session_id, **values)
        assert await self.store.create(row, token_digest(session_id), refresh_digest(session_id)) is None
        return row

    async def row(self, session_id: str = "s-1") -> SessionRow:
        """Return a row that must be there."""
        row = await self.store.get(session_id)
        assert row is not None
        return row

    async def lease(self, generation: int = FIRST_GENERATION, owner: str = "a", session_id: str = "s-1") -> Lease:
        """Take a lease that must be free."""
        lease = await self.store.take_lease(session_id, generation, owner, LEASE)
        assert lease is not None
        return lease

    async def rotate(self, session_id: str = "s-1") -> SessionRow:
        """Refresh a session and return its row."""
        generation = (await self.row(session_id)).generation
        lease = await self.lease(generation, session_id=session_id)
        expires_at = await self.store.now() + LIFE
        row = await self.store.commit(lease, rotation(session_id, generation + 1, expires_at))
        assert row is not None
        return row

    async def end(self, session_id: str = "s-1", *, revoke_in: float | None = None) -> SessionRow:
        """End a session and return its row."""
        return await self.store.end(await self.row(session_id), EndReason.REVOKED, revoke_in=revoke_in)

    async def standing(self, generation: int) -> Standing:
        """Say how a generation's token stands now, as a resolution would."""
        found = await self.store.find(token_digest("s-1", generation))
        assert found is not None
        assert found.generation == generation
        return found.row.standing(found.generation, found.now, GRACE)

    async def claim(self, limit: int = 10, hold: float = 60) -> list[str]:
        """Claim revocations and return their session ids."""
        return [row.session_id for row in await self.store.claim_revocations(limit, hold)]


def about(seconds: float) -> Any:
    """Compare with a time, leaving room for the time that a test takes."""
    return pytest.approx(seconds, rel=0, abs=SLACK)


@pytest.mark.asyncio
class StoreContract:
    """What every session store does. A subclass provides the fixture `make_store`; see the module."""

    @pytest.fixture
    def clock(self) -> ContractClock:
        """The time of the store."""
        return ContractClock()

    @pytest.fixture
    def longest_list(self) -> int:
        """How many of a user's sessions the store lists. With fewer than `LONGEST_LIST`, the test of that is faster."""
        return LONGEST_LIST

    @pytest_asyncio.fixture
    async def subject(
        self, make_store: Callable[[ContractClock], SessionStore], clock: ContractClock
    ) -> AsyncIterator[Subject]:
        """An empty store, open, and closed again afterwards."""
        store = make_store(clock)
        await store.open()
        yield Subject(store, clock)
        await store.close()

    # Rows and digests

    async def test_a_row_is_kept_as_it_was_given(self, subject: Subject) -> None:
        row = await subject.sign_in()
        assert await subject.store.get("s-1") == row

    async def test_a_session_token_is_found_by_its_digest(self, subject: Subject) -> None:
        row = await subject.sign_in()
        subject.clock.advance(100)
        found = await subject.store.find(token_digest("s-1"))
        assert found is not None
        assert (found.row, found.generation) == (row, FIRST_GENERATION)
        assert found.now == about(row.created_at + 100)

    async def test_a_refresh_token_is_found_under_a_generation_of_its_own(self, subject: Subject) -> None:
        await subject.sign_in()
        found = await subject.store.find(refresh_digest("s-1"))
        assert found is not None
        assert found.generation == REFRESH_TOKEN

    async def test_unknown_digests_and_ids_find_nothing(self, subject: Subject) -> None:
        await subject.sign_in()
        assert await subject.store.find(digest("unknown")) is None
        assert await subject.store.find(b"") is None
        assert await subject.store.get("unknown") is None

    async def test_the_time_is_the_clocks(self, subject: Subject) -> None:
        before = await subject.store.now()
        subject.clock.advance(1000)
        assert await subject.store.now() == about(before + 1000)

    async def test_create_never_overwrites_a_row(self, subject: Subject) -> None:
        row = await subject.sign_in()
        other = replace(row, user_id="MO-2", session_token=b"other")
        assert await subject.store.create(other, digest("other"), digest("other refresh")) == row
        assert await subject.store.get("s-1") == row
        assert await subject.store.find(digest("other")) is None
        assert await subject.store.find(digest("other refresh")) is None

    async def test_create_never_revives_an_ended_session(self, subject: Subject) -> None:
        row = await subject.sign_in()
        ended = await subject.end()
        assert await subject.store.create(row, token_digest("s-1"), refresh_digest("s-1")) == ended
        assert (await subject.row()).state is State.ENDED

    async def test_of_many_creators_at_once_one_is_the_first(self, subject: Subject) -> None:
        row = new_row(await subject.store.now())
        answers = await asyncio.gather(
            *(
                subject.store.create(replace(row, user_id=f"MO-{n}"), token_digest("s-1"), refresh_digest("s-1"))
                for n in range(TAKERS)
            )
        )
        assert answers.count(None) == 1
        assert {answer for answer in answers if answer} == {await subject.row()}

    # The lease

    async def test_a_lease_is_exclusive(self, subject: Subject) -> None:
        await subject.sign_in()
        lease = await subject.lease(owner="a")
        assert (lease.session_id, lease.owner, lease.follows_lost_answer) == ("s-1", "a", False)
        assert lease.until == about(await subject.store.now() + LEASE)
        assert await subject.store.take_lease("s-1", FIRST_GENERATION, "b", LEASE) is None
        assert await subject.store.take_lease("s-1", FIRST_GENERATION, "a", LEASE) is None

    async def test_of_many_takers_at_once_one_gets_the_lease(self, subject: Subject) -> None:
        await subject.sign_in()
        leases = await asyncio.gather(
            *(subject.store.take_lease("s-1", FIRST_GENERATION, f"owner {n}", LEASE) for n in range(TAKERS))
        )
        assert sum(lease is not None for lease in leases) == 1

    async def test_there_is_no_lease_of_an_absent_an_ended_or_another_generations_row(self, subject: Subject) -> None:
        await subject.sign_in()
        assert await subject.store.take_lease("absent", FIRST_GENERATION, "a", LEASE) is None
        assert await subject.store.take_lease("s-1", FIRST_GENERATION + 1, "a", LEASE) is None
        await subject.rotate()
        assert await subject.store.take_lease("s-1", FIRST_GENERATION, "a", LEASE) is None
        await subject.end()
        assert await subject.store.take_lease("s-1", FIRST_GENERATION + 1, "a", LEASE) is None

    async def test_a_lease_that_lapsed_can_be_taken_by_another_and_follows_a_lost_answer(
        self, subject: Subject
    ) -> None:
        await subject.sign_in()
        first = await subject.lease(owner="a")
        subject.clock.advance(LEASE + 1)
        second = await subject.lease(owner="b")
        assert second.fence > first.fence
        assert second.follows_lost_answer is True
        assert await subject.store.renew_lease(first, LEASE) is None

    async def test_a_renewed_lease_holds_from_now_on(self, subject: Subject) -> None:
        await subject.sign_in()
        lease = await subject.lease()
        subject.clock.advance(LEASE - 10)
        renewed = await subject.store.renew_lease(lease, LEASE)
        assert renewed is not None
        assert renewed.until == about(await subject.store.now() + LEASE)
        assert renewed.fence == lease.fence
        subject.clock.advance(20)
        assert await subject.store.take_lease("s-1", FIRST_GENERATION, "b", LEASE) is None

    async def test_a_lease_that_was_given_back_or_ended_is_not_renewed(self, subject: Subject) -> None:
        await subject.sign_in()
        lease = await subject.lease()
        await subject.store.release_lease(lease, answer_lost=False)
        assert await subject.store.renew_lease(lease, LEASE) is None
        lease = await subject.lease()
        await subject.end()
        assert await subject.store.renew_lease(lease, LEASE) is None

    @pytest.mark.parametrize("answer_lost", [False, True])
    async def test_a_lease_given_back_is_free_and_the_next_holder_learns_of_a_lost_answer(
        self, subject: Subject, answer_lost: bool
    ) -> None:
        await subject.sign_in()
        first = await subject.lease(owner="a")
        await subject.store.release_lease(first, answer_lost=answer_lost)
        second = await subject.lease(owner="b")
        assert second.fence > first.fence
        assert second.follows_lost_answer is answer_lost

    async def test_a_lost_answer_is_remembered_until_one_arrives(self, subject: Subject) -> None:
        await subject.sign_in()
        await subject.store.release_lease(await subject.lease(), answer_lost=True)
        await subject.store.release_lease(await subject.lease(), answer_lost=False)
        lease = await subject.lease()
        assert lease.follows_lost_answer is True
        expires_at = await subject.store.now() + LIFE
        assert await subject.store.commit(lease, rotation("s-1", 2, expires_at)) is not None
        assert (await subject.lease(2)).follows_lost_answer is False

    async def test_a_lease_lapses_though_the_clock_was_set_back_but_not_before_its_time(self, subject: Subject) -> None:
        await subject.sign_in()
        subject.clock.advance(LIFE / 2)
        first = await subject.lease(owner="a")
        subject.clock.advance(-LIFE / 2)
        assert await subject.store.take_lease("s-1", FIRST_GENERATION, "b", LEASE) is None
        subject.clock.advance(LEASE - 10)
        assert await subject.store.take_lease("s-1", FIRST_GENERATION, "b", LEASE) is None
        subject.clock.advance(20)
        second = await subject.lease(owner="b")
        assert second.fence > first.fence
        assert second.follows_lost_answer is True

    async def test_who_has_a_lease_may_commit_though_the_clock_was_set_back_and_others_asked_for_it(
        self, subject: Subject
    ) -> None:
        await subject.sign_in()
        subject.clock.advance(LIFE / 2)
        lease = await subject.lease(owner="a")
        subject.clock.advance(-LIFE / 2)
        assert await subject.store.take_lease("s-1", FIRST_GENERATION, "b", LEASE) is None
        assert await subject.store.commit(lease, rotation("s-1", 2, await subject.store.now() + LIFE)) is not None

    async def test_whoever_slept_through_its_lease_cannot_give_back_anothers(self, subject: Subject) -> None:
        await subject.sign_in()
        first = await subject.lease(owner="a")
        subject.clock.advance(LEASE + 1)
        second = await subject.lease(owner="b")
        await subject.store.release_lease(first, answer_lost=False)
        assert await subject.store.take_lease("s-1", FIRST_GENERATION, "c", LEASE) is None
        assert await subject.store.renew_lease(second, LEASE) is not None

    async def test_giving_back_the_lease_of_an_absent_row_is_harmless(self, subject: Subject) -> None:
        lease = Lease("absent", "a", 1, await subject.store.now() + LEASE, follows_lost_answer=False)
        await subject.store.release_lease(lease, answer_lost=True)
        assert await subject.store.get("absent") is None

    # The commit

    async def test_a_commit_makes_the_next_generation_and_frees_the_lease(self, subject: Subject) -> None:
        row = await subject.sign_in()
        subject.clock.advance(100)
        now = await subject.store.now()
        brought = rotation("s-1", 2, now + LIFE)
        committed = await subject.store.commit(await subject.lease(), brought)
        assert committed is not None
        assert committed == await subject.store.get("s-1")
        assert committed.generation == row.generation + 1
        assert (committed.session_token, committed.refresh_token) == (brought.session_token, brought.refresh_token)
        assert (committed.token_expires_at, committed.expires_at) == (brought.token_expires_at, brought.expires_at)
        assert (committed.rotated_at, committed.validated_at) == (about(now), about(now))
        assert (committed.user_id, committed.created_at) == (row.user_id, row.created_at)
        assert committed.confirmations == row.confirmations
        assert (await subject.lease(2)).fence > committed.fence

    async def test_a_late_commit_does_not_make_what_otpless_said_any_newer(self, subject: Subject) -> None:
        await subject.sign_in()
        answered_at = await subject.store.now()
        subject.clock.advance(100)
        now = await subject.store.now()
        committed = await subject.store.commit(await subject.lease(), rotation("s-1", 2, now + LIFE, answered_at))
        assert committed is not None
        assert committed == await subject.store.get("s-1")
        assert committed.validated_at == about(answered_at)
        assert (committed.rotated_at, committed.last_seen_at) == (about(now), about(now))

    async def test_old_and_new_tokens_are_found_after_a_commit_each_under_its_generation(
        self, subject: Subject
    ) -> None:
        await subject.sign_in()
        await subject.rotate()
        row = await subject.rotate()
        for wanted, generation in [
            *((token_digest("s-1", number), number) for number in (1, 2, 3)),
            *((digest(f"s-1 refresh {number}"), REFRESH_TOKEN) for number in (1, 2, 3)),
        ]:
            found = await subject.store.find(wanted)
            assert found is not None
            assert (found.row, found.generation) == (row, generation)

    async def test_a_commit_never_inserts(self, subject: Subject) -> None:
        expires_at = await subject.store.now() + LIFE
        lease = Lease("absent", "a", 1, expires_at, follows_lost_answer=False)
        assert await subject.store.commit(lease, rotation("absent", 2, expires_at)) is None
        assert await subject.store.get("absent") is None
        assert await subject.store.find(token_digest("absent", 2)) is None

    async def test_a_commit_after_the_end_is_refused(self, subject: Subject) -> None:
        await subject.sign_in()
        lease = await subject.lease()
        ended = await subject.end()
        assert await subject.store.commit(lease, rotation("s-1", 2, await subject.store.now() + LIFE)) is None
        assert await subject.store.get("s-1") == ended
        assert await subject.store.find(token_digest("s-1", 2)) is None

    @pytest.mark.parametrize("owner", ["b", "a"])
    async def test_a_commit_after_a_later_lease_is_refused_whoever_took_it(self, subject: Subject, owner: str) -> None:
        await subject.sign_in()
        first = await subject.lease(owner="a")
        subject.clock.advance(LEASE + 1)
        second = await subject.lease(owner=owner)
        expires_at = await subject.store.now() + LIFE
        assert await subject.store.commit(first, rotation("s-1", 2, expires_at)) is None
        assert (await subject.row()).generation == FIRST_GENERATION
        assert await subject.store.commit(second, rotation("s-1", 2, expires_at)) is not None

    async def test_a_commit_after_anothers_commit_is_refused(self, subject: Subject) -> None:
        await subject.sign_in()
        first = await subject.lease(owner="a")
        subject.clock.advance(LEASE + 1)
        row = await subject.rotate()
        late = replace(rotation("s-1", 2, row.expires_at), token_digest=digest("late"))
        assert await subject.store.commit(first, late) is None
        assert await subject.store.get("s-1") == row
        assert await subject.store.find(digest("late")) is None

    async def test_a_commit_after_a_lapse_counts_where_nobody_else_took_the_lease(self, subject: Subject) -> None:
        await subject.sign_in()
        lease = await subject.lease()
        subject.clock.advance(LEASE + 1)
        row = await subject.store.commit(lease, rotation("s-1", 2, await subject.store.now() + LIFE))
        assert row is not None
        assert row.generation == FIRST_GENERATION + 1

    async def test_a_commit_that_is_tried_again_happens_once(self, subject: Subject) -> None:
        await subject.sign_in()
        lease, brought = await subject.lease(), rotation("s-1", 2, await subject.store.now() + LIFE)
        first = await subject.store.commit(lease, brought)
        assert first is not None
        assert await subject.store.commit(lease, brought) == first
        assert await subject.store.get("s-1") == first

    async def test_a_refresh_may_bring_the_same_refresh_token_again(self, subject: Subject) -> None:
        await subject.sign_in()
        brought = rotation("s-1", 2, await subject.store.now() + LIFE)
        same = replace(brought, refresh_digest=refresh_digest("s-1"))
        assert await subject.store.commit(await subject.lease(), same) is not None
        found = await subject.store.find(refresh_digest("s-1"))
        assert found is not None
        assert found.generation == REFRESH_TOKEN

    async def test_of_many_commits_at_once_under_one_lease_one_generation_comes(self, subject: Subject) -> None:
        await subject.sign_in()
        lease, brought = await subject.lease(), rotation("s-1", 2, await subject.store.now() + LIFE)
        rows = await asyncio.gather(*(subject.store.commit(lease, brought) for _ in range(TAKERS)))
        assert {row.generation for row in rows if row} == {FIRST_GENERATION + 1}

    async def test_a_refresh_may_bring_the_same_session_token_again(self, subject: Subject) -> None:
        await subject.sign_in()
        brought = rotation("s-1", 2, await subject.store.now() + LIFE)
        same = replace(brought, token_digest=token_digest("s-1"))
        row = await subject.store.commit(await subject.lease(), same)
        assert row is not None
        assert (row.generation, row.lease_owner) == (2, None)
        found = await subject.store.find(token_digest("s-1"))
        assert found is not None
        assert found.generation == FIRST_GENERATION + 1

    async def test_what_was_refused_is_unknown_however_far_the_session_moves_on(self, subject: Subject) -> None:
        row = await subject.sign_in()
        late = await subject.lease(owner="late")
        subject.clock.advance(LEASE + 1)
        for _ in range(2):
            await subject.store.confirm(await subject.rotate(), GRACE)
            subject.clock.advance(GRACE + SLACK)
        refused = replace(
            rotation("s-1", 2, row.expires_at), token_digest=digest("late"), refresh_digest=digest("late refresh")
        )
        assert await subject.store.commit(late, refused) is None
        assert await subject.store.create(row, digest("other"), digest("other refresh")) is not None
        await subject.store.confirm(await subject.rotate(), GRACE)
        subject.clock.advance(GRACE + SLACK)
        await subject.store.confirm(await subject.rotate(), GRACE)
        for text in ("late", "late refresh", "other", "other refresh"):
            assert await subject.store.find(digest(text)) is None
        assert await subject.standing(1) is Standing.SUPERSEDED

    # Confirmation and grace

    async def test_an_old_token_is_good_until_its_successor_was_seen_and_for_the_grace(self, subject: Subject) -> None:
        await subject.sign_in()
        row = await subject.rotate()
        subject.clock.advance(GRACE * 10)
        assert await subject.standing(1) is Standing.OLDER
        await subject.store.confirm(row, GRACE)
        assert await subject.standing(1) is Standing.OLDER
        assert await subject.standing(2) is Standing.CURRENT
        subject.clock.advance(GRACE - SLACK - 1)
        assert await subject.standing(1) is Standing.OLDER
        subject.clock.advance(2 * SLACK)
        assert await subject.standing(1) is Standing.SUPERSEDED
        assert await subject.standing(2) is Standing.CURRENT

    async def test_confirming_again_does_not_prolong_the_grace(self, subject: Subject) -> None:
        await subject.sign_in()
        row = await subject.rotate()
        await subject.store.confirm(row, GRACE)
        subject.clock.advance(GRACE - SLACK)
        await subject.store.confirm(row, GRACE)
        subject.clock.advance(2 * SLACK)
        assert await subject.standing(1) is Standing.SUPERSEDED

    async def test_in_quick_rotations_each_generation_has_its_own_grace(self, subject: Subject) -> None:
        await subject.sign_in()
        for _ in range(3):
            subject.clock.advance(100)
            await subject.store.confirm(await subject.rotate(), GRACE)
        subject.clock.advance(GRACE - 300 + 50)  # 50 s before the end of the grace that is over first
        older = [await subject.standing(number) for number in (1, 2, 3, 4)]
        assert older == [Standing.OLDER] * 3 + [Standing.CURRENT]
        subject.clock.advance(100)
        older = [await subject.standing(number) for number in (1, 2, 3, 4)]
        assert older == [Standing.SUPERSEDED, Standing.OLDER, Standing.OLDER, Standing.CURRENT]
        subject.clock.advance(200)
        older = [await subject.standing(number) for number in (1, 2, 3, 4)]
        assert older == [Standing.SUPERSEDED] * 3 + [Standing.CURRENT]

    async def test_a_generation_that_the_client_never_saw_is_good_as_long_as_its_elder(self, subject: Subject) -> None:
        await subject.sign_in()
        await subject.rotate()
        row = await subject.rotate()
        assert [await subject.standing(number) for number in (1, 2)] == [Standing.OLDER] * 2
        await subject.store.confirm(row, GRACE)
        subject.clock.advance(GRACE + SLACK)
        assert [await subject.standing(number) for number in (1, 2)] == [Standing.SUPERSEDED] * 2

    async def test_confirming_a_row_that_moved_on_or_is_absent_changes_nothing(self, subject: Subject) -> None:
        row = await subject.sign_in()
        moved = await subject.rotate()
        await subject.store.confirm(row, GRACE)
        await subject.store.confirm(replace(row, session_id="absent"), GRACE)
        assert await subject.store.get("s-1") == moved
        assert await subject.store.get("absent") is None

    # Touching

    async def test_a_touch_notes_that_the_session_was_seen_and_is_valid(self, subject: Subject) -> None:
        row = await subject.sign_in()
        subject.clock.advance(100)
        await subject.store.touch("s-1", FIRST_GENERATION, validated=False)
        seen = await subject.row()
        assert (seen.last_seen_at, seen.validated_at) == (about(row.last_seen_at + 100), row.validated_at)
        await subject.store.touch("s-1", FIRST_GENERATION, validated=True)
        valid = await subject.row()
        assert valid.validated_at == about(row.validated_at + 100)
        assert replace(valid, last_seen_at=row.last_seen_at, validated_at=row.validated_at) == row

    async def test_another_generations_validation_does_not_count(self, subject: Subject) -> None:
        await subject.sign_in()
        row = await subject.rotate()
        subject.clock.advance(100)
        await subject.store.touch("s-1", FIRST_GENERATION, validated=True)
        assert (await subject.row()).validated_at == row.validated_at

    async def test_an_ended_or_absent_session_is_not_touched(self, subject: Subject) -> None:
        await subject.sign_in()
        ended = await subject.end()
        subject.clock.advance(100)
        await subject.store.touch("s-1", FIRST_GENERATION, validated=True)
        await subject.store.touch("absent", FIRST_GENERATION, validated=True)
        assert await subject.store.get("s-1") == ended
        assert await subject.store.get("absent") is None

    # The end

    @pytest.mark.parametrize("reason", list(EndReason))
    async def test_an_ended_session_is_still_found_as_ended_with_its_reason(
        self, subject: Subject, reason: EndReason
    ) -> None:
        row = await subject.sign_in()
        ended = await subject.store.end(row, reason, revoke_in=None)
        assert (ended.state, ended.end_reason, ended.revocation_due) == (State.ENDED, reason, None)
        assert ended.fence > row.fence
        found = await subject.store.find(token_digest("s-1"))
        assert found is not None
        assert found.row == ended

    async def test_the_end_is_decided_by_the_row_and_not_by_what_was_read_before(self, subject: Subject) -> None:
        row = await subject.sign_in()
        rotated = await subject.rotate()
        ended = await subject.store.end(row, EndReason.REVOKED, revoke_in=0)
        assert (ended.generation, ended.session_token) == (rotated.generation, rotated.session_token)
        assert ended.state is State.ENDED

    async def test_an_absent_session_is_inserted_as_ended_so_that_it_never_begins(self, subject: Subject) -> None:
        row = new_row(await subject.store.now())
        ended = await subject.store.end(row, EndReason.REVOKED, revoke_in=0)
        assert (ended.session_id, ended.user_id, ended.state) == ("s-1", "MO-1", State.ENDED)
        assert await subject.store.get("s-1") == ended
        assert await subject.store.create(row, token_digest("s-1"), refresh_digest("s-1")) == ended
        assert await subject.store.find(token_digest("s-1")) is None
        assert await subject.claim() == ["s-1"]

    async def test_a_session_that_had_ended_is_left_alone(self, subject: Subject) -> None:
        row = await subject.sign_in()
        ended = await subject.end()
        assert await subject.store.end(row, EndReason.REUSED, revoke_in=0) == ended
        assert await subject.store.get("s-1") == ended

    async def test_an_end_with_another_fence_changes_nothing(self, subject: Subject) -> None:
        await subject.sign_in()
        first = await subject.lease(owner="a")
        subject.clock.advance(LEASE + 1)
        second = await subject.lease(owner="b")
        before = await subject.row()
        assert await subject.store.end(before, EndReason.EXPIRED, revoke_in=None, fence=first.fence) == before
        assert await subject.store.get("s-1") == before
        ended = await subject.store.end(before, EndReason.EXPIRED, revoke_in=None, fence=second.fence)
        assert ended.state is State.ENDED

    async def test_an_end_with_a_fence_inserts_nothing(self, subject: Subject) -> None:
        row = new_row(await subject.store.now())
        assert await subject.store.end(row, EndReason.EXPIRED, revoke_in=0, fence=7) == row
        assert await subject.store.get("s-1") is None
        assert await subject.claim() == []

    # A user's sessions

    async def test_a_sign_in_again_does_not_take_the_session_off_the_list(self, subject: Subject) -> None:
        row = await subject.sign_in()
        subject.clock.advance(LIFE - 100)
        rotated = await subject.rotate()
        assert await subject.store.create(row, token_digest("s-1"), refresh_digest("s-1")) is not None
        subject.clock.advance(200)
        await subject.sign_in("s-2")
        assert {row.session_id for row in await subject.store.list_user("MO-1")} == {"s-1", "s-2"}
        assert await subject.row() == rotated

    async def test_a_user_has_its_active_sessions_the_newest_first(self, subject: Subject) -> None:
        rows = []
        for number in range(3):
            subject.clock.advance(100)
            rows.append(await subject.sign_in(f"s-{number}"))
        await subject.sign_in("other", user_id="MO-2")
        assert list(await subject.store.list_user("MO-1")) == rows[::-1]
        await subject.end("s-1")
        assert [row.session_id for row in await subject.store.list_user("MO-1")] == ["s-2", "s-0"]
        assert list(await subject.store.list_user("nobody")) == []

    async def test_a_users_list_shows_the_sessions_as_they_are_now(self, subject: Subject) -> None:
        await subject.sign_in()
        row = await subject.rotate()
        assert list(await subject.store.list_user("MO-1")) == [row]

    async def test_ending_what_is_listed_until_nothing_is_ends_all_of_a_user(
        self, subject: Subject, longest_list: int
    ) -> None:
        expires_at = await subject.store.now() + LIFE
        names = [f"s-{number}" for number in range(2 * longest_list)]
        await subject.sign_in("oldest", expires_at=expires_at - 1)
        await asyncio.gather(*(subject.sign_in(name, expires_at=expires_at) for name in names))
        rounds = []
        while rows := await subject.store.list_user("MO-1"):
            await asyncio.gather(*(subject.store.end(row, EndReason.REVOKED, revoke_in=None) for row in rows))
            rounds.append([row.session_id for row in rows])
        assert sorted(name for ended in rounds for name in ended) == sorted(["oldest", *names])
        assert max(map(len, rounds)) <= longest_list

    # The outbox

    async def test_an_end_that_is_to_be_told_is_claimed_once_until_the_hold_is_over(self, subject: Subject) -> None:
        await subject.sign_in("s-1")
        await subject.sign_in("silent")
        await subject.sign_in("active")
        ended = await subject.end("s-1", revoke_in=0)
        await subject.end("silent", revoke_in=None)
        [claimed] = await subject.store.claim_revocations(10, 60)
        assert (claimed.session_id, claimed.session_token) == (ended.session_id, ended.session_token)
        assert await subject.claim() == []
        subject.clock.advance(61 + SLACK)
        assert await subject.claim() == ["s-1"]

    async def test_no_more_are_claimed_than_asked_for_and_none_twice(self, subject: Subject) -> None:
        for number in range(5):
            await subject.sign_in(f"s-{number}")
            await subject.end(f"s-{number}", revoke_in=0)
        claims = await asyncio.gather(*(subject.claim(limit=2) for _ in range(TAKERS)))
        assert max(map(len, claims)) <= 2  # noqa: PLR2004 - the limit
        assert sorted(name for claim in claims for name in claim) == [f"s-{number}" for number in range(5)]

    async def test_a_telling_can_be_due_later_so_that_whoever_ended_the_session_tells_first(
        self, subject: Subject
    ) -> None:
        row = await subject.sign_in()
        await subject.store.end(row, EndReason.REVOKED, revoke_in=100)
        assert await subject.claim() == []
        subject.clock.advance(101)
        assert await subject.claim() == ["s-1"]

    async def test_a_postponed_telling_is_due_later_and_counts_an_attempt(self, subject: Subject) -> None:
        await subject.sign_in()
        await subject.end(revoke_in=0)
        [claimed] = await subject.store.claim_revocations(10, 10)
        await subject.store.postpone_revocation(claimed, 100)
        subject.clock.advance(50)
        assert await subject.claim() == []
        subject.clock.advance(51 + SLACK)
        [row] = await subject.store.claim_revocations(10, 60)
        assert row.revocation_attempts == 1

    async def test_a_settled_telling_never_comes_back(self, subject: Subject) -> None:
        row = await subject.sign_in()
        await subject.end(revoke_in=0)
        await subject.store.settle_revocation(row)
        await subject.store.postpone_revocation(row, 0)
        subject.clock.advance(1000)
        assert await subject.claim() == []
        assert (await subject.row()).state is State.ENDED

    async def test_a_replaced_telling_is_due_now_with_the_other_tokens(self, subject: Subject) -> None:
        row = await subject.sign_in()
        await subject.end(revoke_in=0)
        await subject.store.settle_revocation(row)
        await subject.store.replace_revocation("s-1", b"new session", b"new refresh")
        [claimed] = await subject.store.claim_revocations(10, 60)
        assert (claimed.session_token, claimed.refresh_token) == (b"new session", b"new refresh")

    async def test_a_replaced_telling_is_due_when_it_is_said_to_be(self, subject: Subject) -> None:
        await subject.sign_in()
        await subject.end()
        await subject.store.replace_revocation("s-1", b"new session", b"", due_in=60)
        subject.clock.advance(50)
        assert not await subject.store.claim_revocations(10, 60)
        subject.clock.advance(20)
        [claimed] = await subject.store.claim_revocations(10, 60)
        assert claimed.session_token == b"new session"

    async def test_a_row_is_kept_for_a_replaced_telling_and_never_for_less_long_than_before(
        self, subject: Subject
    ) -> None:
        before = await subject.sign_in()
        await subject.end()
        for keep_until, expires_at in ((0.0, LIFE), (LIFE - 1, LIFE), (3 * LIFE, 3 * LIFE), (2 * LIFE, 3 * LIFE)):
            until = before.created_at + keep_until
            await subject.store.replace_revocation("s-1", b"new session", b"", keep_until=until)
            assert (await subject.row()).expires_at == about(before.created_at + expires_at)
        subject.clock.advance(2 * LIFE)
        while await subject.store.purge(10):
            pass
        [claimed] = await subject.store.claim_revocations(10, 60)
        assert claimed.session_token == b"new session"

    async def test_telling_of_the_tokens_before_does_not_settle_or_postpone_that_of_those_after(
        self, subject: Subject
    ) -> None:
        before = await subject.sign_in()
        await subject.end(revoke_in=0)
        await subject.store.replace_revocation("s-1", b"new session", b"new refresh")
        await subject.store.settle_revocation(before)
        await subject.store.postpone_revocation(before, 100)
        [claimed] = await subject.store.claim_revocations(10, 60)
        assert (claimed.session_token, claimed.revocation_attempts) == (b"new session", 0)
        await subject.store.settle_revocation(claimed)
        subject.clock.advance(1000)
        assert await subject.claim() == []

    async def test_an_active_or_absent_sessions_telling_is_neither_replaced_nor_postponed(
        self, subject: Subject
    ) -> None:
        row = await subject.sign_in()
        for there in (row, replace(row, session_id="absent")):
            await subject.store.replace_revocation(
                there.session_id, b"new session", b"new refresh", keep_until=there.expires_at + 1
            )
            await subject.store.postpone_revocation(there, 0)
            await subject.store.settle_revocation(there)
        assert await subject.store.get("s-1") == row
        assert await subject.store.get("absent") is None
        assert await subject.claim() == []

    # Purging and reopening

    async def test_what_expired_is_purged_in_batches_and_nothing_else(self, subject: Subject) -> None:
        for number in range(5):
            await subject.sign_in(f"s-{number}")
        alive = await subject.sign_in("alive", expires_at=await subject.store.now() + 10 * LIFE)
        assert await subject.store.purge(100) == 0
        subject.clock.advance(LIFE + SLACK)
        gone = [await subject.store.purge(2)]
        assert gone[0] <= 4  # noqa: PLR2004 - twice the limit: rows and digests; 0 where the server deletes by itself
        while gone[-1]:
            gone.append(await subject.store.purge(2))
        for number in range(5):
            assert await subject.store.get(f"s-{number}") is None
            assert await subject.store.find(token_digest(f"s-{number}")) is None
        assert await subject.store.get("alive") == alive
        assert await subject.store.find(token_digest("alive")) is not None

    async def test_a_session_whose_refresh_token_was_renewed_is_not_purged(self, subject: Subject) -> None:
        await subject.sign_in()
        subject.clock.advance(LIFE - 100)
        row = await subject.rotate()
        subject.clock.advance(200)
        while await subject.store.purge(10):
            pass
        assert await subject.store.get("s-1") == row
        assert await subject.standing(2) is Standing.CURRENT

    async def test_a_token_that_still_counts_outlives_its_own_refresh_token_with_its_session(
        self, subject: Subject
    ) -> None:
        await subject.sign_in()
        subject.clock.advance(LIFE - 100)
        await subject.rotate()  # and the response is lost: the client has the first token only
        subject.clock.advance(200)
        while await subject.store.purge(10):
            pass
        assert await subject.standing(1) is Standing.OLDER
        subject.clock.advance(LIFE)
        while await subject.store.purge(10):
            pass
        assert await subject.store.find(token_digest("s-1")) is None

    async def test_opening_twice_is_harmless(self, subject: Subject) -> None:
        row = await subject.sign_in()
        await subject.store.open()
        assert await subject.store.get("s-1") == row

    async def test_a_closed_store_opens_again(self, subject: Subject) -> None:
        await subject.store.close()
        await subject.store.close()
        await subject.store.open()
        row = await subject.sign_in("s-2")
        assert await subject.store.get("s-2") == row


class WatchfulContract(StoreContract):
    """What every session store does that can tell at once that nothing has changed.

    It must tell of what other workers write, too, which a suite with one store does not show.
    """

    async def test_a_row_that_is_as_it_was_read_is_seen_to_be(self, subject: Subject) -> None:
        row = await subject.sign_in()
        assert _watchful(subject).unchanged_at(token_digest("s-1"), row) == about(await subject.store.now())

    @pytest.mark.parametrize("field", ["generation", "validated_at", "last_seen_at", "token_expires_at"])
    async def test_each_thing_that_is_compared_counts(self, subject: Subject, field: str) -> None:
        row = await subject.sign_in()
        other: Any = replace(row, **{field: getattr(row, field) + 1})
        assert _watchful(subject).unchanged_at(token_digest("s-1"), other) is None

    @pytest.mark.parametrize("change", ["touch", "validate", "rotate", "end"])
    async def test_a_row_that_changed_is_not_as_it_was(self, subject: Subject, change: str) -> None:
        row = await subject.sign_in()
        subject.clock.advance(1)
        match change:
            case "rotate":
                await subject.rotate()
            case "end":
                await subject.end()
            case _:
                await subject.store.touch("s-1", FIRST_GENERATION, validated=change == "validate")
        assert _watchful(subject).unchanged_at(token_digest("s-1"), row) is None

    async def test_a_row_that_is_not_there_is_not_as_it_was(self, subject: Subject) -> None:
        row = new_row(await subject.store.now())
        assert _watchful(subject).unchanged_at(token_digest("s-1"), row) is None

    async def test_what_nobody_has_heard_of_is_unknown(self, subject: Subject) -> None:
        await subject.sign_in()
        assert _watchful(subject).unknown_at(digest("another"), "s-2") == about(await subject.store.now())

    async def test_a_token_is_known_from_a_sign_in_on_and_its_session_where_it_ended(self, subject: Subject) -> None:
        store = _watchful(subject)
        await subject.sign_in()
        assert store.unknown_at(token_digest("s-1"), "s-1") is None
        assert store.unknown_at(digest("another"), "s-1") is not None
        await subject.end()
        assert store.unknown_at(digest("another"), "s-1") is None

    async def test_a_session_that_ended_without_a_sign_in_is_known(self, subject: Subject) -> None:
        store, row = _watchful(subject), new_row(await subject.store.now(), "s-2")
        assert store.unknown_at(digest("another"), "s-2") is not None
        await subject.store.end(row, EndReason.REVOKED, revoke_in=None)
        assert store.unknown_at(digest("another"), "s-2") is None

    async def test_tokens_that_were_replaced_stay_known(self, subject: Subject) -> None:
        await subject.sign_in()
        await subject.rotate()
        for known in (token_digest("s-1"), token_digest("s-1", 2), refresh_digest("s-1")):
            assert _watchful(subject).unknown_at(known, "s-2") is None

    async def test_what_is_told_at_once_goes_by_the_stores_clock(self, subject: Subject) -> None:
        row = await subject.sign_in()
        subject.clock.advance(1000)
        assert _watchful(subject).unchanged_at(token_digest("s-1"), row) == about(row.created_at + 1000)
        assert _watchful(subject).unknown_at(digest("another"), "s-2") == about(row.created_at + 1000)

    async def test_a_closed_store_tells_nothing(self, subject: Subject) -> None:
        row = await subject.sign_in()
        await subject.store.close()
        assert _watchful(subject).unchanged_at(token_digest("s-1"), row) is None
        assert _watchful(subject).unknown_at(digest("another"), "s-2") is None


def _watchful(subject: Subject) -> WatchfulStore:
    assert isinstance(subject.store, WatchfulStore)
    return subject.store
