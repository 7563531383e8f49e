"""All settings, read from `OTPLESS_*` variables or a `.env` file, checked once, then frozen."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import json
import os
import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from fastapi_otpless_session.errors import ConfigurationError
from fastapi_otpless_session.telemetry import logger

PREFIX = "OTPLESS_"
ENV_FILE = ".env"
KEY_BYTES = 32
DERIVED_KEY = "derived"
NAME_LIMIT = 128
TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110, section 5.6.2
DOMAIN = re.compile(r"\.?[0-9A-Za-z_-]+(\.[0-9A-Za-z_-]+)*")
TAKEN_HEADERS = frozenset(
    {
        *("authorization", "cookie", "set-cookie", "origin", "host", "vary", "cache-control", "retry-after"),
        *("connection", "upgrade", "te", "trailer", "transfer-encoding", "content-length", "content-type"),
        *("content-encoding", "date", "expect", "location", "range", "accept", "accept-encoding", "user-agent"),
    }
)
"""Headers that browsers, servers or this package read or write for something else."""
DEFAULT_PORTS = {"http": ":80", "https": ":443"}
"""Of the schemes that pages are served by. Apps and browser extensions have others, without ports."""
LIKE_HTTP = 0.6
"""From what likeness on (of 1) a scheme is taken for a misspelled one of those."""
NO_ORIGINS = frozenset({"about", "blob", "data", "file", "ftp", "javascript", "ws", "wss"})
"""Schemes of no origin that a browser names."""
STORE_SCHEMES = ("sqlite", "memory", "postgresql", "postgres", "redis", "rediss", "unix")
STRAY_IN_URLS = (" ", "\\", "?", "#")
"""What shells, editors and files of variables leave in a URL, or what a call's path would be put behind."""
NEARLY = 0.85
"""From what likeness on (of 1) one name is taken for another's misspelling."""
ALMOST = 0.92
"""The same for names that don't begin as ours: in the shortest two letters have changed places, and other libraries'
variables end as ours do."""
SLIPS_IN_GLOBS = (
    (re.compile(r"\{[A-Za-z_]\w*(:\w+)?\}"), "write * for a path parameter, or a final /** for a {name:path}"),
    (re.compile(r"%[0-9A-Fa-f]{2}"), "write the characters themselves: a path is compared when it has been decoded"),
    (re.compile(r"[?#]"), "a path has no query and no fragment, and * is the only wildcard"),
)
"""What a glob of paths would only match as these very characters, and nobody means that: a folder that is to need a
session would be open. Such a path may come all the same, its characters encoded, and then a * matches it; single braces
and percent signs, and braces around what is no name of a parameter, are taken as they are.
"""
VARIABLE = re.compile(r"[\w.-]+")
"""What may be shown as a name: behind a colon that was meant to be a = stands a value."""

T = TypeVar("T")

_HINTS = {
    "missing": "is required; copy it from the OTPLESS dashboard",
    "float_parsing": "is not a number; write seconds, such as 30",
    "finite_number": "is not a finite number; write seconds, such as 30",
    "int_parsing": "is not a whole number",
    "bool_parsing": "is neither true nor false",
}


