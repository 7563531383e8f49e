"""What the page shows, as it happens: a stream of server-sent events.

The page is looked after from its own side. A few times a second its stream compares the newest sessions and calls with
those that it told last, and tells the difference: so nothing is queued for a page that is slow, the calls themselves
know nothing of it, and they cost the same whether or not anybody looks.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from fastapi_otpless_session.emulator.calls import CallLog
from fastapi_otpless_session.emulator.faults import FaultBook
from fastapi_otpless_session.emulator.gate import Latency
from fastapi_otpless_session.emulator.sdk import OtpDesk
from fastapi_otpless_session.emulator.state import State

LOOK_SECONDS = 0.2
MOST_SESSIONS = 100
MOST_CALLS = 100
"""How many of each the page is told: the newest."""

IS_ENDING = "otpless_emulator.is_ending"
"""A server's scope may have this key: a function that tells whether it is about to end. It would wait for streams."""

_LARGEST_SHARE = 0.1
_SIGN_OF_LIFE_SECONDS = 15.0
_RETRY_MILLISECONDS = 1000
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


@dataclass(frozen=True, slots=True)
class Live:
    """The stream, over the parts of the emulator that it shows."""

    state: State
    log: CallLog
    faults: FaultBook
    latency: Latency
    desk: OtpDesk

    async def events(self, request: Request) -> Response:
        """The endpoint: events `state` and `calls`, each as it is now, at first and then after each change."""
        stream = self._stream(request.scope.get(IS_ENDING, _never))
        return StreamingResponse(stream, media_type="text/event-stream", headers=_HEADERS)

    async def _stream(self, is_ending: Callable[[], bool]) -> AsyncIterator[str]:
        yield f"retry: {_RETRY_MILLISECONDS}\n\n"
        told: dict[str, str] = {}
        silent = 0.0
        while not is_ending():
            began = perf_counter()
            news = self._news(told)
            # With many sessions a look takes longer; it never gets more than its share of the time.
            pause = max(LOOK_SECONDS, (perf_counter() - began) / _LARGEST_SHARE)
            silent = 0.0 if news else silent + pause
            if silent > _SIGN_OF_LIFE_SECONDS:  # else a connection that nobody closed would never be found out
                news, silent = ": still here\n\n", 0.0
            if news:
                yield news
            await asyncio.sleep(pause)

    def _news(self, told: dict[str, str]) -> str:
        now = self.state.clock()
        found = {"state": json.dumps(self._state(now)), "calls": json.dumps(self._calls())}
        news = ""
        for name, text in found.items():
            if told.get(name) != text:
                told[name] = text
                # The time is put in here: by itself it is no news.
                news += f'event: {name}\ndata: {{"now": {now!r}, {text[1:]}\n\n'
        return news

    def _state(self, now: float) -> dict[str, Any]:
        total, newest = self.state.newest(MOST_SESSIONS)
        return {
            "sessions": [session.as_json(now) for session in newest],
            "sessionCount": total,
            "faults": [armed.as_json() for armed in self.faults.armed()],
            "latency": self.latency.by_path(),
            "inbox": [message.as_json() for message in self.desk.messages()],
            "kid": self.state.keys.kid,
        }

    def _calls(self) -> dict[str, Any]:
        return {
            "calls": [call.as_json() for call in self.log.newest(MOST_CALLS)],
            "counts": self.log.by_path(),
        }


def _never() -> bool:
    return False
