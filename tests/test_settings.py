"""Settings: where they are read, what is refused, and that no secret is ever shown."""

from __future__ import annotations

import base64
import json
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError
from pydantic_settings import SettingsConfigDict

from fastapi_otpless_session import OtplessSettings
from fastapi_otpless_session.errors import ConfigurationError
from fastapi_otpless_session.tokens import new_key

CANARY = "canary-secret"
KEY = base64.urlsafe_b64encode(b"k" * 32).decode().rstrip("=")
REQUIRED = {"OTPLESS_CLIENT_ID": "client", "OTPLESS_CLIENT_SECRET": CANARY}
DEFAULTS: dict[str, Any] = {
    "base_url": "https://user-auth.otpless.app",
    "jwks_url": "https://otpless.com/.well-known/jwks",
    "issuer": "https://otpless.com",
    "store_url": SecretStr("sqlite:///otpless_sessions.db"),
    "encryption_keys": (SecretStr("derived"),),
    "token_sources": ("authorization", "header", "cookie"),
    "header_name": "X-Session-Token",
    "cookie_name": "otpless_session",
    "cookie_secure": True,
    "cookie_samesite": "lax",
    "cookie_domain": None,
    "cookie_path": "/",
    "trusted_origins": (),
    "accept_unknown_tokens": True,
    "validation_ttl": 30,
    "stale_if_error": 300,
    "store_ttl": 0,
    "refresh_ahead": 0.05,
    "rotation_grace": 30,
    "on_reuse": "revoke",
    "idle_timeout": None,
    "absolute_timeout": None,
    "request_timeout": 3,
    "refresh_timeout": 10,
    "max_upstream": 100,
    "http_client": "httpx",
    "required_paths": (),
    "exempt_paths": (),
    "websocket_recheck": 30,
    "require_sign_in_token": True,
}
WRITTEN: list[tuple[str, str, Any]] = [
    ("BASE_URL", "https://otpless.example/api/", "https://otpless.example/api"),
    ("BASE_URL", "http://127.0.0.1:8701", "http://127.0.0.1:8701"),
    ("BASE_URL", "http://[::1]:8701", "http://[::1]:8701"),
    ("BASE_URL", "http://localhost", "http://localhost"),
    ("BASE_URL", "http://otpless.localhost", "http://otpless.localhost"),
    ("BASE_URL", "https://[2001:db8::1]:8701/api", "https://[2001:db8::1]:8701/api"),
    ("BASE_URL", "https://otpless.example.", "https://otpless.example."),
    ("BASE_URL", "https://xn--bcher-kva.example", "https://xn--bcher-kva.example"),
    ("BASE_URL", "https://bücher.example", "https://bücher.example"),
    ("BASE_URL", f"https://{'a' * 63}.user_auth.example", f"https://{'a' * 63}.user_auth.example"),
    ("JWKS_URL", "https://otpless.example/jwks", "https://otpless.example/jwks"),
    ("ISSUER", "https://otpless.example", "https://otpless.example"),
    ("STORE_URL", "memory://", SecretStr("memory://")),
    ("STORE_URL", "postgresql://u:p@host/db", SecretStr("postgresql://u:p@host/db")),
    ("STORE_URL", "postgres://u:p@host/db", SecretStr("postgres://u:p@host/db")),
    ("ENCRYPTION_KEYS", KEY, (SecretStr(KEY),)),
    ("ENCRYPTION_KEYS", f"{KEY}, derived", (SecretStr(KEY), SecretStr("derived"))),
    ("ENCRYPTION_KEYS", json.dumps([KEY, "derived"]), (SecretStr(KEY), SecretStr("derived"))),
    ("TOKEN_SOURCES", "cookie,header", ("cookie", "header")),
    ("HEADER_NAME", "X-Other", "X-Other"),
    ("COOKIE_NAME", "sid", "sid"),
    ("COOKIE_SECURE", "false", False),
    ("COOKIE_SAMESITE", "none", "none"),
    ("TOKEN_SOURCES", "Cookie, HEADER", ("cookie", "header")),
    ("COOKIE_DOMAIN", "example.com", "example.com"),
    ("COOKIE_DOMAIN", ".shop.example.com", ".shop.example.com"),
    ("COOKIE_DOMAIN", "localhost", "localhost"),
    ("COOKIE_DOMAIN", "none", None),
    ("COOKIE_PATH", "/app", "/app"),
    ("TRUSTED_ORIGINS", "https://a.example, https://B.example:8443/", ("https://a.example", "https://b.example:8443")),
    ("TRUSTED_ORIGINS", '["https://a.example"]', ("https://a.example",)),
    ("TRUSTED_ORIGINS", "[]", ()),
    ("TRUSTED_ORIGINS", "https://xn--bcher-kva.example", ("https://xn--bcher-kva.example",)),
    ("TRUSTED_ORIGINS", "HTTPS://a.example:443,http://b.example:80", ("https://a.example", "http://b.example")),
    ("ACCEPT_UNKNOWN_TOKENS", "0", False),
    ("VALIDATION_TTL", "0", 0.0),
    ("VALIDATION_TTL", "1.5", 1.5),
    ("STALE_IF_ERROR", "0", 0.0),
    ("STORE_TTL", "2", 2.0),
    ("REFRESH_AHEAD", "0.5", 0.5),
    ("ROTATION_GRACE", "0", 0.0),
    ("ON_REUSE", "reject", "reject"),
    ("IDLE_TIMEOUT", "1800", 1800.0),
    ("IDLE_TIMEOUT", "none", None),
    ("ABSOLUTE_TIMEOUT", "None", None),
    ("ABSOLUTE_TIMEOUT", "86400", 86400.0),
    ("REQUEST_TIMEOUT", "0.5", 0.5),
    ("REFRESH_TIMEOUT", "20", 20.0),
    ("MAX_UPSTREAM", "1", 1),
    ("HTTP_CLIENT", "aiohttp", "aiohttp"),
    ("HTTP_CLIENT", "HTTPX", "httpx"),
    ("REQUIRED_PATHS", "/api/**,/me", ("/api/**", "/me")),
    ("REQUIRED_PATHS", "/100%/{3F2504E0-4F89}/café/{/**", ("/100%/{3F2504E0-4F89}/café/{/**",)),
    ("EXEMPT_PATHS", '["/api/health"]', ("/api/health",)),
    ("WEBSOCKET_RECHECK", "5", 5.0),
    ("REQUIRE_SIGN_IN_TOKEN", "no", False),
]
WRONG: list[tuple[str, str, str]] = [
    ("CLIENT_ID", "line\nbreak", "header"),
    ("CLIENT_ID", "ä", "header"),
    ("CLIENT_SECRET", f"{CANARY}\n", "dashboard"),
    ("CLIENT_SECRET", f" {CANARY}", "dashboard"),
    ("CLIENT_SECRET", f"{CANARY}ä", "dashboard"),
    *(
        (name, url, "https://")
        for name in ("BASE_URL", "JWKS_URL")
        for url in (
            *("http://otpless.example", "ftp://otpless.example", "otpless.example", "https://", "http://10.0.0.1"),
            *(f"https://user:{CANARY}@otpless.example", f"https://otpless.example?key={CANARY}", "https://a:b"),
            *("http://localhost.example", "http://127.0.0.1.example", "https://[", "https://a.example#b", "/"),
        )
    ),
    *(
        (name, url, "no space")
        for name in ("BASE_URL", "JWKS_URL")
        for url in (
            *("https://a.example ", " https://a.example", "https://a.example\n", "https://a.example\r", " ", "\n"),
            *("https://a .example", "https://a.exam\nple", "https://a\t.example", "https://a.example/a b"),
            *("https://a\x07.example", "https://\u200b.example", "https://\xa0a.example", "https://a\\b.example"),
            *("https://a.example?", "https://a.example/#", "https://a.example/?#", f"https://a.example/ ?{CANARY}"),
        )
    ),
    *(
        (name, f"https://{host}", "the host's name")
        for name in ("BASE_URL", "JWKS_URL")
        for host in (".", "a..example", ".example", "a.example..", f"{'a' * 64}.example", f"a.{'a' * 64}", "*.example")
    ),
    ("BASE_URL", f"https://{'ü' * 60}.example", "the host's name"),
    ("BASE_URL", "https://a,b.example", "the host's name"),
    ("BASE_URL", "https://a%20b.example", "the host's name"),
    ("STORE_URL", f"mysql://user:{CANARY}@host/db", "sqlite://"),
    ("STORE_URL", f"redis:{CANARY}@host", "sqlite://"),
    ("STORE_URL", CANARY, "sqlite://"),
    ("ENCRYPTION_KEYS", CANARY, "keygen"),
    ("ENCRYPTION_KEYS", f"{KEY},{CANARY}", "key 2"),
    ("ENCRYPTION_KEYS", f"{KEY}A{CANARY}", "32 bytes"),
    ("ENCRYPTION_KEYS", "[]", "at least one key"),
    ("ENCRYPTION_KEYS", f'["{CANARY}', "JSON"),
    ("TOKEN_SOURCES", "query", "cookie"),
    ("TOKEN_SOURCES", "[]", "at least one"),
    ("TOKEN_SOURCES", "[7]", "cookie"),
    *(("HEADER_NAME", name, "X-Session-Token") for name in ("Authorization", "cookie", "Set-Cookie", "Host")),
    *(("HEADER_NAME", name, "X-Session-Token") for name in ("Content-Length", "vary", "Sec-WebSocket-Protocol")),
    ("HEADER_NAME", "X Session", "letters"),
    ("HEADER_NAME", "x" * 129, "128"),
    ("COOKIE_NAME", "a;b", "letters"),
    ("COOKIE_NAME", "__Host-sid", "without __Host-"),
    ("COOKIE_NAME", "__secure-sid", "without __Host-"),
    ("COOKIE_SECURE", "perhaps", "true nor false"),
    ("COOKIE_SAMESITE", "loose", "strict"),
    ("COOKIE_PATH", "/app; Path=/", "cookie attribute"),
    *(
        ("COOKIE_DOMAIN", text, "such as example.com")
        for text in (
            *("https://example.com", "example.com:8443", "example.com/app", "a.example,b.example", "*.example.com"),
            *("example.com; Path=/", "example..com", "."),
        )
    ),
    ("TRUSTED_ORIGINS", "https://*.example.com", "https://host"),
    ("COOKIE_PATH", "app", "start with /"),
    ("COOKIE_PATH", "/a;b", "cookie attribute"),
    ("TRUSTED_ORIGINS", "example.com", "https://host"),
    ("TRUSTED_ORIGINS", "https://example.com/path", "https://host"),
    ("TRUSTED_ORIGINS", "null", "https://host"),
    ("TRUSTED_ORIGINS", "htps://example.com", "https://host"),
    ("TRUSTED_ORIGINS", "hxxps://example.com", "https://host"),
    ("TRUSTED_ORIGINS", "capacitor://local host", "https://host"),
    ("TRUSTED_ORIGINS", "wss://example.com", "https://host"),
    ("TRUSTED_ORIGINS", "capacitor://", "https://host"),
    ("TRUSTED_ORIGINS", "https://a.example,https://bücher.example", "'https://bücher.example': write the host as"),
    ("TRUSTED_ORIGINS", f"https://{CANARY}@bücher.example", "https://host"),
    ("TRUSTED_ORIGINS", "*", "https://host"),
    *(
        ("TRUSTED_ORIGINS", text, "https://host")
        for text in (f"https://user:{CANARY}@example.com", "https://example.com:port", "https://[", "https://a#b")
    ),
    ("ACCEPT_UNKNOWN_TOKENS", "perhaps", "true nor false"),
    *((name, "-1", "greater than or equal") for name in ("VALIDATION_TTL", "STALE_IF_ERROR", "STORE_TTL")),
    *((name, "soon", "not a number") for name in ("VALIDATION_TTL", "ROTATION_GRACE", "IDLE_TIMEOUT")),
    *((name, "nan", "finite") for name in ("VALIDATION_TTL", "REFRESH_AHEAD", "ABSOLUTE_TIMEOUT", "REQUEST_TIMEOUT")),
    *((name, "inf", "finite") for name in ("STALE_IF_ERROR", "IDLE_TIMEOUT", "REFRESH_TIMEOUT")),
    *((name, "0", "greater than 0") for name in ("IDLE_TIMEOUT", "ABSOLUTE_TIMEOUT", "REQUEST_TIMEOUT")),
    ("WEBSOCKET_RECHECK", "0", "greater than 0"),
    ("VALIDATION_TTL", "none", "not a number"),
    ("REFRESH_AHEAD", "0.6", "0.5"),
    ("ON_REUSE", "ignore", "reject"),
    ("MAX_UPSTREAM", "0", "1"),
    ("HTTP_CLIENT", "requests", "'httpx' or 'aiohttp'"),
    ("MAX_UPSTREAM", "1.5", "whole number"),
    ("REFRESH_TIMEOUT", "1", "REQUEST_TIMEOUT"),
    *((name, "api", "start with /") for name in ("REQUIRED_PATHS", "EXEMPT_PATHS")),
    ("REQUIRED_PATHS", "/**/api", "at the end"),
    *((name, "/users/{id}/edit", "write * for a path parameter") for name in ("REQUIRED_PATHS", "EXEMPT_PATHS")),
    ("REQUIRED_PATHS", "/a,/files/{name:path}", "write * for a path parameter"),
    *((name, "/caf%C3%A9/**", "write the characters themselves") for name in ("REQUIRED_PATHS", "EXEMPT_PATHS")),
    ("REQUIRED_PATHS", "/a%2fb", "write the characters themselves"),
    *((name, "/orders?page=*", "no query") for name in ("REQUIRED_PATHS", "EXEMPT_PATHS")),
    ("REQUIRED_PATHS", "/item-?", "* is the only wildcard"),
    ("REQUIRED_PATHS", "/#/account", "no query and no fragment"),
    ("REQUIRE_SIGN_IN_TOKEN", "perhaps", "true nor false"),
]


