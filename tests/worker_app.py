"""An application for uvicorn workers; its settings come from `OTPLESS_*` variables."""

from __future__ import annotations

import os
from typing import Any

from fastapi import FastAPI

from fastapi_otpless_session import CurrentSession, OtplessSessionMiddleware, create_session_router

app = FastAPI()
app.add_middleware(OtplessSessionMiddleware)
app.include_router(create_session_router(), prefix="/auth")


@app.get("/orders")
async def orders(session: CurrentSession) -> dict[str, Any]:
    return {"user": session.user_id, "worker": os.getpid(), "refreshed": session.refreshed}


@app.get("/public")
async def public() -> dict[str, str]:
    return {"hello": "world"}
