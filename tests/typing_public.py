"""What type checkers must make of the public names. Nobody runs this: mypy and pyright read it (`make types`)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, assert_type

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.requests import HTTPConnection
from pydantic import SecretStr

from fastapi_otpless_session import (
    CurrentSession,
    CurrentSessionDetails,
    DeviceInfo,
    FreshSession,
    Identity,
    NetworkInfo,
    OptionalSession,
    OtplessClient,
    OtplessSessionMiddleware,
    OtplessSessions,
    OtplessSettings,
    RefusalError,
    Session,
    SessionDetails,
    SessionEvent,
    SessionReason,
    Sessions,
    SessionStore,
    SignOutReason,
    create_session_router,
    current_session,
    current_session_details,
    fresh_session,
    fresh_within,
    open_store,
    optional_session,
    otpless_sessions,
)
from fastapi_otpless_session.wire import TokenPair, Verdict

app = FastAPI()


@app.get("/orders")
async def orders(current: CurrentSession, optional: OptionalSession, sessions: Sessions) -> None:
    assert_type(current, Session)
    assert_type(optional, Session | None)
    assert_type(sessions, OtplessSessions)


@app.post("/payments")
async def pay(
    fresh: FreshSession, within: Annotated[Session, Depends(fresh_within(60))], details: CurrentSessionDetails
) -> None:
    assert_type(fresh, Session)
    assert_type(within, Session)
    assert_type(details, SessionDetails)


async def dependencies(connection: HTTPConnection) -> None:
    assert_type(await current_session(connection), Session)
    assert_type(await optional_session(connection), Session | None)
    assert_type(await fresh_session(connection), Session)
    assert_type(await current_session_details(connection), SessionDetails)
    assert_type(await otpless_sessions(connection), OtplessSessions)
    assert_type(fresh_within(60), Callable[..., Awaitable[Session]])


def session(session: Session) -> None:
    assert_type(session.id, str)
    assert_type(session.name, str | None)
    assert_type(session.expires_at, datetime)
    assert_type(session.stale, bool)
    assert_type(session.claims, Mapping[str, Any])
    assert_type(session.token, SecretStr)


def details(details: SessionDetails) -> None:
    assert_type(details.session_id, str)
    assert_type(details.device_info, DeviceInfo | None)
    assert_type(details.network, NetworkInfo | None)
    identities: Sequence[Identity] = details.identities
    assert_type(identities[0].identity_value, str | None)


async def without_fastapi(session: Session) -> None:
    async with OtplessSessions() as sessions:
        assert_type(sessions, OtplessSessions)
        assert_type(sessions.settings, OtplessSettings)
        assert_type(sessions.is_open, bool)
        assert_type(await sessions.resolve("token"), Session | SessionReason)
        assert_type(await sessions.details(session), SessionDetails)
        assert_type(await sessions.end(session.id, user_id=session.user_id), bool)
        assert_type(await sessions.end_all(session.user_id), int)
        for one in await sessions.list(session.user_id):
            assert_type(one.device, str | None)
            assert_type(one.created_at, datetime)


async def client(settings: OtplessSettings) -> None:
    async with OtplessClient(settings) as client:
        assert_type(client, OtplessClient)
        assert_type(await client.validate_session("token"), Verdict)
        assert_type(await client.new_session_token("token"), TokenPair | Verdict)
        assert_type(await client.session_details("token"), SessionDetails | Verdict)
        assert_type(await client.revoke_session("token"), Verdict)


def store() -> None:
    assert_type(open_store("memory://"), SessionStore)


def refused(request: Request, error: RefusalError) -> Response:
    assert_type(request.state.otpless, Any)
    assert_type(error.status_code, int)
    assert_type(error.code, str)
    assert_type(error.body, dict[str, object])
    return Response(status_code=error.status_code)


def answer(connection: HTTPConnection, error: RefusalError) -> Response:
    assert connection
    assert_type(error.message, str)
    return Response(status_code=error.status_code)


async def answer_later(connection: HTTPConnection, error: RefusalError) -> Response:
    return answer(connection, error)


async def welcome(event: SessionEvent) -> None:
    assert_type(event.user_id, str)


def left(event: SessionEvent) -> None:
    assert_type(event.reason, SignOutReason | None)


def takes_a_session(session: Session) -> None:
    assert_type(session.id, str)


def hooked() -> None:
    OtplessSessions(on_sign_in=welcome, on_refresh=welcome, on_sign_out=left, on_reuse=lambda event: event.at)
    OtplessSessions(on_sign_in=takes_a_session)  # type: ignore[arg-type]  # a slip


def made() -> None:
    assert_type(create_session_router(), APIRouter)
    app.add_middleware(OtplessSessionMiddleware)
    app.add_middleware(OtplessSessionMiddleware, settings=OtplessSettings(), on_refusal=answer)
    app.add_middleware(OtplessSessionMiddleware, sessions=OtplessSessions(), on_refusal=answer_later)
    app.add_middleware(OtplessSessionMiddleware, setings=OtplessSettings())  # type: ignore[call-arg]  # a slip