@pytest.fixture(autouse=True)
def _required(_clean_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in REQUIRED.items():
        monkeypatch.setenv(name, value)


def refused(**values: Any) -> str:
    """Make settings that must be refused; return everything that anybody would see of it."""
    with pytest.raises(ConfigurationError) as caught:
        OtplessSettings(**values)
    error = caught.value
    assert error.__cause__ is None
    return str(error) + repr(error) + "".join(traceback.format_exception(error, limit=0))


# Where they are read


@pytest.mark.parametrize("name", DEFAULTS)
def test_every_setting_has_its_default(name: str) -> None:
    assert getattr(OtplessSettings(), name) == DEFAULTS[name]


def test_there_are_no_other_settings() -> None:
    assert set(OtplessSettings.model_fields) == {"client_id", "client_secret", *DEFAULTS}


@pytest.mark.parametrize(("name", "text", "value"), WRITTEN)
def test_a_setting_is_read_from_the_environment(
    name: str, text: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"OTPLESS_{name}", text)
    assert getattr(OtplessSettings(), name.lower()) == value


@pytest.mark.parametrize(("name", "text", "value"), WRITTEN)
def test_a_setting_is_read_from_a_dotenv_file(name: str, text: str, value: object, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"OTPLESS_{name}='{text}'\n", encoding="utf-8")
    assert getattr(OtplessSettings(), name.lower()) == value


def test_the_environment_goes_before_the_file_and_code_before_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("OTPLESS_MAX_UPSTREAM=1\nOTPLESS_STORE_TTL=1\nOTPLESS_STALE_IF_ERROR=1\n")
    monkeypatch.setenv("OTPLESS_STORE_TTL", "2")
    monkeypatch.setenv("OTPLESS_STALE_IF_ERROR", "2")
    settings = OtplessSettings(stale_if_error=3)
    assert (settings.max_upstream, settings.store_ttl, settings.stale_if_error) == (1, 2, 3)


@pytest.mark.parametrize("name", [name for name in DEFAULTS if name != "jwks_url"])
def test_an_empty_value_is_the_default(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"OTPLESS_{name.upper()}", "")
    assert getattr(OtplessSettings(), name) == DEFAULTS[name]


def test_an_empty_jwks_url_turns_local_checks_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTPLESS_JWKS_URL", "")
    assert OtplessSettings().jwks_url == ""


def test_other_variables_are_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTPLESS_UNKNOWN", "1")
    (tmp_path / ".env").write_text("DATABASE_URL=postgresql://host/db\nOTPLESS_OTHER=1\n")
    assert OtplessSettings().client_id == "client"


# Misspelled names


def warnings_of(log: pytest.LogCaptureFixture) -> list[str]:
    """Return what the package's logger warned of."""
    assert {record.name for record in log.records} <= {"fastapi_otpless_session"}
    return [record.getMessage() for record in log.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("OTPLESS_ACCEPT_UNKNOWN_TOKEN", "OTPLESS_ACCEPT_UNKNOWN_TOKENS"),
        ("OTPLESS_VALIDATON_TTL", "OTPLESS_VALIDATION_TTL"),
        ("otpless_cookie_samsite", "OTPLESS_COOKIE_SAMESITE"),
        ("OPTLESS_ISSUER", "OTPLESS_ISSUER"),
    ],
)
@pytest.mark.parametrize("place", ["environment", "file", "both"])
def test_a_misspelled_variable_is_one_warning_that_names_it_and_the_setting_that_is_meant(
    name: str, meant: str, place: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if place != "file":
        monkeypatch.setenv(name, CANARY)
    if place != "environment":
        Path(".env").write_text(f"{name}={CANARY}\n")
    OtplessSettings()
    (warning,) = warnings_of(caplog)
    assert warning == f"No setting is called {name.upper()}, and what it says is not heeded: is {meant} meant?"


def test_each_misspelled_variable_is_told_though_the_settings_are_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("OTPLESS_CLIENT_ID")
    monkeypatch.setenv("OTPLES_CLIENT_ID", "client")
    monkeypatch.setenv("OTPLESS_STORE", "memory://")
    assert "OTPLESS_CLIENT_ID: is required" in refused()
    assert [warning.split()[4].strip(",") for warning in warnings_of(caplog)] == ["OTPLESS_STORE", "OTPLES_CLIENT_ID"]


def test_what_is_not_read_is_not_looked_at(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / ".env").write_text("OTPLESS_STORE=memory://\n")
    (tmp_path / "other").write_text("OTPLESS_REFRESH_TIMOUT=3\n")
    OtplessSettings(_env_file=None)
    assert warnings_of(caplog) == []
    OtplessSettings(_env_file=tmp_path / "other")
    (warning,) = warnings_of(caplog)
    assert "is OTPLESS_REFRESH_TIMEOUT meant?" in warning


def test_other_applications_variables_and_right_ones_are_not_mentioned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("OTPLESS_APP_ID", "OTPLESS_PAGE", "OTPLESSHOP", "COGNITO_CLIENT_SECRET", "OTP_CLIENT_ID", "STORE_URL"):
        monkeypatch.setenv(name, CANARY)
    (tmp_path / ".env").write_text("SHOP_APP_ID=1\nOTPLESS_STORE_TTL=1\nOTPLESS_REQUEST_TIMEOUT=1\n")
    assert OtplessSettings().store_ttl == 1
    assert warnings_of(caplog) == []


def test_what_a_slip_of_the_pen_makes_part_of_a_name_is_not_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / ".env").write_text("OTPLESS_ENCRYPTION_KEYS:canary\n")
    OtplessSettings()
    assert "canary" not in caplog.text.lower()