def _items(value: object) -> object:
    """Read a list that is written comma-separated or as JSON."""
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.startswith("["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise ValueError("is not a JSON list; write it as a,b,c") from None
    return [item.strip() for item in text.split(",") if item.strip()]


def _none(value: object) -> object:
    return None if isinstance(value, str) and value.strip().lower() == "none" else value


def _lower(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


def _lower_items(value: object) -> object:
    items = _items(value)
    return [_lower(item) for item in items] if isinstance(items, list | tuple) else items


Items = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_items)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Limit = Annotated[Annotated[float, Field(gt=0, allow_inf_nan=False)] | None, BeforeValidator(_none)]
Deadline = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class OtplessSettings(BaseSettings):
    """The package's settings. Durations are seconds.

    Raises `ConfigurationError`, which names each wrong variable and what to write, and no secret's value.
    """

    model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=ENV_FILE,
        env_file_encoding="utf-8",
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        validate_default=False,
    )

    client_id: Annotated[str, Field(min_length=1, max_length=512)]
    """From the OTPLESS dashboard."""
    client_secret: SecretStr
    """From the OTPLESS dashboard."""
    base_url: str = "https://user-auth.otpless.app"
    """OTPLESS's API; http:// for loopback addresses only."""
    jwks_url: str = "https://otpless.com/.well-known/jwks"
    """OTPLESS's keys. Empty: no local signature checks."""
    issuer: str = "https://otpless.com"
    """The `iss` that tokens must have."""
    store_url: SecretStr = SecretStr("sqlite:///otpless_sessions.db")
    """Where sessions are kept: `sqlite:///`, `memory://`, `postgresql://`, `redis://`, `rediss://` or `unix://`."""
    encryption_keys: Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_items)] = (SecretStr(DERIVED_KEY),)
    """Base64url keys of 32 bytes that seal stored tokens, or `derived` (from the secret). The first seals, all open."""
    token_sources: Annotated[
        tuple[Literal["authorization", "header", "cookie"], ...], NoDecode, BeforeValidator(_lower_items)
    ] = ("authorization", "header", "cookie")
    """Where to look for a session token."""
    header_name: str = "X-Session-Token"
    """The header of requests and responses that holds a session token, beside `Authorization`."""
    cookie_name: str = "otpless_session"
    """Without `__Host-`, which is put in front where it may be; see `cookie`."""
    cookie_secure: bool = True
    """Whether the cookie is for https only."""
    cookie_samesite: Annotated[Literal["lax", "strict", "none"], BeforeValidator(_lower)] = "lax"
    """The cookie's `SameSite`."""
    cookie_domain: Annotated[str | None, BeforeValidator(_none)] = None
    """The domain whose subdomains share the cookie; None: this host only."""
    cookie_path: str = "/"
    """The cookie's path."""
    trusted_origins: Items = ()
    """Origins beside our own that may send unsafe requests with the cookie, open websockets, sign in and sign out."""
    accept_unknown_tokens: bool = True
    """Whether a header's token that was not signed in here is admitted where OTPLESS says that it is valid."""
    validation_ttl: Seconds = 30
    """How long OTPLESS's "valid" is believed; up to twice that while it is asked behind the request. 0: always ask."""
    stale_if_error: Seconds = 300
    """How much longer it is believed while OTPLESS gives no verdict. 0: not at all."""
    store_ttl: Seconds = 0
    """How long a worker believes its own copy of a row. 0: look at the store each time."""
    refresh_ahead: Annotated[float, Field(ge=0, le=0.5, allow_inf_nan=False)] = 0.05
    """The last part of a token's life, 0 to 0.5, in which it is refreshed behind a request. 0: off."""
    rotation_grace: Seconds = 30
    """How long a token stays good after its successor was first seen."""
    on_reuse: Annotated[Literal["revoke", "reject"], BeforeValidator(_lower)] = "revoke"
    """What comes of a token that is presented after its grace: `revoke` ends its session, `reject` only refuses it."""
    idle_timeout: Limit = None
    """How long a session may go without a request; None: as long as OTPLESS lets it."""
    absolute_timeout: Limit = None
    """How long a session may go on after its sign-in; None: as long as OTPLESS lets it."""
    request_timeout: Deadline = 3
    """The deadline of a call to OTPLESS, connection included."""
    refresh_timeout: Deadline = 10
    """The same of a refresh."""
    max_upstream: Annotated[int, Field(ge=1)] = 100
    """How many calls to OTPLESS a worker makes at once."""
    http_client: Annotated[Literal["httpx", "aiohttp"], BeforeValidator(_lower)] = "httpx"
    """What calls OTPLESS; aiohttp needs the extra `fast`, and costs less."""
    required_paths: Items = ()
    """Globs of paths that need a session. `*` is one segment, a final `/**` the folder and all below."""
    exempt_paths: Items = ()
    """Globs of paths that need none nevertheless."""
    websocket_recheck: Deadline = 30
    """How often an open websocket's session is looked at again."""
    require_sign_in_token: bool = True
    """Whether a sign-in needs the SDK's one-time token, which is checked with OTPLESS."""

    def __init__(self, **values: Any) -> None:
        unknown = sorted(name for name in values if not name.startswith("_") and name not in type(self).model_fields)
        if unknown:  # in the environment others are somebody else's; in code they are slips
            raise ConfigurationError(f"There is no such setting: {', '.join(unknown)}")
        env_file = values.get("_env_file", type(self).model_config.get("env_file"))
        try:
            _refuse_folders(env_file)
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigurationError(_explain(error, env_file)) from None
        except (UnicodeDecodeError, OSError, SettingsError) as error:
            raise ConfigurationError(_unreadable(error, env_file)) from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Warn of misspelled names among those that were read; the sources and their order are the usual ones."""
        _warn_of_slips(settings_cls, env_settings, dotenv_settings)
        return init_settings, env_settings, dotenv_settings, file_secret_settings

    @property
    def cookie(self) -> str:
        """The cookie's full name: `__Host-` in front whenever browsers allow it (RFC 6265bis, 4.1.3.2)."""
        bound = self.cookie_secure and self.cookie_path == "/" and self.cookie_domain is None
        return f"__Host-{self.cookie_name}" if bound else self.cookie_name

    @model_validator(mode="before")
    @classmethod
    def _empty_is_default(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if value != "" or name == "jwks_url"}

    @field_validator("client_id", "client_secret")
    @classmethod
    def _header_safe(cls, value: str | SecretStr) -> str | SecretStr:
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        if not text.isascii() or not text.isprintable() or text != text.strip() or not text:
            raise ValueError("has characters that no HTTP header can carry; copy it again from the dashboard")
        return value

    @field_validator("base_url", "jwks_url")
    @classmethod
    def _safe_url(cls, value: str) -> str:
        url = value.rstrip("/")
        if value:
            _check_url(url)
        return url

    @field_validator("store_url")
    @classmethod
    def _known_store(cls, value: SecretStr) -> SecretStr:
        scheme, separator, _ = value.get_secret_value().partition("://")
        if not separator or scheme not in STORE_SCHEMES:
            raise ValueError(f"must start with one of {', '.join(s + '://' for s in STORE_SCHEMES)}")
        return value

    @field_validator("encryption_keys")
    @classmethod
    def _whole_keys(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for number, key in enumerate(value, 1):
            if key.get_secret_value() != DERIVED_KEY:
                _check_key(key.get_secret_value(), number)
        return _not_empty(value, "at least one key, or the word derived")

    @field_validator("token_sources")
    @classmethod
    def _some_source(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _not_empty(value, "at least one of authorization, header, cookie")

    @field_validator("header_name", "cookie_name")
    @classmethod
    def _token(cls, value: str) -> str:
        if not TOKEN.fullmatch(value) or len(value) > NAME_LIMIT:
            raise ValueError("may have letters, digits and !#$%&'*+-.^_`|~ only, and no more than 128 characters")
        return value

    @field_validator("cookie_name")
    @classmethod
    def _no_prefix(cls, value: str) -> str:
        if value.lower().startswith(("__host-", "__secure-")):
            raise ValueError("must be written without __Host- or __Secure-; __Host- is added where it may be")
        return value

    @field_validator("header_name")
    @classmethod
    def _own_header(cls, value: str) -> str:
        if value.lower() in TAKEN_HEADERS or value.lower().startswith(("sec-", "proxy-", "access-control-")):
            raise ValueError("must be a header of its own, such as X-Session-Token")
        return value

    @field_validator("cookie_domain")
    @classmethod
    def _domain(cls, value: str | None) -> str | None:
        if value is not None and not DOMAIN.fullmatch(value):
            raise ValueError("must be a domain such as example.com, without scheme, port or path")
        return value

    @field_validator("cookie_path")
    @classmethod
    def _attribute(cls, value: str) -> str:
        if not value.isascii() or not value.isprintable() or ";" in value or " " in value:
            raise ValueError("has characters that a cookie attribute cannot hold")
        return value

    @field_validator("cookie_path")
    @classmethod
    def _rooted(cls, value: str) -> str:
        if not value.startswith("/"):
            raise ValueError("must start with /")
        return value

    @field_validator("trusted_origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_origin(item) for item in value)

    @field_validator("required_paths", "exempt_paths")
    @classmethod
    def _globs(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for glob in value:
            if not glob.startswith("/"):
                raise ValueError(f"{glob!r} must start with /")
            if "**" in glob.removesuffix("/**"):
                raise ValueError(f"{glob!r}: ** may only stand at the end, as in /folder/**")
            for slip, advice in SLIPS_IN_GLOBS:
                if slip.search(glob):
                    raise ValueError(f"{glob!r}: {advice}")
        return value

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.cookie_samesite == "none" and not self.cookie_secure:
            raise ValueError(
                "OTPLESS_COOKIE_SAMESITE: none needs OTPLESS_COOKIE_SECURE=true; otherwise browsers drop it"
            )
        if self.refresh_timeout < self.request_timeout:
            raise ValueError(
                f"OTPLESS_REFRESH_TIMEOUT: must not be shorter than OTPLESS_REQUEST_TIMEOUT ({self.request_timeout:g})"
            )
        return self


def misspelled(names: Iterable[str], settings: type[BaseSettings] = OtplessSettings) -> dict[str, str]:
    """Return the variables that nearly have a setting's name, in capitals, with the one that is probably meant.

    Others may be the application's own, such as its OTPLESS app id.
    """
    known = {PREFIX + name.upper() for name in settings.model_fields}
    strange = sorted({name.upper() for name in names if name[:1] in "Oo" and VARIABLE.fullmatch(name)} - known)
    return {
        name: close[0]
        for name in strange
        if (close := get_close_matches(name, known, n=1, cutoff=NEARLY if name.startswith(PREFIX) else ALMOST))
    }


def _warn_of_slips(settings: type[BaseSettings], *sources: PydanticBaseSettingsSource) -> None:
    """Warn of variables that somebody thinks are settings, and that do nothing."""
    names = {name for source in sources if isinstance(source, EnvSettingsSource) for name in source.env_vars}
    for name, meant in misspelled(names, settings).items():
        logger.warning("No setting is called %s, and what it says is not heeded: is %s meant?", name, meant)


def _refuse_folders(env_file: object) -> None:
    """Refuse what a container makes of a bind mount whose file is missing; it would be passed over in silence."""
    for file in _files(env_file):
        if file.is_dir():
            raise ConfigurationError(f"{file} is a folder; make it a file of UTF-8 text, or remove it")


def _files(env_file: object) -> list[Path]:
    """Return the files that settings may be read from, by their full names."""
    files = env_file if isinstance(env_file, list | tuple) else [env_file]
    return [Path(file).expanduser().absolute() for file in files if isinstance(file, str | os.PathLike)]


def _unreadable(error: OSError | UnicodeDecodeError | SettingsError, env_file: object) -> str:
    """Name the file that cannot be read, without what it says. Not every error does: then it is one of those there."""
    if isinstance(error, SettingsError):  # of `_secrets_dir`: a file in it, or that it is no folder
        cause = error.__cause__
        return _unreadable(cause, None) if isinstance(cause, OSError | UnicodeDecodeError) else str(error)
    named = error.filename if isinstance(error, OSError) else None
    files = [Path(named).absolute()] if named else [file for file in _files(env_file) if file.is_file()]
    why = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
    names = " or ".join(map(str, files)) or "A file in _secrets_dir"
    return f"{names} cannot be read{why}; make it a file of UTF-8 text that this user may read"


def _not_empty(value: tuple[T, ...], what: str) -> tuple[T, ...]:
    if not value:
        raise ValueError(f"needs {what}")
    return value


def _check_url(url: str) -> None:
    if not url.isprintable() or any(stray in url for stray in STRAY_IN_URLS):
        raise ValueError(
            "must be written as https://host/path, with no space or line break (at its ends neither), no \\, ? or #"
        )
    if not _is_safe_url(url):
        raise ValueError("must be an https:// URL; http:// is for loopback addresses only")
    if not _is_host(urlsplit(url).hostname or ""):
        raise ValueError(
            "must be written as https://host/path; the host's name has 1 to 63 letters, digits, - or _ between its dots"
        )


def _is_safe_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port
    except ValueError:
        return False
    if not host or parts.username is not None:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))


def _is_host(host: str) -> bool:
    """Whether it is an IPv6 address, or a name that can be looked up; such a name may end with a dot."""
    try:
        name = host.encode("idna").decode()
    except UnicodeError:  # a part is empty, or longer than 63 characters (RFC 1035, section 2.3.4)
        return False
    return ":" in host or DOMAIN.fullmatch(name.removesuffix(".")) is not None


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is one of this machine's own."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_key(text: str, number: int) -> None:
    try:
        key = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise ValueError(
            f"key {number} is not 32 bytes in base64url; `python -m fastapi_otpless_session keygen` prints one"
        )


def _origin(text: str) -> str:
    if not _is_origin(text):
        shown = "one of them" if "@" in text else repr(text)  # what stands before an @ may be a password
        raise ValueError(
            f"{shown} is not an origin; write https://host or https://host:port, or as an app has it capacitor://localhost"
        )
    if not text.isascii():  # what can be compared is what is sent
        raise ValueError(
            f"{text!r}: write the host as browsers send it, in ASCII, such as https://xn--bcher-kva.example"
        )
    origin = text.rstrip("/").lower()
    return origin.removesuffix(DEFAULT_PORTS.get(urlsplit(origin).scheme, ""))


def _is_origin(text: str) -> bool:
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        return False
    more = parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc or "*" in parts.netloc
    is_slip = parts.scheme not in DEFAULT_PORTS and get_close_matches(parts.scheme, DEFAULT_PORTS, cutoff=LIKE_HTTP)
    is_scheme = parts.scheme and parts.scheme not in NO_ORIGINS and not is_slip
    is_clean = text.isprintable() and " " not in text
    return bool(is_scheme and parts.hostname and is_clean) and not more


def _explain(error: ValidationError, env_file: object) -> str:
    """Say for each wrong variable what is wrong, without its value."""
    lines = []
    problems = error.errors(include_input=False, include_url=False, include_context=False)
    for problem in problems:
        text = _HINTS.get(problem["type"], problem["msg"].removeprefix("Value error, "))
        place = problem["loc"]
        name = f"{PREFIX}{str(place[0]).upper()}: " if place else ""
        lines.append(f"{name}{text}")
    if any(problem["type"] == "missing" for problem in problems) and isinstance(env_file, str | os.PathLike):
        file = Path(env_file).expanduser().absolute()
        lines.append(f"{file} was read" if file.exists() else f"There is no {file}")
    return "Wrong settings:\n" + "\n".join(f"  {line}" for line in lines)
