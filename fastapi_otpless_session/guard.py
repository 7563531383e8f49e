"""What an event loop runs when it ends: it shuts its asynchronous generators down.

Apart from `loops.py`, because mypyc compiles no asynchronous generators.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable


async def guard(end: Callable[[], Awaitable[None]]) -> AsyncGenerator[None, None]:
    """Once begun (`anext`) on an event loop, await `end` when it is closed, at the loop's end at the latest."""
    try:
        yield
    finally:
        await end()
