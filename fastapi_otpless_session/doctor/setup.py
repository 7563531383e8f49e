"""What is examined: settings, the application, the host, and the address that browsers use."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from fastapi_otpless_session.doctor.application import Application
from fastapi_otpless_session.doctor.findings import NotApplicableError
from fastapi_otpless_session.doctor.host import Host
from fastapi_otpless_session.settings import OtplessSettings, is_loopback
from fastapi_otpless_session.stores import SessionStore, open_store


@dataclass(frozen=True, slots=True)
class Site:
    """The site's address, as browsers have it: scheme, host, and a port where it is not the scheme's own."""

    origin: str
    path: str = ""

    @property
    def is_https(self) -> bool:
        """Whether pages come over TLS."""
        return self.origin.startswith("https://")

    @property
    def host(self) -> str:
        """The host's name, without a port."""
        place = self.origin.partition("://")[2]
        return place.partition("]")[0].removeprefix("[") if place.startswith("[") else place.partition(":")[0]

    @property
    def is_local(self) -> bool:
        """Whether it is on the machine that its browsers run on."""
        return is_loopback(self.host)


@dataclass(frozen=True, slots=True)
class Setup:
    """What checks look at. Asking for a part that is not there raises `NotApplicableError`."""

    host: Host
    known_settings: OtplessSettings | None = None
    settings_error: str | None = None
    settings_source: str = "the environment"
    known_app: Application | None = None
    known_site: Site | None = None
    deadline: float = 10.0
    store_turn: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False, compare=False)
    """For the application's own store, which is one for all checks: who closes it would close it for the others."""

    @property
    def settings(self) -> OtplessSettings:
        """The settings that the application uses."""
        if self.known_settings is None:
            raise NotApplicableError("The settings cannot be read.")
        return self.known_settings

    @property
    def app(self) -> Application:
        """The application."""
        if self.known_app is None:
            raise NotApplicableError("No application was looked at; name one, as in: doctor myapp:app")
        return self.known_app

    @property
    def site(self) -> Site:
        """The site's address."""
        if self.known_site is None:
            raise NotApplicableError("The site's address is not known; say it, as in: --site https://shop.example")
        return self.known_site

    @property
    def uses_cookie(self) -> bool:
        """Whether the cookie channel is on."""
        return "cookie" in self.settings.token_sources

    @property
    def own_store(self) -> SessionStore | None:
        """The store that the application made itself, whatever the settings' URL names."""
        sessions = self.known_app.sessions if self.known_app else None
        return None if sessions is None or sessions.owns_store else sessions.store

    def open_store(self) -> SessionStore:
        """Return the application's own store, or one like it, not yet opened. Raises `ConfigurationError`."""
        return self.own_store or open_store(self.settings.store_url.get_secret_value())
