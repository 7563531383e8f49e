"""`python -m fastapi_otpless_session`: the command line, which a Ctrl-C ends without a traceback."""

from __future__ import annotations

import sys
from collections.abc import Sequence

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    try:
        from fastapi_otpless_session import command_line  # noqa: PLC0415 - takes a second, and here Ctrl-C is waited for

        return command_line.main(arguments)
    except KeyboardInterrupt:  # while it was still starting
        sys.stderr.write("interrupted\n")
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
