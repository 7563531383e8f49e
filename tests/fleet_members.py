"""A fleet: workers on ports of their own, so that a test says which of them does what; one store; one emulator."""

from __future__ import annotations

import asyncio
import itertools
import signal
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from processes import PATIENCE
from servers import Nursery, Worker
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastapi_otpless_session.emulator import Emulator

REFRESH = "get-new-session-token"
TLS = httpx.create_ssl_context()
"""Made once: for hundreds of clients it would take seconds."""


async def until(condition: Callable[[], bool]) -> None:
    """Ask until it is true. It is about another process or thread: there is no event to wait for."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.01)


class Turnstile:
    """Stands before the emulator and, when told to, keeps back an answer: OTPLESS has acted, and nobody knows yet."""

    def __init__(self, app: ASGIApp, path: str = REFRESH) -> None:
        self._app = app
        self._path = path
        self._is_open = threading.Event()
        self._left = 0
        self.held = 0
        """How many answers were kept back so far."""

    def hold_next(self) -> None:
        """Keep back the answer to the next call of its kind until `let_go`."""
        self._is_open.clear()
        self._left = 1

    def let_go(self) -> None:
        """Give out what was kept back."""
        self._is_open.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._left or not scope["path"].endswith(self._path):
            await self._app(scope, receive, send)
            return
        self._left -= 1

        async def send_later(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.held += 1
                await until(self._is_open.is_set)
            await send(message)

        await self._app(scope, receive, send_later)


class StoreTime:
    """The store's clock as some workers see it, which goes ahead when a test says so: then leases lapse."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / f"ahead{next(_numbers)}"
        self._ahead = 0.0
        self.variables = {"WORKER_STORE_AHEAD": str(self._file)}
        self.advance(0)

    def advance(self, seconds: float) -> None:
        self._ahead += seconds
        written = self._file.with_suffix(".new")
        written.write_text(str(self._ahead))
        written.replace(self._file)  # nobody reads half of it


_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Visitor:
    """Somebody who signed in, and the token that their client has."""

    session_id: str
    token: str = field(repr=False)


class Fleet:
    """Workers that share a store, and the emulator that they ask."""

    def __init__(
        self, nursery: Nursery, emulator: Emulator, turnstile: Turnstile, variables: Mapping[str, str]
    ) -> None:
        self.emulator = emulator
        self.turnstile = turnstile
        self._nursery = nursery
        self._variables = variables
        self._client = httpx.AsyncClient(
            verify=TLS, timeout=PATIENCE, limits=httpx.Limits(max_keepalive_connections=0), trust_env=False
        )
        self._workers: list[Worker] = []
        self._requests: list[asyncio.Task[httpx.Response]] = []

    async def close(self) -> None:
        """Kill who is left, and see the end of every request: what a failed test began would be told in others."""
        for worker in [*self._workers]:
            self.end(worker, signal.SIGKILL)
        await asyncio.gather(*self._requests, return_exceptions=True)
        await self._client.aclose()

    def start(self, **variables: str) -> Worker:
        """Start a worker; some of its variables may be its own."""
        worker = self._nursery.start({**self._variables, **variables})
        self._workers.append(worker)
        return worker

    def end(self, worker: Worker, number: int) -> int:
        """End a worker by a signal, and return its status."""
        worker.send(number)
        return self.ended(worker)

    def ended(self, worker: Worker) -> int:
        """Wait until a worker has ended by itself, and return its status."""
        self._workers.remove(worker)
        return self._nursery.wait(worker)

    async def sign_in(self, worker: Worker, *, session_lifetime: float | None = None) -> Visitor:
        """Sign somebody in, as a client on the header channel."""
        user = self.emulator.sign_in(session_lifetime=session_lifetime)
        answer = await self._client.post(f"{worker.url}/auth/login?channel=header", json=user)
        assert answer.status_code == 200, f"{answer.text}\n{worker.said()}"
        return Visitor(user["sessionInfo"]["sessionId"], answer.headers["x-session-token"])

    async def get(self, worker: Worker, token: str, path: str = "/orders") -> httpx.Response:
        """Send a request with a token."""
        return await self._client.get(worker.url + path, headers={"X-Session-Token": token})

    def send(self, worker: Worker, token: str) -> asyncio.Task[httpx.Response]:
        """Begin a request with a token."""
        request = asyncio.create_task(self.get(worker, token))
        self._requests.append(request)
        return request

    async def sign_out(self, worker: Worker, token: str) -> None:
        """Sign out with a token."""
        answer = await self._client.post(f"{worker.url}/auth/logout", headers={"X-Session-Token": token})
        assert answer.status_code == 204, f"{answer.text}\n{worker.said()}"

    async def held_refresh(self, worker: Worker, visitor: Visitor) -> asyncio.Task[httpx.Response]:
        """Let a session's token die and have a worker refresh it: OTPLESS has acted, its answer waits for `let_go`."""
        self.emulator.expire(visitor.session_id)
        before = self.turnstile.held
        self.turnstile.hold_next()
        request = self.send(worker, visitor.token)
        await until(lambda: self.turnstile.held > before)
        return request

    async def is_killed_by(self, worker: Worker, token: str) -> None:
        """Send a worker requests until one of them kills it; a slow machine may need several."""
        with suppress(httpx.TransportError):
            async with asyncio.timeout(PATIENCE):
                while True:
                    await self.get(worker, token)
        assert self.ended(worker) == -signal.SIGKILL, worker.said()

    def calls(self, path_suffix: str, visitor: Visitor) -> int:
        """Count the calls about a session that OTPLESS got."""
        mine = (call for call in self.emulator.calls if call.session_id == visitor.session_id)
        return sum(call.path.endswith(path_suffix) for call in mine)


def outcome(answer: httpx.Response) -> str:
    """Name an answer: `ok`, or its code."""
    if answer.status_code == 200:
        return "ok"
    assert answer.status_code in {401, 503}, answer.text
    assert (answer.status_code == 503) == ("retry-after" in answer.headers)
    return str(answer.json()["detail"]["code"])
