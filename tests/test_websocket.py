"""Websockets: refused before the handshake, watched while open."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import httpx
import pytest
from conftest import Clock, World, make_settings
from fastapi import FastAPI, WebSocket
from processes import PATIENCE
from simulated import LoopTime, settle
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from fastapi_otpless_session import (
    CurrentSession,
    OptionalSession,
    OtplessClient,
    OtplessSessionMiddleware,
    OtplessSessions,
    RefusalError,
    Session,
    SessionReason,
)
from fastapi_otpless_session.emulator import Emulator, Fault

DAY = 86_400
QUICK = 0.02
SITE = "wss://shop.example"


@pytest.fixture
def sockets(make_world: Callable[..., World]) -> Callable[..., World]:
    """Applications with websocket routes."""

    def build(**values: Any) -> World:
        world = make_world(websocket_recheck=values.pop("websocket_recheck", QUICK), **values)
        world.extra.update(told=[], asked=threading.Event())

        @world.app.websocket("/echo")
        async def echo(websocket: WebSocket, session: CurrentSession) -> None:
            await websocket.accept()
            await websocket.send_text(session.user_id)
            async for text in websocket.iter_text():
                await websocket.send_text(text)
            try:
                await websocket.send_text("into the void")
            except WebSocketDisconnect:
                world.extra["told"].append("echo")
                raise

        @world.app.websocket("/open")
        async def anybody(websocket: WebSocket, session: OptionalSession) -> None:
            await websocket.accept("chat" if "chat" in websocket.scope["subprotocols"] else None)
            await websocket.send_json(
                {"user": session.user_id if session else None, "offered": websocket.scope["subprotocols"]}
            )
            await websocket.close()

        @world.app.websocket("/offered")
        async def offered(websocket: WebSocket) -> None:
            await websocket.accept()
            assert b"." not in dict(websocket.scope["headers"])[b"sec-websocket-protocol"]
            await websocket.send_json(websocket.scope["subprotocols"])
            await websocket.close()

        @world.app.websocket("/quiet")
        async def quiet(websocket: WebSocket) -> None:
            await websocket.accept()
            await websocket.state.otpless.session()
            world.extra["asked"].set()
            world.extra["got"] = await websocket.receive()

        @world.app.websocket("/late")
        async def late(websocket: WebSocket) -> None:
            await websocket.accept()
            session = await websocket.state.otpless.session()
            await websocket.send_text(session.user_id)
            async for _ in websocket.iter_text():
                pass

        return world

    return build


def refused(world: World, path: str, **headers: str) -> tuple[int, str]:
    with pytest.raises(WebSocketDenialResponse) as caught, world.client.websocket_connect(SITE + path, headers=headers):
        pass
    return caught.value.status_code, str(caught.value.json()["detail"]["code"])


def test_without_a_session_the_handshake_is_refused_with_the_reason(sockets: Callable[..., World]) -> None:
    assert refused(sockets(), "/echo") == (401, "session_missing")
    assert refused(sockets(required_paths="/open"), "/open") == (401, "session_missing")


def test_a_refusal_after_the_handshake_is_a_close_with_the_reason(sockets: Callable[..., World]) -> None:
    world = sockets()

    @world.app.websocket("/too-late")
    async def too_late(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.state.otpless.require()

    with world.client.websocket_connect(SITE + "/too-late") as socket, pytest.raises(WebSocketDisconnect) as closed:
        socket.receive_text()
    assert (closed.value.code, closed.value.reason) == (1008, "session_missing")


class Gate:
    """Middleware of the application's that needs a session, inside ours and outside its exception handlers."""

    def __init__(self, app: ASGIApp, *, is_late: bool) -> None:
        self.app = app
        self.is_late = is_late

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            if self.is_late:
                await send({"type": "websocket.accept"})
            await scope["state"]["otpless"].require()
        await self.app(scope, receive, send)


def test_a_refusal_of_other_middlewares_is_that_of_the_handshake() -> None:
    app = OtplessSessionMiddleware(Gate(FastAPI(), is_late=False), settings=make_settings())
    with pytest.raises(WebSocketDenialResponse) as caught, TestClient(app).websocket_connect("/"):
        pass
    assert (caught.value.status_code, caught.value.json()["detail"]["code"]) == (401, "session_missing")
    assert caught.value.headers["vary"] == "Authorization, X-Session-Token, Cookie"


