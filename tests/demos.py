"""`make demo`'s program for tests, as its own process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from threading import Thread

from processes import PATIENCE

ROOT = Path(__file__).parent.parent


class Demo:
    """The running program and what it has printed so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.printed = ""
        self._lines: Queue[str] = Queue()
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self._lines.put(line)
        self._lines.put("")

    def wait_until_ready(self) -> list[str]:
        """Return the URLs, once they are printed."""
        while "Ctrl-C stops everything." not in self.printed:
            line = self._lines.get(timeout=PATIENCE)
            assert line, self.printed
            self.printed += line
        return re.findall(r"http://\S+", self.printed)

    def wait_until_over(self) -> int:
        status = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        while line := self._lines.get(timeout=PATIENCE):
            self.printed += line
        return status


@contextmanager
def run_demo(folder: Path, **variables: str) -> Iterator[Demo]:
    names = ("OTPLESS_", "SHOP_", "PORT", "EMULATOR_PORT")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    environment |= {"PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, "-m", "example_app"]
    with subprocess.Popen(  # noqa: S603 - our own program
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield Demo(process)
        finally:
            process.kill()
