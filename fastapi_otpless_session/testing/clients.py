"""Giving a test's client a session: in its cookie jar, or in its headers.

The client is Starlette's TestClient, an `httpx.Client` or an `httpx.AsyncClient`, of httpx or of httpx2: what they have
in common is asked for, and neither is imported.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from email.message import Message
from http.cookiejar import Cookie, CookieJar
from typing import Any, Literal, Protocol, cast
from urllib.parse import urlsplit
from urllib.request import Request

from fastapi_otpless_session import ConfigurationError, OtplessSettings
from fastapi_otpless_session.transport import Transport

Channel = Literal["cookie", "header", "authorization"]


class _Cookies(Protocol):
    @property
    def jar(self) -> CookieJar: ...


class Client(Protocol):
    """A client as httpx and httpx2 make them, TestClient included."""

    @property
    def base_url(self) -> object:
        """What relative URLs belong to."""
        ...

    @property
    def cookies(self) -> _Cookies:
        """The cookie jar."""
        ...

    @property
    def headers(self) -> MutableMapping[str, str]:
        """The headers of every request."""
        ...

    @property
    def event_hooks(self) -> dict[str, list[Callable[..., Any]]]:
        """What is called with each response."""
        ...


def check_client(client: object) -> None:
    """Raise TypeError for what is none."""
    missing = [name for name in ("base_url", "cookies", "headers", "event_hooks") if not hasattr(client, name)]
    if missing:
        raise TypeError(
            f"sign_in wants a client (TestClient, httpx.Client or httpx.AsyncClient), not {type(client).__name__}"
        )


def application_of(client: Client) -> object:
    """Return the application that a client calls in this process; None where that does not show."""
    return getattr(client, "app", None) or getattr(getattr(client, "_transport", None), "app", None)


def channel_for(settings: OtplessSettings, wanted: Channel | None) -> Channel:
    """Return the channel to use: the one that is wanted, or the first of cookie and headers that the settings allow."""
    channels: tuple[Channel, ...] = ("cookie", "header", "authorization")
    allowed = [each for each in channels if each in settings.token_sources]
    if wanted is None:
        return allowed[0]
    if wanted not in allowed:
        raise ValueError(f"channel must be one of the settings' token_sources ({', '.join(allowed)}), not {wanted!r}")
    return wanted


@dataclass(frozen=True, slots=True)
class Credentials:
    """What clients carry, under an application's settings."""

    settings: OtplessSettings

    def tokens(self, client: Client) -> list[str]:
        """Return the session tokens that a client carries, as the application finds them in its requests."""
        cookies = [("Cookie", f"{cookie.name}={cookie.value}") for cookie in self._cookies(client)]
        headers = [(name, client.headers.get(name, "")) for name in (self.settings.header_name, "Authorization")]
        return self._found([*cookies, *headers])

    def take(self, client: Client) -> None:
        """Take what a client carries of sessions. Another API's key in `Authorization` is none."""
        for cookie in self._cookies(client):
            client.cookies.jar.clear(cookie.domain, cookie.path, cookie.name)
        client.headers.pop(self.settings.header_name, None)
        if self._found([("Authorization", client.headers.get("Authorization", ""))]):
            del client.headers["Authorization"]

    def give(self, client: Client, channel: Channel, token: str) -> None:
        """Let a client carry a token from now on, and what it is swapped for."""
        match channel:
            case "cookie":
                self._set_cookie(client, token)
            case "header":
                client.headers[self.settings.header_name] = token
                self._follow(client, self.settings.header_name, "{}")
            case "authorization":
                client.headers["Authorization"] = f"Bearer {token}"
                self._follow(client, "Authorization", "Bearer {}")

    def _found(self, headers: list[tuple[str, str]]) -> list[str]:
        presented = Transport(self.settings).find([(name.lower().encode(), value.encode()) for name, value in headers])
        return [token for token, _ in presented.tokens]

    def _cookies(self, client: Client) -> list[Cookie]:
        return [cookie for cookie in client.cookies.jar if cookie.name == self.settings.cookie]

    def _set_cookie(self, client: Client, token: str) -> None:
        """Set the cookie as a response would: the swapped one must take its place, not stand beside it."""
        url = str(client.base_url)
        scheme = urlsplit(url).scheme
        if scheme not in {"http", "https"}:
            raise ConfigurationError(
                'A cookie needs a host: give the client a base_url, or sign in with channel="header"'
            )
        if self.settings.cookie_secure and scheme == "http":
            raise ConfigurationError(
                f"This client speaks http:// ({url}) and never sends a Secure cookie. Give it "
                'base_url="https://testserver", or leave cookie_secure false in tests.'
            )
        client.cookies.jar.extract_cookies(cast("Any", _Answer(self._header(token))), Request(url))  # noqa: S310
        if not self._cookies(client):
            raise ConfigurationError(
                f"The cookie of {self.settings.cookie_domain or 'this application'} is not for {url}: "
                "give the client a base_url in cookie_domain, or leave that out in tests."
            )

    def _header(self, token: str) -> str:
        attributes = [f"{self.settings.cookie}={token}", f"Path={self.settings.cookie_path}"]
        if self.settings.cookie_secure:
            attributes.append("Secure")
        if self.settings.cookie_domain:
            attributes.append(f"Domain={self.settings.cookie_domain}")
        return "; ".join(attributes)

    def _follow(self, client: Client, name: str, form: str) -> None:
        follower = _Follower(client, self.settings.header_name, name, form)
        is_async = inspect.iscoroutinefunction(getattr(client, "send", None))
        hooks = client.event_hooks["response"]
        hooks[:] = [hook for hook in hooks if not isinstance(getattr(hook, "__self__", None), _Follower)]
        hooks.append(follower.read_async if is_async else follower.read)


@dataclass(frozen=True, slots=True)
class _Follower:
    """Stores a swapped token, as a frontend does that keeps it in a header."""

    client: Client
    swapped: str
    name: str
    form: str

    def read(self, response: Any) -> None:
        token = response.headers.get(self.swapped)
        if token is not None and self.name in self.client.headers:
            self.client.headers[self.name] = self.form.format(token)

    async def read_async(self, response: Any) -> None:
        self.read(response)


class _Answer:
    """A response as `http.cookiejar` reads it."""

    def __init__(self, set_cookie: str) -> None:
        self._headers = Message()
        self._headers["Set-Cookie"] = set_cookie

    def info(self) -> Message:
        return self._headers