def test_a_handshake_that_has_its_answer_gets_no_other() -> None:
    app = OtplessSessionMiddleware(Gate(FastAPI(), is_late=True), settings=make_settings())
    with pytest.raises(RefusalError), TestClient(app).websocket_connect("/") as socket:
        socket.receive_text()


@pytest.mark.parametrize("path", ["/echo", "/open"])
def test_a_refusal_of_a_handshake_varies_on_what_was_looked_at(sockets: Callable[..., World], path: str) -> None:
    world = sockets(required_paths="/open")
    with pytest.raises(WebSocketDenialResponse) as caught, world.client.websocket_connect(SITE + path):
        pass
    assert caught.value.headers["vary"] == "Authorization, X-Session-Token, Cookie"


def test_a_page_of_another_site_cannot_open_one_with_the_cookie(sockets: Callable[..., World]) -> None:
    world = sockets()
    world.sign_in()
    assert refused(world, "/echo", Origin="https://evil.example") == (403, "cross_site_request")
    with world.client.websocket_connect(SITE + "/echo", headers={"Origin": "https://shop.example"}) as socket:
        assert socket.receive_text().startswith("MO-")


def test_an_outage_is_503_before_the_handshake(sockets: Callable[..., World]) -> None:
    world = sockets()
    world.sign_in()
    world.clock.advance(DAY + 1)
    world.emulator.add_fault(Fault("status", status=500))
    assert refused(world, "/echo") == (503, "session_unavailable")


def test_a_swap_travels_in_the_handshake(sockets: Callable[..., World]) -> None:
    world = sockets()
    world.sign_in()
    world.clock.advance(DAY + 1)
    with world.client.websocket_connect(SITE + "/echo") as socket:
        sent: Any = socket.extra_headers
        names = [name for name, _ in sent]
        assert b"set-cookie" in names
    assert world.get("/orders").status_code == 200


