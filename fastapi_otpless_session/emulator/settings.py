"""How an emulator behaves: credentials, lifetimes and the answers to what OTPLESS leaves undocumented.

The published contract is silent on these questions. Each is one setting, so that a client can be tried
against both answers:

- Does a refresh give a new refresh token, and what becomes of the old one? `rotation`
- Is the session id of the session details called `sessionId` or `sessionToken`? `details_id_field`
- Does validate-session answer a dead or unknown token with `success: false` or an error? `dead_token_answer`
- How does validate-session answer a session token of another merchant? `foreign_token_answer`
- Does a refresh kill the previous session tokens at once? `refresh_kills_old_token`
- Does validate/token's answer carry `sessionInfo`? `validate_token_session_info`
- Is `verifiedAt` in milliseconds or an ISO-8601 string? `verified_at`
- Does validate-session take a refresh token for a session token? `refresh_token_as_session_token`
- Can a one-time token be used more than once, and for how long? `one_time_token_reusable`,
  `one_time_token_lifetime`
- With which status and code is a one-time token refused? `one_time_token_refusal`
- Is `errorCode` a string or a number? `error_code_type`
- Can a session be revoked with a session token that has expired? `revoke_accepts_expired`
"""

from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

_BASICS = (
    *("client_id", "client_secret", "app_id", "issuer", "session_lifetime", "refresh_lifetime", "rotation"),
    *("control_hosts", "kept_sessions"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatorSettings:
    """What an emulator is told at its start. Lifetimes are in seconds and must be positive.

    `rotation` is "fixed" (a refresh gives back the same refresh token), "rotating" (a new one each time, old
    ones keep working) or "strict" (each works once; presenting a used one revokes the whole session). The
    fields after it are the quirks that the module's description lists. `control_hosts` are names by which
    browsers may steer the emulator, beside addresses, `localhost` and other names that nobody can own.
    `kept_sessions` (1 or more) is how many sessions are remembered, of some 3 KB each: where there are more, those that
    have ended are forgotten first, then the oldest.

    Raises ValueError for a value that is not one of a setting's choices.
    """

    client_id: str = "demo-client"
    client_secret: str = field(default="demo-secret", repr=False)
    app_id: str = "DEMOAPP"
    issuer: str = "https://otpless.com"
    session_lifetime: float = 86400.0
    refresh_lifetime: float = 604800.0
    rotation: Literal["fixed", "rotating", "strict"] = "fixed"
    details_id_field: Literal["sessionId", "sessionToken"] = "sessionId"
    dead_token_answer: Literal["success_false", "error"] = "success_false"
    foreign_token_answer: Literal["success_false", "error"] = "success_false"
    refresh_kills_old_token: bool = False
    validate_token_session_info: bool = False
    verified_at: Literal["ms", "iso"] = "ms"
    refresh_token_as_session_token: bool = False
    one_time_token_reusable: bool = False
    one_time_token_lifetime: float = 300.0
    one_time_token_refusal: Literal["401/7301", "400/7301", "401/7415", "400/7414"] = "401/7301"
    error_code_type: Literal["string", "int"] = "string"
    revoke_accepts_expired: bool = False
    control_hosts: tuple[str, ...] = ()
    kept_sessions: int = 50_000

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            _check(name, kind, getattr(self, name))


def quirk_names() -> list[str]:
    """The names of the settings that stand for undocumented questions."""
    return [each.name for each in fields(EmulatorSettings) if each.name not in _BASICS]


def parse_quirk(text: str) -> tuple[str, Any]:
    """The name and the value in `NAME=VALUE`. Raises ValueError, saying what would have been right."""
    name, equals, value = text.partition("=")
    name = name.strip().replace("-", "_")
    if not equals or name not in quirk_names():
        raise ValueError(f"{text!r} is not NAME=VALUE with NAME one of: {', '.join(quirk_names())}")
    kind = get_type_hints(EmulatorSettings)[name]
    parsed = _parse(name, kind, value.strip())
    _check(name, kind, parsed)
    return name, parsed


def _parse(name: str, kind: Any, value: str) -> Any:
    if kind is bool:
        return _parse_bool(name, value)
    if kind is float:
        return _parse_float(name, value)
    return value


def _parse_bool(name: str, value: str) -> bool:
    if value.lower() not in {"true", "false"}:
        raise ValueError(f"{name} must be true or false, not {value!r}")
    return value.lower() == "true"


def _parse_float(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"{name} must be a number of seconds, not {value!r}") from None


def _check(name: str, kind: Any, value: Any) -> None:
    if get_origin(kind) is Literal and value not in get_args(kind):
        raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}, not {value!r}")
    if kind is float and not 0 < value < float("inf"):
        raise ValueError(f"{name} must be a positive number of seconds, not {value!r}")
    if kind is int and value < 1:
        raise ValueError(f"{name} must be 1 or more, not {value!r}")
    if kind is str and not value:
        raise ValueError(f"{name} must not be empty")
