"""The log of the calls that the emulator got."""

from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import islice
from time import perf_counter
from typing import Any

KEPT = 50_000
"""How many calls are remembered one by one: some 17 MB. Older ones are counted only."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call: its path, the status it was answered with (0: not answered), when it came, about which session."""

    path: str
    status: int
    at: float
    session_id: str | None


@dataclass(slots=True, eq=False)
class OpenCall:
    """A call as it is being answered.

    `outcome` says in a few words what the answer was, without any token; `fault` is the kind of the fault that the
    call met. `took` is in seconds, None until the answer starts.
    """

    path: str
    at: float
    number: int = 0
    status: int = 0
    session_id: str | None = None
    outcome: str = ""
    fault: str | None = None
    took: float | None = None
    _began: float = field(default_factory=perf_counter)

    def answered(self, status: int) -> None:
        """Note that the answer starts."""
        self.status = status
        self.took = perf_counter() - self._began

    def snapshot(self) -> Call:
        """What is known of the call by now."""
        return Call(self.path, self.status, self.at, self.session_id)

    def as_json(self) -> dict[str, Any]:
        """The call as the page shows it."""
        return {
            "number": self.number,
            "path": self.path,
            "at": self.at,
            "status": self.status,
            "sessionId": self.session_id,
            "outcome": self.outcome,
            "fault": self.fault,
            "took": self.took,
        }


class CallLog:
    """The calls since the start or the last reset, in the order of their arrival."""

    def __init__(self) -> None:
        self._calls: deque[OpenCall] = deque(maxlen=KEPT)
        self._counts: Counter[str] = Counter()
        self._number = 0

    def open(self, path: str, at: float) -> OpenCall:
        """Log a call as it arrives, so that a call that is never answered counts too."""
        self._number += 1
        call = OpenCall(path, at, self._number)
        self._calls.append(call)
        self._counts[path] += 1
        return call

    def calls(self) -> list[Call]:
        """Snapshots of the newest `KEPT` calls."""
        return [call.snapshot() for call in list(self._calls)]

    def newest(self, most: int) -> list[OpenCall]:
        """The newest calls, the newest first."""
        return list(islice(reversed(self._calls), most))

    def count(self, path_suffix: str) -> int:
        """How many calls went to a path with this end."""
        return sum(count for path, count in self.by_path().items() if path.endswith(path_suffix))

    def by_path(self) -> dict[str, int]:
        """How many calls went to each path."""
        return dict(self._counts)

    def reset(self) -> None:
        """Forget all calls."""
        self._calls.clear()
        self._counts.clear()