def test_a_handshake_that_is_answered_alike_for_everybody_brings_nobody_what_is_anothers(
    sockets: Callable[..., World],
) -> None:
    accept: Message = {"type": "websocket.accept", "headers": []}

    async def constant(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await scope["state"]["otpless"].session()
        await send(accept)
        await send({"type": "websocket.close"})

    world = sockets()
    world.app.mount("/constant", constant)
    token = world.token(world.sign_in())
    with world.client.websocket_connect(SITE + "/constant/", ["otpless-session", token]):
        pass
    world.clock.advance(DAY + 1)
    with world.client.websocket_connect(SITE + "/constant/") as socket:
        swapped: Any = socket.extra_headers
        assert b"set-cookie" in dict(swapped)
    world.client.cookies.clear()
    with world.client.websocket_connect(SITE + "/constant/") as socket:
        sent: Any = socket.extra_headers
        assert (socket.accepted_subprotocol, [name for name, _ in sent]) == (None, [b"vary"])


@pytest.mark.parametrize("extra", [[], ["chat"]])
def test_a_browser_offers_the_token_as_a_subprotocol(sockets: Callable[..., World], extra: list[str]) -> None:
    world = sockets()
    user = world.sign_in(channel="header")
    offered = ["otpless-session", world.token(user), *extra]
    with world.client.websocket_connect(SITE + "/open", subprotocols=offered) as socket:
        chosen: Any = socket.accepted_subprotocol
        assert chosen == (extra[0] if extra else "otpless-session")
        assert socket.receive_json() == {"user": user["userId"], "offered": ["otpless-session", *extra]}


@pytest.mark.parametrize("sources", ["authorization", "authorization,cookie", "cookie"])
def test_a_token_among_the_subprotocols_is_not_looked_at_where_the_header_is_not(
    sockets: Callable[..., World], sources: str
) -> None:
    world = sockets(token_sources=sources)
    user = world.emulator.sign_in()
    assert world.client.post("/auth/login", json=user).status_code == 200
    world.client.cookies.clear()
    with world.client.websocket_connect(SITE + "/open", ["otpless-session", world.token(user)]) as socket:
        assert (socket.accepted_subprotocol, socket.receive_json()["user"]) == (None, None)


def test_two_tokens_among_the_subprotocols_are_a_conflict_and_neither_is_left_there(
    sockets: Callable[..., World],
) -> None:
    world = sockets(required_paths="/echo")
    tokens = [world.token(world.sign_in(channel="header")) for _ in range(2)]
    offered = ["otpless-session", tokens[0], "otpless-session", tokens[1], "chat"]
    with pytest.raises(WebSocketDenialResponse) as caught, world.client.websocket_connect(SITE + "/echo", offered):
        pass
    assert caught.value.json()["detail"]["code"] == "conflicting_credentials"
    with world.client.websocket_connect(SITE + "/offered", offered) as socket:
        assert socket.receive_json() == ["otpless-session", "otpless-session", "chat"]


def test_other_subprotocols_are_left_alone(sockets: Callable[..., World]) -> None:
    with sockets().client.websocket_connect(SITE + "/open", subprotocols=["chat"]) as socket:
        assert socket.receive_json() == {"user": None, "offered": ["chat"]}


@pytest.mark.parametrize("path", ["/echo", "/late"])
def test_a_sign_out_closes_an_open_websocket_with_the_reason(sockets: Callable[..., World], path: str) -> None:
    world = sockets()
    user = world.sign_in()
    with world.client.websocket_connect(SITE + path) as socket:
        socket.receive_text()
        world.call(world.sessions.end, world.session_id(user))
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_text()
    assert (closed.value.code, closed.value.reason) == (1008, "session_revoked")
    assert world.extra["told"] == (["echo"] if path == "/echo" else [])


def test_a_client_that_does_not_heed_the_close_is_not_listened_to_any_more(sockets: Callable[..., World]) -> None:
    """Servers pass on what still comes until the client closes, too: some for ten seconds, some for ever."""
    world = sockets()
    done: list[str] = []

    @world.app.websocket("/commands")
    async def commands(websocket: WebSocket, session: CurrentSession) -> None:
        await websocket.accept()
        await websocket.send_text(session.user_id)
        async for text in websocket.iter_text():
            done.append(text)
            await websocket.send_text("done")

    user = world.sign_in()
    with world.client.websocket_connect(SITE + "/commands") as socket:
        assert socket.receive_text() == user["userId"]
        socket.send_text("before")
        assert socket.receive_text() == "done"
        world.call(world.sessions.end, world.session_id(user))
        assert socket.receive() == {"type": "websocket.close", "code": 1008, "reason": "session_revoked"}
        for _ in range(3):
            socket.send_text("after")
    assert done == ["before"]


def test_whoever_reads_on_after_the_close_need_not_wait_for_the_client(sockets: Callable[..., World]) -> None:
    world = sockets()
    read: list[Message] = []

    async def reads_on(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await scope["state"]["otpless"].require()
        read.extend([await receive() for _ in range(3)])

    world.app.mount("/reads-on", reads_on)
    user = world.sign_in()
    with world.client.websocket_connect(SITE + "/reads-on/") as socket:
        world.call(world.sessions.end, world.session_id(user))
        assert socket.receive()["type"] == "websocket.close"
        socket.send_text("after")
    assert read == [{"type": "websocket.disconnect", "code": 1008, "reason": "session_revoked"}] * 3


def test_a_websocket_that_nobody_speaks_on_is_closed_too(sockets: Callable[..., World]) -> None:
    world = sockets()
    user = world.sign_in()
    with world.client.websocket_connect(SITE + "/quiet") as socket:
        assert world.extra["asked"].wait(PATIENCE)
        world.call(world.sessions.end, world.session_id(user))
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_text()
    assert (closed.value.code, closed.value.reason) == (1008, "session_revoked")


def test_a_websocket_whose_session_is_asked_for_while_it_waits_for_its_client_is_closed_too(
    sockets: Callable[..., World],
) -> None:
    world, asked = sockets(), threading.Event()

    @world.app.websocket("/waiting")
    async def waiting(websocket: WebSocket) -> None:
        await websocket.accept()
        reader = asyncio.create_task(websocket.receive_text())
        await asyncio.sleep(0)
        await websocket.state.otpless.require()
        asked.set()
        await reader

    user = world.sign_in()
    with world.client.websocket_connect(SITE + "/waiting") as socket:
        assert asked.wait(PATIENCE)
        world.call(world.sessions.end, world.session_id(user))
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_text()
    assert (closed.value.code, closed.value.reason) == (1008, "session_revoked")


def test_an_open_websocket_survives_swaps_and_outages(sockets: Callable[..., World]) -> None:
    world = sockets()
    user = world.sign_in()
    with world.client.websocket_connect(SITE + "/echo") as socket:
        socket.receive_text()
        world.clock.advance(DAY + 1)
        world.emulator.add_fault(Fault("status", status=500, times=2))
        while world.emulator.session(world.session_id(user)).session_tokens < 1:
            socket.send_text("still here")
            assert socket.receive_text() == "still here"
        socket.send_text("and after")
        assert socket.receive_text() == "and after"


def test_a_session_that_expires_for_good_closes_its_websocket(sockets: Callable[..., World]) -> None:
    world = sockets()
    user = world.sign_in()
    with world.client.websocket_connect(SITE + "/echo") as socket:
        socket.receive_text()
        world.emulator.revoke(world.session_id(user))
        world.clock.advance(DAY + 1)
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_text()
    assert closed.value.reason == "session_expired"


def test_a_frontend_driven_websocket_closes_on_sign_out_too(sockets: Callable[..., World]) -> None:
    world = sockets()
    token = world.token(world.emulator.sign_in())
    with world.client.websocket_connect(SITE + "/echo", headers={"X-Session-Token": token}) as socket:
        socket.receive_text()
        assert world.client.post("/auth/logout", headers={"X-Session-Token": token}).status_code == 204
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_text()
    assert closed.value.reason == "session_revoked"


async def test_a_server_that_cannot_send_a_denial_gets_a_close(sockets: Callable[..., World]) -> None:
    for world, path in ((sockets(), "/echo"), (sockets(required_paths="/open"), "/open")):
        said: list[Any] = []

        async def receive() -> Any:
            return {"type": "websocket.connect"}

        async def send(message: Any, said: list[Any] = said) -> None:
            said.append(message)

        scope = {"type": "websocket", "path": path, "headers": [], "subprotocols": [], "query_string": b""}
        await world.app(scope, receive, send)
        assert [(m["type"], m["code"], m["reason"]) for m in said] == [
            ("websocket.close", 1008, SessionReason.MISSING.code)
        ]


class Conversation:
    """A websocket as a server runs it, on the test's own event loop and with the test's time."""

    def __init__(self, app: FastAPI, token: str, path: str = "/feed", **more: Any) -> None:
        self.said: list[Any] = []
        self.close_takes = 0
        self._inbox: asyncio.Queue[Any] = asyncio.Queue()
        self._inbox.put_nowait({"type": "websocket.connect"})
        headers = [(b"x-session-token", token.encode())]
        scope = {"type": "websocket", "path": path, "headers": headers, "subprotocols": [], "query_string": b""}
        self.running = asyncio.create_task(app({**scope, **more}, self._inbox.get, self._send))

    async def _send(self, message: Any) -> None:
        if message["type"] == "websocket.close":
            await asyncio.sleep(self.close_takes)
        self.said.append(message)

    def leave(self) -> None:
        self._inbox.put_nowait({"type": "websocket.disconnect", "code": 1001})

    async def closed(self) -> tuple[int, str] | None:
        await settle(200)
        closes = [(each["code"], each["reason"]) for each in self.said if each["type"] == "websocket.close"]
        return closes[0] if closes else None


@pytest.fixture
async def feed(clock: Clock) -> AsyncIterator[tuple[OtplessSessions, Emulator, FastAPI, str]]:
    """An application that feeds its websockets for ever, on the test's event loop, and somebody who is signed in."""
    emulator, values, app = Emulator(clock=clock), make_settings(websocket_recheck=30), FastAPI()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=emulator.app)) as http:
        client = OtplessClient(values, http=http, monotonic=clock)
        async with OtplessSessions(values, client=client, clock=clock) as sessions:
            app.add_middleware(OtplessSessionMiddleware, sessions=sessions)
            app.state.more = asyncio.Event()

            @app.websocket("/feed")
            async def feed(websocket: WebSocket, session: CurrentSession) -> None:
                await websocket.accept()
                await app.state.more.wait()
                for _ in range(3):
                    await websocket.send_text(session.user_id)

            @app.websocket("/diary")
            async def diary(websocket: WebSocket, _: CurrentSession) -> None:
                await websocket.accept()
                with suppress(WebSocketDisconnect):
                    await websocket.receive_text()
                await app.state.more.wait()

            @app.websocket("/ticker")
            async def ticker(websocket: WebSocket, session: CurrentSession) -> None:
                await websocket.accept()
                while True:
                    await asyncio.sleep(1)
                    await websocket.send_text(session.user_id)

            @app.websocket("/closing")
            async def closing(websocket: WebSocket, _: CurrentSession) -> None:
                await websocket.accept()
                await app.state.more.wait()
                await websocket.close()

            session = await sessions.sign_in(emulator.sign_in())
            yield sessions, emulator, app, session.token.get_secret_value()


