"""What uvicorn serves for the second table. As a program it signs somebody in and prints the cookie to send."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import apps
from apps import BELIEVED, REQUIRED
from fastapi import FastAPI
from upstream import InstantOtpless

from fastapi_otpless_session import OtplessClient, OtplessSessionMiddleware, OtplessSessions

VALUES: dict[str, dict[str, Any]] = {"believed": {**BELIEVED, **REQUIRED}, "sqlite": {}}


def create_app() -> FastAPI:
    """Return the application of the kind that the environment says."""
    folder = Path(os.environ["BENCH_FOLDER"])
    match os.environ["BENCH_KIND"]:
        case "bare":
            app = apps.bare()
        case "starlette":
            app, _ = apps.starlette_session()
        case kind:
            app = apps.depending() if kind == "sqlite" else apps.bare()
            chosen = apps.settings(store_url=f"sqlite:///{folder}/sessions.db", **VALUES[kind])
            sessions = OtplessSessions(chosen, client=OtplessClient(chosen, http=InstantOtpless()))
            app.add_middleware(OtplessSessionMiddleware, sessions=sessions)
    (folder / f"{os.getpid()}.pid").touch()  # uvicorn's parent makes no application
    return app


async def _cookie() -> str:
    kind, folder = os.environ["BENCH_KIND"], Path(os.environ["BENCH_FOLDER"])
    if kind == "starlette":
        return apps.starlette_session()[1][1].decode()
    async with apps.worker(folder) as each:
        return apps.cookie((await each.sign_in()).token)[1].decode()


if __name__ == "__main__":
    json.dump(asyncio.run(_cookie()), sys.stdout)
