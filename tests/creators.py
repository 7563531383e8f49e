"""Processes that open a new store at the same moment: whoever comes first makes it, and all must get it.

They are forked by one that has everything imported: eight imports take longer than all the rest.
"""

from __future__ import annotations

import json
import subprocess
import sys

PROCESSES = 8
PATIENCE = 60.0

NURSERY = """
import asyncio, json, os, sys, traceback
from fastapi_otpless_session.stores import open_store
from fastapi_otpless_session.testing.store_contract import Subject, ContractClock

async def create(url, number, gate):
    store = open_store(url)
    os.read(gate, 1)
    await store.open()
    await Subject(store, ContractClock()).sign_in(f"s-{number}")
    await store.close()

def become_creator(number, gate):
    status = 1
    try:
        asyncio.run(create(sys.argv[1], number, gate))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)

gate, opens = os.pipe()
creators = []
for number in range(int(sys.argv[2])):
    pid = os.fork()
    if pid == 0:
        os.close(opens)
        become_creator(number, gate)
    creators.append(pid)
os.close(opens)  # all read the end of it at once
print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in creators]))
"""


def create_together(url: str) -> tuple[bytes, list[int]]:
    """Sign somebody in from each of the processes; return what they said of errors, and their exit statuses."""
    command = [sys.executable, "-c", NURSERY, url, str(PROCESSES)]
    ran = subprocess.run(command, capture_output=True, check=True, timeout=PATIENCE)  # noqa: S603 - this Python
    return ran.stderr, json.loads(ran.stdout)