async def test_what_ended_is_closed_within_websocket_recheck_and_what_is_sent_after_that_is_no_error(
    feed: tuple[OtplessSessions, Emulator, FastAPI, str],
) -> None:
    sessions, _, app, token = feed
    time, conversation = LoopTime(), Conversation(app, token)
    assert await conversation.closed() is None
    await time.advance(31)
    await sessions.sign_out(token)
    await time.advance(28)
    assert await conversation.closed() is None
    await time.advance(2)
    assert await conversation.closed() == (1008, "session_revoked")
    app.state.more.set()
    await conversation.running  # without an exception
    assert [each["type"] for each in conversation.said] == ["websocket.accept", "websocket.close"]


@pytest.mark.parametrize("close_takes", [0, 3])
async def test_an_application_that_only_sends_is_told_of_the_end_as_of_a_client_that_left(
    feed: tuple[OtplessSessions, Emulator, FastAPI, str], close_takes: int
) -> None:
    sessions, _, app, token = feed
    time, conversation = LoopTime(), Conversation(app, token, "/ticker")
    conversation.close_takes = close_takes  # what a client has not read yet comes before it
    assert await conversation.closed() is None
    await sessions.sign_out(token)
    for _ in range(35):
        await time.advance(1)
    assert await conversation.closed() == (1008, "session_revoked")
    assert conversation.running.done()
    await conversation.running  # without an exception, which a server would log
    assert conversation.said[-1]["type"] == "websocket.close"


