"""Coverage follows the tests that go each way once, and not those marked `varied`, which go the same ways with many
inputs, faults or stores: it makes these take twice as long, and finds little more. This is a pytest plugin.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from coverage import Coverage

FOR_PROCESSES = "COVERAGE_PROCESS_CONFIG"
"""What makes coverage begin in a process that a test starts."""


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    running = Coverage.current()
    if running is None or item.get_closest_marker("varied") is None:
        return (yield)
    with _paused(running):
        return (yield)


@contextmanager
def _paused(running: Coverage) -> Iterator[None]:
    configuration = os.environ.pop(FOR_PROCESSES, None)
    running.stop()
    try:
        yield
    finally:
        running.start()
        if configuration is not None:
            os.environ[FOR_PROCESSES] = configuration
