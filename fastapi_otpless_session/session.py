"""What a session is to the application: frozen records, and why there may be none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    AfterValidator,
    AliasGenerator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetCoreSchemaHandler,
    SecretStr,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, core_schema

LAST_SECOND = 253_402_300_799
"""The end of the year 9999, in seconds since the epoch: as far as a datetime goes."""


class SessionReason(StrEnum):
    """Why there is no session. `code` is what a client is told."""

    MISSING = "missing"
    INVALID = "invalid"
    EXPIRED = "expired"
    REVOKED = "revoked"
    REUSED = "reused"
    UNAVAILABLE = "unavailable"
    CONFLICT = "conflict"
    CROSS_SITE = "cross_site"

    @property
    def code(self) -> str:
        """The `code` in an answer's body, such as `session_expired`."""
        match self:
            case SessionReason.CONFLICT:
                return "conflicting_credentials"
            case SessionReason.CROSS_SITE:
                return "cross_site_request"
            case _:
                return f"session_{self.value}"


class SessionBody(BaseModel):
    """A session, as the frontend sees it: no token."""

    id: str
    user_id: str
    name: str | None
    email: str | None
    issued_at: datetime
    expires_at: datetime
    refreshed: bool
    stale: bool

    @classmethod
    def of(cls, session: Session) -> SessionBody:
        """Return what the frontend sees of a session."""
        return cls.model_validate(session, from_attributes=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Somebody who is signed in. All times are aware datetimes in UTC.

    A route that is annotated `-> Session` sends a `SessionBody`: neither claims nor token.
    """

    id: str
    """OTPLESS's id of the session; it stays the same when the token is swapped."""
    user_id: str
    """OTPLESS's id of the user (`MO-…`)."""
    name: str | None
    email: str | None
    issued_at: datetime
    """When the current session token was issued."""
    expires_at: datetime
    """When the current session token expires; it is swapped for a new one then, if it can be."""
    validated_at: datetime
    """When OTPLESS last said that the session is valid."""
    refreshed: bool
    """Whether the client presented an older token, so that this response carries a new one."""
    stale: bool
    """Whether OTPLESS or the store gave no answer, so that an earlier one was believed longer."""
    claims: Mapping[str, Any] = field(hash=False)
    """The token's other claims, as OTPLESS wrote them. Not to be changed: later requests get the same."""
    token: SecretStr
    """The current session token, to call other services on the user's behalf."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return the session itself: it does not change."""
        return self

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Send what the frontend may see, and read nothing: a session comes from a dependency only."""
        body = handler.generate_schema(SessionBody)
        shown = core_schema.plain_serializer_function_ser_schema(SessionBody.of, return_schema=body)
        return core_schema.no_info_wrap_validator_function(_only_a_session, body, serialization=shown)


def _only_a_session(value: object, _: ValidatorFunctionWrapHandler) -> Session:
    if isinstance(value, Session):
        return value
    raise ValueError("a Session is never read: it comes from a dependency, such as CurrentSession")


def utc(timestamp: float) -> datetime:
    """Return an aware datetime for seconds since the epoch."""
    return datetime.fromtimestamp(timestamp, UTC)


def is_over(ends_at: float, now: float) -> bool:
    """Whether something that ends at `ends_at` is over at `now`, both in seconds since the epoch."""
    return ends_at <= now


def _from_milliseconds(value: object) -> object:
    """Read OTPLESS's two spellings of a time: integer milliseconds since the epoch, or ISO 8601."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return utc(value / 1000)
    if isinstance(value, str) and value.isdigit():
        return utc(int(value) / 1000)
    return value


def _aware(value: datetime) -> datetime:
    return value if value.tzinfo else value.replace(tzinfo=UTC)


Time = Annotated[datetime, BeforeValidator(_from_milliseconds), AfterValidator(_aware)]


class _Documented(BaseModel):
    """A record of OTPLESS's, read tolerantly: unknown fields are kept, unreadable ones are as if missing."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        alias_generator=AliasGenerator(validation_alias=to_camel),
        validate_by_name=True,
        extra="allow",
        frozen=True,
        hide_input_in_errors=True,
    )

    @field_validator("*", mode="wrap")
    @classmethod
    def _tolerant(cls, value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        try:
            return handler(value)
        except (ValidationError, OverflowError, OSError):
            field = cls.model_fields[info.field_name or ""]
            if field.is_required():
                raise
            return field.default


class Place(_Documented):
    """A city, subdivision, country or continent."""

    code: str | None = None
    name: str | None = None


class IpLocation(_Documented):
    """Where OTPLESS places the IP address."""

    city: Place | None = None
    subdivisions: Place | None = None
    country: Place | None = None
    continent: Place | None = None
    latitude: float | None = None
    longitude: float | None = None
    postal_code: str | None = None


class NetworkInfo(_Documented):
    """The network that the sign-in came from."""

    ip: str | None = None
    timezone: str | None = None
    ip_location: IpLocation | None = None


class DeviceInfo(_Documented):
    """The browser or device that the sign-in came from, as OTPLESS saw it."""

    user_agent: str | None = None
    platform: str | None = None
    vendor: str | None = None
    browser: str | None = None
    connection: str | None = None
    language: str | None = None
    cookie_enabled: bool | None = None
    screen_width: float | None = None
    screen_height: float | None = None
    screen_color_depth: float | None = None
    device_pixel_ratio: float | None = None
    timezone_offset: float | None = None
    """Minutes."""
    cpu_architecture: str | None = None
    font_family: str | None = None


class Identity(_Documented):
    """A phone number (digits with the country code, no plus sign) or an e-mail address of the user's."""

    identity_type: str | None = None
    identity_value: str | None = None
    channel: str | None = None
    methods: tuple[str, ...] = ()
    name: str | None = None
    verified: bool | None = None
    verified_at: Time | None = None


class SessionDetails(_Documented):
    """OTPLESS's get-session-details. Fields are OTPLESS's in snake_case; unknown ones are in `model_extra`."""

    session_id: str
    user_id: str
    started_at: Time | None = None
    last_active_at: Time | None = None
    identities: tuple[Identity, ...] = ()
    device_info: DeviceInfo | None = None
    network: NetworkInfo | None = None