def test_settings_do_not_change_afterwards() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        OtplessSettings().client_id = "other"


@pytest.mark.parametrize(
    ("values", "cookie"),
    [
        ({}, "__Host-otpless_session"),
        ({"cookie_name": "sid"}, "__Host-sid"),
        ({"cookie_secure": False}, "otpless_session"),
        ({"cookie_path": "/app"}, "otpless_session"),
        ({"cookie_domain": "example.com"}, "otpless_session"),
    ],
)
def test_the_cookie_is_bound_to_its_host_whenever_browsers_allow_it(values: dict[str, Any], cookie: str) -> None:
    assert OtplessSettings(**values).cookie == cookie


def test_a_printed_key_is_a_setting() -> None:
    key = new_key()
    assert OtplessSettings(encryption_keys=key).encryption_keys == (SecretStr(key),)


# What is refused


@pytest.mark.parametrize("name", REQUIRED)
@pytest.mark.parametrize("text", [None, ""])
def test_the_credentials_are_required(name: str, text: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if text is None:
        monkeypatch.delenv(name)
    else:
        monkeypatch.setenv(name, text)
    shown = refused()
    assert f"{name}: is required; copy it from the OTPLESS dashboard" in shown
    assert f"There is no {Path.cwd() / '.env'}" in shown
    assert CANARY not in shown
    Path(".env").touch()
    assert f"{Path.cwd() / '.env'} was read" in refused()


@pytest.mark.parametrize(("name", "text", "hint"), WRONG)
def test_a_wrong_value_names_its_variable_and_what_to_write_and_no_secret(
    name: str, text: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"OTPLESS_{name}", text)
    shown = refused()
    assert f"OTPLESS_{name}: " in shown
    assert hint in shown
    assert CANARY not in shown


def test_a_list_that_nests_too_deep_is_refused() -> None:
    assert "OTPLESS_ENCRYPTION_KEYS: is not a JSON list" in refused(encryption_keys="[" * 100_000)


def test_all_wrong_values_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {"MAX_UPSTREAM": "none", "COOKIE_PATH": "app", "VALIDATION_TTL": "soon"}
    for name, text in wrong.items():
        monkeypatch.setenv(f"OTPLESS_{name}", text)
    shown = refused()
    assert all(f"OTPLESS_{name}: " in shown for name in wrong)


def test_a_cookie_for_other_sites_must_be_secure() -> None:
    shown = refused(cookie_samesite="none", cookie_secure=False)
    assert "OTPLESS_COOKIE_SAMESITE: none needs OTPLESS_COOKIE_SECURE=true" in shown


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(f"OTPLESS_ISSUER={CANARY}\xff".encode("latin-1"))
    shown = refused()
    assert shown.startswith(f"{tmp_path / '.env'} cannot be read; make it a file of UTF-8 text that this user may read")
    assert CANARY not in shown


def test_a_folder_in_the_files_place_is_refused_and_named(tmp_path: Path) -> None:
    (tmp_path / ".env").mkdir()
    assert refused().startswith(f"{tmp_path / '.env'} is a folder;")
    with pytest.raises(ConfigurationError, match=r"second/\.env is a folder"):
        OtplessSettings(_env_file=(tmp_path / "none", _made(tmp_path / "second" / ".env")))


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def test_a_folder_in_the_place_of_a_subclasss_own_file_is_refused_and_named(tmp_path: Path) -> None:
    class ShopSettings(OtplessSettings):
        model_config = SettingsConfigDict(env_file="shop.env")

    (tmp_path / "shop.env").mkdir()
    with pytest.raises(ConfigurationError, match=r"shop\.env is a folder"):
        ShopSettings(client_id="client", client_secret=SecretStr(CANARY))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_this_user_may_not_read_is_named(tmp_path: Path) -> None:
    (tmp_path / ".env").touch(0)
    assert refused().startswith(f"{tmp_path / '.env'} cannot be read (Permission denied);")


@pytest.mark.skipif(sys.platform != "linux", reason="no /proc")
def test_a_file_that_fails_while_it_is_read_is_named(tmp_path: Path) -> None:
    (tmp_path / ".env").symlink_to("/proc/self/mem")  # can be opened, and its first page is nobody's
    assert refused().startswith(f"{tmp_path / '.env'} cannot be read (Input/output error);")


def test_a_folder_of_secrets_is_read_last_and_what_is_wrong_with_it_is_said(tmp_path: Path) -> None:
    folder = _made(tmp_path / "secrets")
    (folder / "otpless_client_secret").write_text("of-the-file\n")
    (folder / "otpless_issuer").write_text("https://issuer.example")
    settings = OtplessSettings(_secrets_dir=folder)
    assert settings.issuer == "https://issuer.example"
    assert settings.client_secret.get_secret_value() == CANARY  # the environment goes before it
    (folder / "otpless_issuer").write_bytes(b"\xff")
    assert refused(_secrets_dir=folder).startswith("A file in _secrets_dir cannot be read; make it a file of UTF-8")
    assert "must reference a directory" in refused(_secrets_dir=folder / "otpless_issuer")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_secret_that_this_user_may_not_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "otpless_issuer").touch(0)
    with pytest.raises(ConfigurationError, match="otpless_issuer cannot be read"):
        OtplessSettings(_secrets_dir=tmp_path)


def test_no_file_is_read_where_none_is_wanted(tmp_path: Path) -> None:
    (tmp_path / ".env").mkdir()
    assert OtplessSettings(_env_file=None).client_id == "client"


# Secrets


def test_no_secret_shows_in_a_repr_or_a_dump() -> None:
    key = base64.urlsafe_b64encode(b"s" * 32).decode().rstrip("=")
    settings = OtplessSettings(store_url=f"redis://:{CANARY}@host", encryption_keys=key)
    for shown in (repr(settings), str(settings), settings.model_dump_json(), repr(settings.model_dump())):
        assert CANARY not in shown
        assert key not in shown
        assert "client" in shown


def test_a_misspelt_setting_in_code_is_told() -> None:
    with pytest.raises(ConfigurationError, match="validaton_ttl"):
        OtplessSettings(client_id="id", client_secret="secret", validaton_ttl=3)