async def test_a_close_after_the_end_is_none_and_no_error(feed: tuple[OtplessSessions, Emulator, FastAPI, str]) -> None:
    sessions, _, app, token = feed
    time, conversation = LoopTime(), Conversation(app, token, "/closing")
    assert await conversation.closed() is None
    await sessions.sign_out(token)
    await time.advance(31)
    assert await conversation.closed() == (1008, "session_revoked")
    app.state.more.set()
    await conversation.running
    assert [each["type"] for each in conversation.said] == ["websocket.accept", "websocket.close"]


async def test_what_expired_is_closed_within_websocket_recheck_and_no_fault_closes_anything(
    feed: tuple[OtplessSessions, Emulator, FastAPI, str], clock: Clock
) -> None:
    sessions, emulator, app, token = feed
    time, conversation = LoopTime(), Conversation(app, token)
    assert await conversation.closed() is None
    emulator.revoke(emulator.sessions()[0].session_id)
    emulator.add_fault(Fault("status", status=503))
    clock.advance(DAY + 1)
    for _ in range(3):
        await time.advance(31)
        assert await conversation.closed() is None
    emulator.clear_faults()
    clock.advance(2)
    await time.advance(31)
    for _ in range(100):  # the store's thread answers in its own time
        if await conversation.closed():
            break
        await asyncio.to_thread(int)
    assert await conversation.closed() == (1008, "session_expired")
    app.state.more.set()
    await conversation.running
    assert not isinstance(await sessions.resolve(token), Session)


async def test_a_state_that_websockets_share_shows_nobody_the_session_of_another(
    feed: tuple[OtplessSessions, Emulator, FastAPI, str],
) -> None:
    sessions, emulator, app, token = feed

    @app.websocket("/whose")
    async def whose(websocket: WebSocket) -> None:
        await websocket.accept()
        await app.state.more.wait()
        await websocket.send_text((await websocket.state.otpless.require()).user_id)

    other = await sessions.sign_in(emulator.sign_in("MO-2"))
    state: dict[str, Any] = {}
    both = [Conversation(app, each, "/whose", state=state) for each in (token, other.token.get_secret_value())]
    for conversation in both:
        assert await conversation.closed() is None
    app.state.more.set()
    for conversation in both:
        await conversation.running
    assert both[0].said[-1]["text"] != both[1].said[-1]["text"] == "MO-2"


@pytest.mark.parametrize("leaves", [False, True])
async def test_the_session_of_a_client_that_left_is_not_kept_alive_by_an_application_that_goes_on(
    feed: tuple[OtplessSessions, Emulator, FastAPI, str], clock: Clock, leaves: bool
) -> None:
    _, emulator, app, token = feed
    time, conversation = LoopTime(), Conversation(app, token, "/diary")
    assert await conversation.closed() is None
    if leaves:
        conversation.leave()
    clock.advance(61)
    await time.advance(31)
    await conversation.closed()
    assert emulator.count("validate-session") == (0 if leaves else 1)
    conversation.leave()
    app.state.more.set()
    await conversation.running
