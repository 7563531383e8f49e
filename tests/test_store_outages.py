"""What a worker takes for an outage of the store, and how long it leaves lapsed leases to their holders after one."""

from __future__ import annotations

import pytest
from conftest import Clock

from fastapi_otpless_session import StoreError
from fastapi_otpless_session.outage import LONGEST, RESERVE_SECONDS, Outages
from fastapi_otpless_session.refresh import LONGEST_COMMIT_PAUSE
from fastapi_otpless_session.stores.base import PATIENCE


class Story:
    """A worker's calls, one after the other."""

    def __init__(self, clock: Clock, outages: Outages) -> None:
        self.clock = clock
        self.outages = outages

    def works(self, *, after: float = 0.0, takes: float = 0.0) -> None:
        """A read works, so many seconds after the last call."""
        self.clock.advance(after)
        began_at = self.clock()
        self.clock.advance(takes)
        self.outages.reads.worked(began_at)

    def fails(self, *, after: float = 0.0) -> None:
        self.clock.advance(after)
        self.outages.reads.failed()

    def is_spared(self, *, since: float) -> bool:
        """Whether a lease is left alone that lapsed so many seconds ago."""
        return self.outages.spare(self.clock() - since)


@pytest.fixture
def story(clock: Clock) -> Story:
    """A worker that has been here for a while."""
    told = Story(clock, Outages(clock))
    told.works()
    told.works(after=2 * RESERVE_SECONDS)
    return told


def test_the_reserve_is_enough_for_a_try_that_hangs_a_pause_and_another_try() -> None:
    assert RESERVE_SECONDS > PATIENCE + LONGEST_COMMIT_PAUSE + 1


def test_a_lease_that_lapsed_in_an_outage_is_spared_until_the_reserve_is_over(story: Story) -> None:
    story.fails(after=1)
    story.works(after=20)
    assert story.is_spared(since=10)
    story.works(after=RESERVE_SECONDS - 1)
    assert story.is_spared(since=RESERVE_SECONDS + 9)
    assert story.is_spared(since=1), "lapsed after it, and its holder is no faster for that"
    story.works(after=1)
    assert not story.is_spared(since=RESERVE_SECONDS + 10)


def test_a_lease_that_lapsed_before_an_outage_is_not_spared(story: Story) -> None:
    story.fails(after=1)
    story.works(after=20)
    assert not story.is_spared(since=22)


def test_a_blip_is_no_outage_nor_does_a_quick_call_after_a_quiet_hour_tell_of_one(story: Story) -> None:
    for _ in range(20):
        story.fails(after=0.1)
        story.works(after=0.1)
    story.works(after=3600)
    assert not story.is_spared(since=0.5)


def test_what_failed_once_does_not_count_again(story: Story) -> None:
    story.fails()
    story.works(after=0.5)
    story.works(after=100)
    assert not story.is_spared(since=50)


def test_a_call_that_was_held_up_tells_of_an_outage(story: Story) -> None:
    story.works(after=1, takes=4)
    assert story.is_spared(since=3)


def test_a_store_that_comes_back_and_goes_again_is_one_outage(story: Story) -> None:
    story.fails(after=1)
    story.works(after=20)
    story.fails(after=1)
    story.works(after=RESERVE_SECONDS + 5)
    assert story.is_spared(since=RESERVE_SECONDS + 15)


def test_a_store_that_comes_and_goes_for_ever_keeps_no_lease_from_being_taken_for_ever(story: Story) -> None:
    for _ in range(10):
        story.fails(after=1)
        story.works(after=10)
    assert story.is_spared(since=LONGEST - 1)
    assert not story.is_spared(since=LONGEST + 1)


def test_outages_before_the_last_one_count_as_long_as_their_reserve_lasts(story: Story) -> None:
    story.fails()
    story.works(after=20)
    story.fails(after=0.1)
    story.works(after=1.1)
    assert story.is_spared(since=10)


def test_a_worker_that_starts_takes_it_that_the_store_was_away(clock: Clock) -> None:
    """It could not have started in an outage; it is started anew until it can."""
    story = Story(clock, Outages(clock))
    story.works()
    assert story.is_spared(since=1000)
    clock.advance(RESERVE_SECONDS)
    assert not story.is_spared(since=1000)


async def test_reads_say_nothing_of_writes_and_housekeeping_something_of_both(clock: Clock) -> None:
    outages = Outages(clock)

    async def works() -> int:
        return 1

    async def fails() -> int:
        raise StoreError("full")

    assert await outages.read(works()) == await outages.write(works()) == 1
    clock.advance(2 * RESERVE_SECONDS)
    with pytest.raises(StoreError):
        await outages.write(fails())
    clock.advance(10)
    lapsed_at = clock()
    clock.advance(10)
    await outages.read(works())
    assert not outages.spare(lapsed_at)
    await outages.write(works())
    assert outages.spare(lapsed_at)

    clock.advance(2 * RESERVE_SECONDS)
    with pytest.raises(StoreError), outages.watching():
        await fails()
    clock.advance(10)
    lapsed_at = clock()
    clock.advance(10)
    with outages.watching():
        await works()
    assert outages.spare(lapsed_at)
    clock.advance(RESERVE_SECONDS)
    assert not outages.spare(lapsed_at)
    await outages.write(works())
    assert outages.spare(lapsed_at)
