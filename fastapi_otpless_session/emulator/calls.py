"""The log of the calls that the emulator got."""

from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Call:
    """One call: its path, the status it was answered with (0: not answered), when it came, about which session."""

    path: str
    status: int
    at: float
    session_id: str | None


@dataclass(slots=True)
class OpenCall:
    """A call as it is being answered."""

    path: str
    at: float
    status: int = 0
    session_id: str | None = None

    def snapshot(self) -> Call:
        """What is known of the call by now."""
        return Call(self.path, self.status, self.at, self.session_id)


class CallLog:
    """All calls since the start or the last reset, in the order of their arrival."""

    def __init__(self) -> None:
        self._calls: list[OpenCall] = []

    def open(self, path: str, at: float) -> OpenCall:
        """Log a call as it arrives, so that a call that is never answered counts too."""
        call = OpenCall(path, at)
        self._calls.append(call)
        return call

    def calls(self) -> list[Call]:
        """Snapshots of all calls."""
        return [call.snapshot() for call in list(self._calls)]

    def count(self, path_suffix: str) -> int:
        """How many calls went to a path with this end."""
        return sum(call.path.endswith(path_suffix) for call in list(self._calls))

    def by_path(self) -> dict[str, int]:
        """How many calls went to each path."""
        return dict(Counter(call.path for call in list(self._calls)))

    def reset(self) -> None:
        """Forget all calls."""
        self._calls.clear()
