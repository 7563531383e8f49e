"""An application for uvicorn workers; its settings come from `OTPLESS_*` variables."""

from __future__ import annotations

import os
from typing import Any

from fastapi import FastAPI

from fastapi_otpless_session import CurrentSession, OtplessSessionMiddleware, create_session_router


def create_app() -> FastAPI:
    """Build the application as the environment says now."""
    app = FastAPI()
    app.add_middleware(OtplessSessionMiddleware)
    app.include_router(create_session_router(), prefix="/auth")
    app.get("/orders")(orders)
    app.get("/public")(public)
    return app


async def orders(session: CurrentSession) -> dict[str, Any]:
    return {"user": session.user_id, "worker": os.getpid(), "refreshed": session.refreshed}


async def public() -> dict[str, Any]:
    return {"hello": "world", "worker": os.getpid()}
