"""The application that the plugin's fixtures use until a project gives its own, and one with a user signed in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.types import ASGIApp

from fastapi_otpless_session import OtplessSessionMiddleware, create_session_router
from fastapi_otpless_session.testing.emulated import SignedIn

if TYPE_CHECKING:  # it needs httpx2 or httpx, and says so; clients of other kinds do without
    from starlette.testclient import TestClient


@dataclass(frozen=True, slots=True)
class SignedInApp:
    """An application, a client of it, and the user who is signed in there: the fixture `otpless_session`."""

    app: ASGIApp
    client: TestClient
    user: SignedIn

    @property
    def user_id(self) -> str:
        """OTPLESS's id of the user."""
        return self.user.user_id

    @property
    def session_id(self) -> str:
        """OTPLESS's id of the session."""
        return self.user.session_id


def minimal_app() -> FastAPI:
    """Return an application with the middleware, and the router at `/auth`."""
    app = FastAPI()
    app.add_middleware(OtplessSessionMiddleware)
    app.include_router(create_session_router(), prefix="/auth")
    return app
