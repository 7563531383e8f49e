"""Processes that open a new store at the same moment: whoever comes first makes it, and all must get it."""

from __future__ import annotations

import subprocess
import sys

PROCESSES = 8
PATIENCE = 60.0

CREATOR = """
import asyncio, sys
from fastapi_otpless_session.stores import open_store
from fastapi_otpless_session.testing.store_contract import Subject, ContractClock

async def main():
    store = open_store(sys.argv[1])
    sys.stdin.readline()
    await store.open()
    await Subject(store, ContractClock()).sign_in(sys.argv[2])
    await store.close()

print("ready", flush=True)
asyncio.run(main())
"""


def create_together(url: str) -> list[tuple[bytes, int]]:
    """Sign somebody in from each of the processes; return what each said of errors, and its exit status."""
    creators = [
        subprocess.Popen(  # noqa: S603 - this Python
            [sys.executable, "-c", CREATOR, url, f"s-{number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for number in range(PROCESSES)
    ]
    for creator in creators:
        assert creator.stdout is not None
        assert creator.stdout.readline() == b"ready\n"
    for creator in creators:
        assert creator.stdin is not None
        creator.stdin.write(b"\n")
        creator.stdin.flush()
    return [(creator.communicate(timeout=PATIENCE)[1], creator.returncode) for creator in creators]
