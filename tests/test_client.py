"""`OtplessClient`: what it sends, what it makes of the network's ways to fail, and that it leaves OTPLESS in peace."""

from __future__ import annotations

import asyncio
import base64
import gc
import gzip
import itertools
import json
import logging
import socket
import ssl
import sys
import threading
import tracemalloc
import warnings
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
import respx
from certificates import CERTIFICATE, KEY, write_certificate
from conftest import Clock
from opentelemetry import trace
from simulated import LoopTime, settle

from fastapi_otpless_session.breaker import Breakers
from fastapi_otpless_session.client import OtplessClient
from fastapi_otpless_session.emulator import Emulator, EmulatorSettings, Fault, serve
from fastapi_otpless_session.emulator.faults import FaultKind
from fastapi_otpless_session.errors import (
    ConfigurationError,
    CredentialsRefusedError,
    NoVerdictError,
    SignInRefusedError,
    UpstreamError,
)
from fastapi_otpless_session.session import SessionDetails
from fastapi_otpless_session.settings import OtplessSettings
from fastapi_otpless_session.tokens import TokenError, UnknownKeyError
from fastapi_otpless_session.wire import Answer, Request, TokenPair, Verdict

SECRET = "canary-secret"
BASE = "https://otpless.example"
VALIDATE = f"{BASE}/v1/sessions/validate-session"
REFRESH = f"{BASE}/v1/sessions/get-new-session-token"
SHORT = 2.0
"""A deadline in real seconds: long enough for a busy machine to have sent a request before it."""
THREADS = 3
only_httpx = pytest.mark.parametrize("http_client", ["httpx"])


def settings_for(url: str = BASE, **values: Any) -> OtplessSettings:
    defaults: dict[str, Any] = {
        "client_id": "demo-client",
        "client_secret": SECRET,
        "base_url": url,
        "jwks_url": f"{url}/.well-known/jwks",
        "store_url": "memory://",
    }
    return OtplessSettings(**{**defaults, **values})


@dataclass
class Backend:
    """An emulator on a real socket, and how to reach it."""

    emulator: Emulator
    url: str
    http_client: str

    def client(self, **values: Any) -> OtplessClient:
        return OtplessClient(settings_for(self.url, http_client=self.http_client, **values))

    def sign_in(self) -> dict[str, str]:
        info: dict[str, str] = self.emulator.sign_in()["sessionInfo"]
        return info


@pytest.fixture
def backend(http_client: str) -> Iterator[Backend]:
    emulator = Emulator(EmulatorSettings(client_secret=SECRET))
    with serve(emulator) as url:
        yield Backend(emulator, url, http_client)


@pytest.fixture
async def client(backend: Backend) -> AsyncIterator[OtplessClient]:
    async with backend.client() as opened:
        yield opened


@pytest.fixture
def clock() -> Clock:
    return Clock(1000.0)


@pytest.fixture
async def mocked(clock: Clock) -> AsyncIterator[OtplessClient]:
    async with OtplessClient(settings_for(), monotonic=clock) as opened:
        yield opened


@dataclass
class Gatekeeper:
    """An `HttpSender` that holds every request until it is told to answer."""

    def __post_init__(self) -> None:
        self.waiting = 0
        self.most = 0
        self.answered = 0
        self.open_gate = asyncio.Event()

    async def send(self, request: Request, *, deadline: float) -> Answer:
        assert request.method == "POST"
        assert deadline > 0
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        await self.open_gate.wait()
        self.waiting -= 1
        self.answered += 1
        return Answer(200, {}, b'{"success": true}')

    async def open(self) -> None:
        """Nothing to make."""

    async def close(self) -> None:
        """Nothing to close."""


# The five calls


async def test_the_five_calls_work_against_the_contract(backend: Backend, client: OtplessClient) -> None:
    user = backend.emulator.sign_in()
    info = user["sessionInfo"]
    proof = await client.validate_sign_in(user["token"])
    assert proof.user_id == user["userId"]
    assert await client.validate_session(info["sessionToken"]) is Verdict.VALID
    details = await client.session_details(info["sessionToken"])
    assert isinstance(details, SessionDetails)
    assert (details.session_id, details.user_id) == (info["sessionId"], user["userId"])
    pair = await client.new_session_token(info["refreshToken"])
    assert isinstance(pair, TokenPair)
    assert pair.session_id == info["sessionId"]
    claims = await client.verify(pair.session_token)
    assert (claims.session_id, claims.user_id) == (info["sessionId"], user["userId"])
    assert await client.revoke_session(pair.session_token) is Verdict.VALID
    assert await client.validate_session(pair.session_token) is Verdict.DENIED
    assert await client.new_session_token(pair.refresh_token) is Verdict.INACTIVE


async def test_unknown_sessions_and_used_one_time_tokens_are_refused(backend: Backend, client: OtplessClient) -> None:
    foreign = backend.emulator.foreign_sign_in()["sessionInfo"]
    assert await client.new_session_token(foreign["refreshToken"]) is Verdict.UNKNOWN
    token = backend.emulator.sign_in()["token"]
    await client.validate_sign_in(token)
    with pytest.raises(SignInRefusedError):
        await client.validate_sign_in(token)


async def test_wrong_credentials_are_our_own_fault_and_logged_as_such(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    token = backend.sign_in()["sessionToken"]
    async with backend.client(client_secret="another-secret") as client:
        with pytest.raises(CredentialsRefusedError, match="OTPLESS_CLIENT_SECRET"):
            await client.validate_session(token)
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "OTPLESS_CLIENT_SECRET" in record.getMessage()
    assert "another-secret" not in caplog.text


class Babbler:
    """A server that says certain bytes to each request, and hangs up unless it `keeps` its connections."""

    def __init__(self, said: bytes, *, keeps: bool = False) -> None:
        self._said = said
        self._keeps = keeps
        self._connections: list[asyncio.Task[Any] | None] = []
        self.heard: list[tuple[bytes, dict[str, str], bytes]] = []
        """The requests: the first line, the headers by their names in lower case, the body."""

    @property
    def connections(self) -> int:
        """How many connections were made."""
        return len(self._connections)

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        """Serve, and give the URL; its clients have to be closed before it ends."""
        async with await asyncio.start_server(self._answer, "127.0.0.1", 0, limit=1 << 20) as server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            await asyncio.gather(*filter(None, self._connections), return_exceptions=True)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.append(asyncio.current_task())
        while head := await _head(reader):
            line, *lines = head.strip().split(b"\r\n")
            headers = dict(header.decode().lower().split(": ", 1) for header in lines)
            self.heard.append((line, headers, await reader.readexactly(int(headers.get("content-length", 0)))))
            writer.write(self._said)
            if not self._keeps:
                break
        writer.close()
        await writer.wait_closed()


async def _head(reader: asyncio.StreamReader) -> bytes:
    """Return the next request's head; nothing where there is none."""
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""


OK = b"HTTP/1.1 200 OK\r\n"
BODY = b'\r\n\r\n{"success": true}'


async def test_a_call_is_one_post_with_credentials_json_and_no_compression(http_client: str) -> None:
    babbler = Babbler(OK + BODY)
    async with babbler.serve() as url, OtplessClient(settings_for(url, http_client=http_client)) as client:
        assert await client.validate_session("a.b.c") is Verdict.VALID
    [(line, headers, body)] = babbler.heard
    assert line == b"POST /v1/sessions/validate-session HTTP/1.1"
    assert headers["host"] == url.removeprefix("http://")
    assert headers["clientid"] == "demo-client"
    assert headers["clientsecret"] == SECRET
    assert headers["content-type"] == "application/json"
    assert headers["accept-encoding"] == "identity"
    assert json.loads(body) == {"sessionToken": "a.b.c"}


async def test_the_key_set_is_asked_for_without_credentials(http_client: str) -> None:
    babbler = Babbler(OK + BODY)
    async with babbler.serve() as url, OtplessClient(settings_for(url, http_client=http_client)) as client:
        with pytest.raises(UpstreamError):
            await client.verify(Emulator().sign_in()["sessionInfo"]["sessionToken"])
    [(line, headers, body)] = babbler.heard
    assert (line, body) == (b"GET /.well-known/jwks HTTP/1.1", b"")
    assert headers["accept-encoding"] == "identity"
    assert not {"clientid", "clientsecret", "cookie", "authorization"} & set(headers)


async def test_a_cookie_of_one_answer_is_not_carried_into_the_next_call(http_client: str) -> None:
    babbler = Babbler(OK + b"set-cookie: session=of-somebody-else; Path=/" + BODY)
    async with babbler.serve() as url, OtplessClient(settings_for(url, http_client=http_client)) as client:
        await client.validate_session("a.b.c")
        await client.validate_session("a.b.d")
    assert ["cookie" in headers for _, headers, _ in babbler.heard] == [False, False]


@respx.mock
async def test_an_http_client_that_was_given_carries_no_cookie_into_the_next_call_either() -> None:
    headers = {"set-cookie": "session=of-somebody-else; Path=/; Secure"}
    route = respx.post(VALIDATE).respond(json={"success": True}, headers=headers)
    async with httpx.AsyncClient() as http:
        client = OtplessClient(settings_for(), http=http)
        await client.validate_session("a.b.c")
        await client.validate_session("a.b.d")
    assert http.cookies
    assert "cookie" not in route.calls.last.request.headers


BABBLE = {
    "nothing": b"",
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
    "an absurd status": b"HTTP/1.1 999999 OK\r\n\r\n",
    "a negative status": b"HTTP/1.1 -1 OK\r\n\r\n",
    "a status only": b"HTTP/1.1 200",
    "no end of headers": OK + b"a: " + b"b" * 200_000,
    "a million headers": OK + b"a: b\r\n" * 20_000,
    "NUL in a header": OK + b"a: \x00" + BODY,
    "a header without a colon": OK + b"what" + BODY,
    "a negative length": OK + b"content-length: -1" + BODY,
    "a length that is no number": OK + b"content-length: ten" + BODY,
    "two lengths": OK + b"content-length: 17\r\ncontent-length: 18" + BODY,
    "a length beyond all": OK + b"content-length: " + b"9" * 500 + BODY,
    "chunks that are none": OK + b"transfer-encoding: chunked\r\n\r\nxyz",
    "a chunk beyond all": OK + b"transfer-encoding: chunked\r\n\r\nffffffffffffffffffff\r\n",
    "an unknown transfer encoding": OK + b"transfer-encoding: gzip" + BODY,
    "only news of more to come": b"HTTP/1.1 100 Continue\r\n\r\n" * 3,
    "another protocol": b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\n",
    "a redirect to no URL": b"HTTP/1.1 307 X\r\nlocation: http://[::1\r\ncontent-length: 0\r\n\r\n",
    "a redirect to no port": b"HTTP/1.1 307 X\r\nlocation: http://a:b/\r\ncontent-length: 0\r\n\r\n",
    "a redirect to no text": b"HTTP/1.1 307 X\r\nlocation: \xff\xfe\x80\r\ncontent-length: 0\r\n\r\n",
    "a redirect to no host": b"HTTP/1.1 307 X\r\nlocation: http://xn--\xff.\xc3\xa9\r\ncontent-length: 0\r\n\r\n",
    "a redirect into a file": b"HTTP/1.1 302 X\r\nlocation: file:///etc/passwd\r\ncontent-length: 0\r\n\r\n",
    "an encoding that is no text": OK + b"content-encoding: \xff\xfe" + BODY,
}


@pytest.mark.varied
@pytest.mark.parametrize("said", BABBLE.values(), ids=BABBLE)
async def test_whatever_a_server_says_instead_of_http_is_no_verdict(said: bytes, http_client: str) -> None:
    babbler = Babbler(said)
    async with babbler.serve() as url, OtplessClient(settings_for(url, http_client=http_client)) as client:
        with pytest.raises(UpstreamError) as caught:
            await client.validate_session("a.b.c")
        assert caught.value.unsent is False
    assert len(babbler.heard) == 1


def answering(body: bytes, *headers: tuple[str, str]) -> Fault:
    """What makes the emulator answer every call with this."""
    return Fault("status", status=200, body=body, headers=headers)


@pytest.mark.parametrize(
    ("encoding", "compress"), [("gzip", gzip.compress), ("GZIP", gzip.compress), ("deflate", zlib.compress)]
)
async def test_an_answer_that_is_compressed_all_the_same_is_read(
    backend: Backend, client: OtplessClient, encoding: str, compress: Callable[[bytes], bytes]
) -> None:
    backend.emulator.add_fault(answering(compress(b'{"success": true}'), ("content-encoding", encoding)))
    assert await client.validate_session("a.b.c") is Verdict.VALID


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (b"no gzip at all", "gzip"),
        (gzip.compress(b'{"success": true}', mtime=0)[:-9], "gzip"),
        (b"", "gzip"),
        (b'{"success": true}', "br"),
        (gzip.compress(gzip.compress(b'{"success": true}', mtime=0), mtime=0), "gzip, gzip"),
    ],
)
async def test_an_answer_that_does_not_decode_is_no_verdict(
    backend: Backend, client: OtplessClient, body: bytes, encoding: str
) -> None:
    backend.emulator.add_fault(answering(body, ("content-encoding", encoding)))
    with pytest.raises(UpstreamError):
        await client.validate_session("a.b.c")


async def test_an_encoding_that_is_given_twice_is_two_encodings(backend: Backend, client: OtplessClient) -> None:
    twice = gzip.compress(gzip.compress(b'{"success": true}'))
    backend.emulator.add_fault(answering(twice, ("content-encoding", "gzip"), ("content-encoding", "gzip")))
    with pytest.raises(UpstreamError, match="not asked for"):
        await client.validate_session("a.b.c")


@pytest.mark.parametrize(("size", "fits"), [(65_536, True), (65_537, False)])
async def test_an_answer_may_have_64_kib(backend: Backend, client: OtplessClient, size: int, fits: bool) -> None:
    body = b'{"success": true' + b" " * (size - 17) + b"}"
    for fault in (answering(body), answering(gzip.compress(body), ("content-encoding", "gzip"))):
        backend.emulator.clear_faults()
        backend.emulator.add_fault(fault)
        if fits:
            assert await client.validate_session("a.b.c") is Verdict.VALID
        else:
            with pytest.raises(UpstreamError, match="64 KiB"):
                await client.validate_session("a.b.c")


@respx.mock
@pytest.mark.parametrize(
    ("error", "unsent"),
    [
        (httpx.ConnectError, True),
        (httpx.ConnectTimeout, True),
        (httpx.PoolTimeout, True),
        (httpx.ReadError, False),
        (httpx.ReadTimeout, False),
        (httpx.WriteError, False),
        (httpx.WriteTimeout, False),
        (httpx.CloseError, False),
        (httpx.RemoteProtocolError, False),
        (httpx.LocalProtocolError, False),
        (httpx.ProxyError, False),
        (httpx.UnsupportedProtocol, False),
        (httpx.DecodingError, False),
        (httpx.TooManyRedirects, False),
        (httpx.InvalidURL, False),
        (httpx.StreamClosed, False),
        (ConnectionResetError, False),
    ],
)
async def test_every_error_of_the_http_library_is_no_verdict_and_says_if_the_request_was_sent(
    mocked: OtplessClient, error: type[Exception], unsent: bool
) -> None:
    raised = error() if error is httpx.StreamClosed else error(SECRET)
    respx.post(VALIDATE).mock(side_effect=raised)
    with pytest.raises(UpstreamError) as caught:
        await mocked.validate_session("a.b.c")
    assert caught.value.unsent is unsent
    assert SECRET not in str(caught.value)


# What a network does


@pytest.mark.varied
@pytest.mark.parametrize(
    "kind",
    [
        *("truncated", "reset", "garbage", "html", "redirect", "gzip_bomb", "huge", "deep", "wrong_types"),
        *("duplicate_keys", "status"),
    ],
)
async def test_a_fault_of_any_kind_is_no_verdict_on_any_call(
    backend: Backend, client: OtplessClient, kind: FaultKind
) -> None:
    user = backend.emulator.sign_in()
    info = user["sessionInfo"]
    backend.emulator.add_fault(Fault(kind))
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: client.validate_session(info["sessionToken"]),
        lambda: client.new_session_token(info["refreshToken"]),
        lambda: client.session_details(info["sessionToken"]),
        lambda: client.revoke_session(info["sessionToken"]),
        lambda: client.verify(info["sessionToken"]),
    ]
    for call in calls:
        with pytest.raises(UpstreamError) as caught:
            await call()
        assert SECRET not in str(caught.value)
    assert len(backend.emulator.calls) == len(calls)  # none was made twice


async def test_the_deadline_is_total_so_that_a_server_that_drips_cannot_beat_it(backend: Backend) -> None:
    """No byte is long in coming, and the whole answer would be there after ten seconds."""
    info = backend.sign_in()
    backend.emulator.add_fault(Fault("drip", "validate-session", interval=SHORT / 4))
    async with backend.client(request_timeout=SHORT) as client:
        with pytest.raises(UpstreamError, match=r"did not answer within [012]") as caught:
            await client.validate_session(info["sessionToken"])
        assert caught.value.unsent is False


async def test_a_refresh_has_a_deadline_of_its_own(backend: Backend) -> None:
    info = backend.sign_in()
    backend.emulator.add_fault(Fault("hang"))
    async with backend.client(request_timeout=20, refresh_timeout=60) as client:
        time = LoopTime()
        calls = [client.validate_session(info["sessionToken"]), client.new_session_token(info["refreshToken"])]
        validation, refresh = [asyncio.create_task(call) for call in calls]
        while len(backend.emulator.calls) < len(calls):  # noqa: ASYNC110 - the emulator has its own thread
            await asyncio.sleep(0.01)
        await time.advance(20)
        with pytest.raises(UpstreamError, match=r"did not answer within [12]\d"):
            await validation
        assert not refresh.done()
        await time.advance(40)
        with pytest.raises(UpstreamError, match=r"did not answer within [56]\d"):
            await refresh


async def test_a_redirect_is_not_followed_and_our_secret_stays_here(backend: Backend) -> None:
    info = backend.sign_in()
    elsewhere = Emulator(EmulatorSettings(client_secret=SECRET))
    with serve(elsewhere) as url:
        backend.emulator.add_fault(Fault("redirect", location=f"{url}/v1/sessions/validate-session"))
        async with backend.client() as client:
            with pytest.raises(UpstreamError, match="307"):
                await client.validate_session(info["sessionToken"])
    assert elsewhere.calls == []


@pytest.mark.parametrize("kind", ["act_then_reset", "reset", "truncated"])
async def test_nothing_is_sent_twice_after_a_lost_answer(
    backend: Backend, client: OtplessClient, kind: FaultKind
) -> None:
    info = backend.sign_in()
    await client.validate_session(info["sessionToken"])  # over a connection that is kept
    backend.emulator.add_fault(Fault(kind, times=1))
    with pytest.raises(UpstreamError) as caught:
        await client.new_session_token(info["refreshToken"])
    assert caught.value.unsent is False
    assert backend.emulator.count("get-new-session-token") == 1


async def test_where_no_connection_can_be_made_the_request_was_certainly_not_sent(http_client: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with OtplessClient(settings_for(url, http_client=http_client)) as client:
        with pytest.raises(UpstreamError, match=f"was not reached at {url.removeprefix('http://')}: ") as caught:
            await client.validate_session("a.b.c")
    assert caught.value.unsent is True


async def test_where_the_certificate_is_not_to_be_trusted_nothing_is_sent(http_client: str, tmp_path: Path) -> None:
    write_certificate(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(tmp_path / CERTIFICATE, tmp_path / KEY)
    heard = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read())
        writer.close()

    async with await asyncio.start_server(listen, "127.0.0.1", 0, ssl=tls) as server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with OtplessClient(settings_for(url, http_client=http_client)) as client:
            with pytest.raises(UpstreamError, match="was not reached") as caught:
                await client.validate_session("a.b.c")
    assert caught.value.unsent is True
    assert heard == []


async def test_the_environments_proxies_are_ignored(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    info = backend.sign_in()
    async with backend.client() as client:
        assert await client.validate_session(info["sessionToken"]) is Verdict.VALID


async def test_no_secret_and_no_token_reach_the_log_or_an_error(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    user = backend.emulator.sign_in()
    info = user["sessionInfo"]
    errors = []
    for kind in ("status", "garbage", "reset", None):
        backend.emulator.clear_faults()
        if kind:
            backend.emulator.add_fault(Fault(kind))
        async with backend.client() as client:
            for call in (
                client.validate_session(info["sessionToken"]),
                client.new_session_token(info["refreshToken"]),
                client.session_details(info["sessionToken"]),
                client.validate_sign_in(user["token"]),
                client.verify(info["sessionToken"]),
            ):
                try:
                    await call
                except UpstreamError as error:
                    errors.append(f"{error} {error!r}")
    assert errors
    assert caplog.records
    seen = caplog.text + "".join(map(repr, (record.args for record in caplog.records))) + "".join(errors)
    for secret in (SECRET, info["sessionToken"], info["refreshToken"], user["token"]):
        assert secret not in seen


async def test_a_caller_that_goes_away_in_an_answer_leaves_nothing_of_it_to_the_next(
    backend: Backend, client: OtplessClient
) -> None:
    backend.emulator.add_fault(Fault("drip", times=1, interval=0.04))
    for number in range(2):
        if number:
            backend.emulator.add_fault(Fault("hang", times=1))
        asked, left = backend.emulator.count("validate-session"), asyncio.create_task(client.validate_session("a.b.c"))
        while backend.emulator.count("validate-session") == asked:  # noqa: ASYNC110 - the emulator has its own thread
            await asyncio.sleep(0.01)
        left.cancel()
        await asyncio.wait([left])
        assert left.cancelled()
        assert await client.validate_session(backend.sign_in()["sessionToken"]) is Verdict.VALID


async def test_connections_are_kept_and_there_are_never_more_than_calls_are_allowed(http_client: str) -> None:
    babbler = Babbler(OK + b"content-length: 17" + BODY, keeps=True)
    async with babbler.serve() as url:
        settings = settings_for(url, http_client=http_client, max_upstream=4)
        async with OtplessClient(settings) as client:
            for _ in range(5):
                await client.validate_session("a.b.c")
            assert babbler.connections == 1
            await asyncio.gather(*(client.validate_session("a.b.c") for _ in range(40)))
            assert babbler.connections == 4


# The breaker


@respx.mock
async def test_five_failures_in_a_row_open_the_breaker_which_then_probes_each_second(
    mocked: OtplessClient, clock: Clock
) -> None:
    route = respx.post(VALIDATE).respond(503)
    for made in range(1, 6):
        with pytest.raises(UpstreamError, match="503"):
            await mocked.validate_session("a.b.c")
        assert route.call_count == made
    for probes in range(3):
        for _ in range(3):
            with pytest.raises(UpstreamError, match="has been failing") as caught:
                await mocked.validate_session("a.b.c")
            assert caught.value.unsent is True
        assert route.call_count == 5 + probes
        clock.advance(1)
        with pytest.raises(UpstreamError, match="503"):
            await mocked.validate_session("a.b.c")
    clock.advance(1)
    route.respond(json={"success": True})
    assert await mocked.validate_session("a.b.c") is Verdict.VALID
    assert await mocked.validate_session("a.b.c") is Verdict.VALID  # recovered: no more waiting


@respx.mock
async def test_an_open_breaker_lets_one_probe_through_at_a_time(mocked: OtplessClient, clock: Clock) -> None:
    route = respx.post(VALIDATE).respond(503)
    for _ in range(5):
        with pytest.raises(UpstreamError):
            await mocked.validate_session("a.b.c")
    clock.advance(1)
    answers = await asyncio.gather(*(mocked.validate_session("a.b.c") for _ in range(20)), return_exceptions=True)
    assert all(isinstance(answer, UpstreamError) for answer in answers)
    assert route.call_count == 6


@respx.mock
async def test_half_of_twenty_calls_failing_within_ten_seconds_opens_the_breaker(
    mocked: OtplessClient, clock: Clock
) -> None:
    route = respx.post(VALIDATE)
    for number in range(20):
        clock.advance(0.1)
        if number % 2:
            route.respond(503)
            with pytest.raises(UpstreamError, match="503"):
                await mocked.validate_session("a.b.c")
        else:
            route.respond(json={"success": True})
            await mocked.validate_session("a.b.c")
    with pytest.raises(UpstreamError, match="has been failing"):
        await mocked.validate_session("a.b.c")


@respx.mock
async def test_failures_that_are_spread_out_do_not_open_the_breaker(mocked: OtplessClient, clock: Clock) -> None:
    route = respx.post(VALIDATE)
    for number in range(60):
        clock.advance(1)
        route.respond(503 if number % 2 else 200, json={"success": True})
        if number % 2:
            with pytest.raises(UpstreamError, match="503"):
                await mocked.validate_session("a.b.c")
        else:
            await mocked.validate_session("a.b.c")
    assert route.call_count == 60


async def test_what_is_known_of_otpless_takes_no_more_memory_for_thousands_of_calls_a_second(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)  # where there is one, it is a test's, and keeps all spans
    client = OtplessClient(settings_for(), http=Answering(), monotonic=clock)
    kept = []
    for calls in (100, 5_000):
        tracemalloc.start()
        try:
            for _ in range(calls):
                clock.advance(1e-4)
                assert await client.validate_session("a.b.c") is Verdict.VALID
            gc.collect()
            kept.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
    assert kept[1] < kept[0] + 5_000  # a byte a call


async def test_callers_that_give_up_on_a_call_without_an_answer_open_the_breaker_and_hasty_ones_do_not(
    clock: Clock,
) -> None:
    puppet = Puppet()
    client = OtplessClient(settings_for(request_timeout=3), http=puppet, monotonic=clock)
    for waited, calls in ((1.4, 30), (1.6, 5)):
        for _ in range(calls):
            call = asyncio.create_task(client.validate_session("a.b.c"))
            await settle()
            clock.advance(waited)
            call.cancel()
            await asyncio.wait([call])
    call = asyncio.create_task(client.validate_session("a.b.c"))
    await settle()
    assert len(puppet.calls) == 35
    with pytest.raises(UpstreamError, match="has been failing"):
        await call


class Hanging:
    """An `HttpSender` whose calls are never answered."""

    async def send(self, request: Request, *, deadline: float) -> Answer:
        await asyncio.Event().wait()
        raise AssertionError(request, deadline)

    async def open(self) -> None:
        """Nothing to make."""

    async def close(self) -> None:
        """Nothing to close."""


class Answering:
    """An `HttpSender` whose calls all are answered at once, that the session is valid."""

    async def send(self, request: Request, *, deadline: float) -> Answer:
        assert (request.method, deadline > 0) == ("POST", True)
        return GOOD

    async def open(self) -> None:
        """Nothing to make."""

    async def close(self) -> None:
        """Nothing to close."""


@dataclass
class Puppet:
    """An `HttpSender` whose calls are kept until a test says how each of them ends."""

    def __post_init__(self) -> None:
        self.calls: list[asyncio.Future[Answer]] = []

    async def send(self, request: Request, *, deadline: float) -> Answer:
        assert (request.method, deadline > 0) == ("POST", True)
        self.calls.append(asyncio.get_running_loop().create_future())
        return await self.calls[-1]

    async def open(self) -> None:
        """Nothing to make."""

    async def close(self) -> None:
        """Nothing to close."""


GOOD = Answer(200, {}, b'{"success": true}')
BAD = Answer(503, {}, b"")


async def test_whoever_waits_for_keys_when_the_client_is_closed_gets_no_verdict() -> None:
    client = OtplessClient(settings_for(), http=Hanging())
    header = base64.urlsafe_b64encode(b'{"alg": "RS256", "kid": "k"}').decode().rstrip("=")
    waiting = [asyncio.create_task(client.verify(f"{header}.e30.AAAA")) for _ in range(2)]
    await settle()
    await client.close()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [NoVerdictError] * 2


async def test_calls_that_hung_in_an_outage_do_not_open_the_breaker_again_after_it(clock: Clock) -> None:
    puppet = Puppet()
    client = OtplessClient(settings_for(), http=puppet, monotonic=clock)
    in_the_outage = [asyncio.create_task(client.validate_session("a.b.c")) for _ in range(30)]
    await settle()
    for call in puppet.calls[:5]:
        call.set_result(BAD)
    await settle()
    clock.advance(1)
    probe = asyncio.create_task(client.validate_session("a.b.c"))
    await settle()
    clock.advance(0.1)
    puppet.calls[30].set_result(GOOD)
    assert await probe is Verdict.VALID
    for call in puppet.calls[5:30]:
        call.set_result(BAD)
    failed = await asyncio.gather(*in_the_outage, return_exceptions=True)
    assert {type(outcome) for outcome in failed} == {UpstreamError}
    after = asyncio.create_task(client.validate_session("a.b.c"))
    await settle()
    puppet.calls[31].set_result(GOOD)
    assert await after is Verdict.VALID


def test_a_breaker_may_be_told_of_calls_by_several_threads_at_once() -> None:
    numbers = itertools.count()
    breakers = Breakers(lambda: float(next(numbers)))  # a second passes each time that anybody looks

    def hammer(_: int) -> None:
        for number in range(50_000):
            if breakers.of(known=True).admit():
                began_at = float(next(numbers))
                if number % 2:
                    breakers.succeeded(began_at)
                else:
                    breakers.failed(began_at, known=True)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(THREADS) as threads:
            assert [*threads.map(hammer, range(THREADS))] == [None] * THREADS
    finally:
        sys.setswitchinterval(before)


async def test_calls_that_wait_for_a_place_when_the_breaker_opens_are_not_made(clock: Clock) -> None:
    puppet = Puppet()
    client = OtplessClient(settings_for(max_upstream=5), http=puppet, monotonic=clock)
    calls = [asyncio.create_task(client.validate_session("a.b.c")) for _ in range(20)]
    await settle()
    for call in puppet.calls:
        call.set_result(BAD)
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {UpstreamError}
    assert len(puppet.calls) == 5


async def test_an_open_breaker_refuses_before_the_wait_for_a_place(clock: Clock) -> None:
    puppet = Puppet()
    client = OtplessClient(
        settings_for(max_upstream=1, request_timeout=60, refresh_timeout=60), http=puppet, monotonic=clock
    )
    for number in range(5):
        failing = asyncio.create_task(client.validate_session("a.b.c"))
        await settle()
        puppet.calls[number].set_result(BAD)
        with pytest.raises(UpstreamError):
            await failing
    clock.advance(1)
    probe = asyncio.create_task(client.validate_session("a.b.c"))
    await settle()
    assert len(puppet.calls) == 6  # it has the only place
    with pytest.raises(UpstreamError, match="has been failing"):
        await client.validate_session("a.b.c")
    puppet.calls[5].set_result(GOOD)
    assert await probe is Verdict.VALID


@respx.mock
@pytest.mark.parametrize(("asked", "kept"), [("3", 3.0), ("600", 10.0)])
async def test_retry_after_is_honoured_up_to_ten_seconds(
    mocked: OtplessClient, clock: Clock, asked: str, kept: float
) -> None:
    route = respx.post(VALIDATE).respond(429, headers={"retry-after": asked})
    with pytest.raises(UpstreamError) as caught:
        await mocked.validate_session("a.b.c")
    assert caught.value.retry_after == float(asked)
    route.respond(json={"success": True})
    clock.advance(kept - 0.1)
    with pytest.raises(UpstreamError, match="has been failing"):
        await mocked.validate_session("a.b.c")
    clock.advance(0.2)
    assert await mocked.validate_session("a.b.c") is Verdict.VALID


@respx.mock
@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, {"errorCode": "7414"}),
        (401, {"errorCode": "7415"}),
        (401, {}),
        (400, {}),
        (403, {}),
        (404, {}),
        (422, {}),
        (200, {"success": False}),
    ],
)
async def test_an_otpless_that_answers_does_not_open_the_breaker_whatever_it_says(
    mocked: OtplessClient, status: int, body: dict[str, Any]
) -> None:
    route = respx.post(VALIDATE).respond(status, json=body)
    for _ in range(30):
        try:
            assert await mocked.validate_session("a.b.c") is not Verdict.VALID
        except UpstreamError as error:
            assert error.healthy  # noqa: PT017 - a verdict and an error are both right here
    assert route.call_count == 30


@respx.mock
async def test_refused_sign_ins_do_not_open_the_breaker(mocked: OtplessClient) -> None:
    route = respx.post(f"{BASE}/auth/v1/validate/token").respond(401, json={"errorCode": "7301"})
    for _ in range(10):
        with pytest.raises(SignInRefusedError):
            await mocked.validate_sign_in("one-time")
    assert route.call_count == 10


@respx.mock
async def test_what_strangers_bring_never_holds_known_sessions_calls_back(mocked: OtplessClient, clock: Clock) -> None:
    odd = respx.post(f"{BASE}/auth/v1/validate/token").respond(500)
    validations = respx.post(VALIDATE).respond(503)
    for number in range(20):
        clock.advance(0.1)
        with pytest.raises(UpstreamError):
            await mocked.validate_sign_in("odd")
        if number == 10:
            with pytest.raises(UpstreamError, match="503"):  # by an OTPLESS that has failed strangers only
                await mocked.validate_session("a.b.c")
    assert odd.call_count < 20
    validations.respond(json={"success": True})
    assert await mocked.validate_session("a.b.c") is Verdict.VALID
    with pytest.raises(UpstreamError, match="500"):  # OTPLESS was seen to be well
        await mocked.validate_sign_in("odd")


@respx.mock
@pytest.mark.parametrize(
    "body",
    [
        b'{"userId": "MO-1"}',
        b'{"sessionId": "s-1", "userId": "MO-1", "x": "%s"}' % (b"x" * 65_536),
        b'{"sessionId": "s-1", "userId": "MO-1", "x": 1, "x": 2}',
        b'{"sessionId": "s-1", "userId": "MO-1", "x": 1e999}',
        b'{"sessionId": "s-1", "userId": "MO-1", "x": %s}' % (b"[" * 3_000 + b"]" * 3_000),
        b'{"sessionId": "s-1", "userId": "MO-1", "x": "\xff"}',
        b"[]",
    ],
)
async def test_details_of_one_user_that_cannot_be_used_do_not_open_the_breaker(
    mocked: OtplessClient, body: bytes
) -> None:
    route = respx.post(f"{BASE}/v1/sessions/get-session-details").respond(content=body)
    for _ in range(10):
        with pytest.raises(UpstreamError, match=r"makes no sense|64 KiB"):
            await mocked.session_details("a.b.c")
    assert route.call_count == 10


@pytest.mark.parametrize("page", [{"body": b"x" * 70_000}, {"headers": (("content-encoding", "br"),)}])
async def test_the_page_of_an_outage_may_be_of_any_size_and_encoding(
    backend: Backend, client: OtplessClient, page: dict[str, Any]
) -> None:
    headers = (("retry-after", "10"), *page.pop("headers", ()))
    backend.emulator.add_fault(Fault("status", status=503, headers=headers, **page))
    with pytest.raises(UpstreamError, match="503"):
        await client.validate_session("a.b.c")
    with pytest.raises(UpstreamError, match="has been failing"):
        await client.validate_session("a.b.c")
    assert len(backend.emulator.calls) == 1


async def test_a_large_page_in_place_of_every_answer_opens_the_breaker(backend: Backend, client: OtplessClient) -> None:
    backend.emulator.add_fault(answering(b"x" * 70_000))
    for _ in range(8):
        with pytest.raises(UpstreamError, match=r"64 KiB|has been failing"):
            await client.validate_session("a.b.c")
    assert len(backend.emulator.calls) == 5


async def test_a_probe_that_fails_late_makes_no_other_probes_answer_old(clock: Clock) -> None:
    puppet = Puppet()
    client = OtplessClient(settings_for(), http=puppet, monotonic=clock)
    calls = [asyncio.create_task(client.validate_session("a.b.c")) for _ in range(5)]
    await settle()
    for call in puppet.calls:
        call.set_result(BAD)
    await settle()
    for _ in range(2):
        clock.advance(1)
        calls.append(asyncio.create_task(client.validate_session("a.b.c")))
        await settle()
    clock.advance(0.1)
    puppet.calls[5].set_result(BAD)  # the first probe, which hung
    await settle()
    puppet.calls[6].set_result(GOOD)
    assert isinstance((await asyncio.gather(*calls, return_exceptions=True))[-1], Verdict)
    after = asyncio.create_task(client.validate_session("a.b.c"))
    await settle()
    puppet.calls[7].set_result(GOOD)
    assert await after is Verdict.VALID


async def test_what_was_under_way_when_otpless_asked_to_wait_does_not_end_the_wait(clock: Clock) -> None:
    puppet = Puppet()
    client = OtplessClient(settings_for(), http=puppet, monotonic=clock)
    under_way = [asyncio.create_task(client.validate_session("a.b.c", known=known)) for known in (True, True, False)]
    await settle()
    clock.advance(0.1)
    puppet.calls[0].set_result(Answer(429, {"retry-after": "5"}, b""))
    await settle()
    for call in puppet.calls[1:]:
        call.set_result(GOOD)
    assert [type(outcome) for outcome in await asyncio.gather(*under_way, return_exceptions=True)] == [
        UpstreamError,
        Verdict,
        Verdict,
    ]
    for known in (True, False):
        with pytest.raises(UpstreamError, match="has been failing"):
            await asyncio.wait_for(client.validate_session("a.b.c", known=known), 60)
    clock.advance(5)
    probe = asyncio.create_task(client.validate_session("a.b.c"))
    await settle()
    puppet.calls[3].set_result(GOOD)
    assert await probe is Verdict.VALID


@respx.mock
async def test_a_strangers_sign_out_never_holds_known_sessions_calls_back(mocked: OtplessClient) -> None:
    respx.post(f"{BASE}/v1/sessions/revoke-session").respond(500)
    respx.post(VALIDATE).respond(json={"success": True})
    for _ in range(5):
        with pytest.raises(UpstreamError, match="500"):
            await mocked.revoke_session("a.b.c", known=False)
    assert await mocked.validate_session("a.b.c") is Verdict.VALID


@respx.mock
async def test_what_fails_for_known_sessions_is_not_tried_by_strangers(mocked: OtplessClient) -> None:
    respx.post(VALIDATE).respond(503)
    for _ in range(5):
        with pytest.raises(UpstreamError, match="503"):
            await mocked.validate_session("a.b.c")
    with pytest.raises(UpstreamError, match="has been failing"):
        await mocked.validate_sign_in("one-time")


@respx.mock
async def test_whoever_otpless_asks_to_wait_all_do(mocked: OtplessClient) -> None:
    respx.post(f"{BASE}/auth/v1/validate/token").respond(429, headers={"Retry-After": "5"})
    with pytest.raises(UpstreamError, match="429"):
        await mocked.validate_sign_in("one-time")
    with pytest.raises(UpstreamError, match="has been failing"):
        await mocked.validate_session("a.b.c")


# Concurrency


async def test_no_more_calls_than_allowed_are_made_at_once_and_strangers_get_half() -> None:
    gatekeeper = Gatekeeper()
    client = OtplessClient(settings_for(max_upstream=4, request_timeout=60, refresh_timeout=60), http=gatekeeper)
    strangers = [asyncio.create_task(client.validate_session("a.b.c", known=False)) for _ in range(10)]
    await settle()
    assert gatekeeper.waiting == 2
    known = [asyncio.create_task(client.validate_session("a.b.d")) for _ in range(10)]
    await settle()
    assert gatekeeper.waiting == 4
    gatekeeper.open_gate.set()
    assert await asyncio.gather(*strangers, *known) == [Verdict.VALID] * 20
    assert gatekeeper.most == 4


async def test_a_place_that_was_waited_for_is_one_of_those_that_are_allowed() -> None:
    gatekeeper = Gatekeeper()
    client = OtplessClient(settings_for(max_upstream=1, request_timeout=60, refresh_timeout=60), http=gatekeeper)
    calls = [asyncio.create_task(client.validate_session("a.b.c")) for _ in range(2)]
    await settle()
    gatekeeper.open_gate.set()
    gatekeeper.open_gate.clear()  # it has let one through
    await settle()
    calls.append(asyncio.create_task(client.validate_session("a.b.d")))  # the second has come into its place
    await settle()
    assert (gatekeeper.answered, gatekeeper.waiting) == (1, 1)
    gatekeeper.open_gate.set()
    await asyncio.gather(*calls)
    assert gatekeeper.most == 1


async def test_who_finds_no_place_in_time_gets_no_verdict_and_keeps_none() -> None:
    gatekeeper, time = Gatekeeper(), LoopTime()
    client = OtplessClient(settings_for(max_upstream=1, request_timeout=60, refresh_timeout=120), http=gatekeeper)
    first = asyncio.create_task(client.new_session_token("a.b.c"))
    await settle()
    second = asyncio.create_task(client.validate_session("a.b.c"))
    await settle()
    assert not second.done()
    await time.advance(60)
    with pytest.raises(UpstreamError, match="too many calls") as caught:
        await second
    assert caught.value.unsent is True
    gatekeeper.open_gate.set()
    with pytest.raises(UpstreamError):  # the gatekeeper knows no pairs
        await first
    assert await client.validate_session("a.b.c") is Verdict.VALID


async def test_a_refresh_is_not_sent_when_its_deadline_is_almost_over() -> None:
    """Its answer would come too late, and where refresh tokens work once that costs the session."""
    gatekeeper, time = Gatekeeper(), LoopTime()
    client = OtplessClient(settings_for(max_upstream=1), http=gatekeeper)
    first = asyncio.create_task(client.validate_session("a.b.c"))
    await settle()
    refresh = asyncio.create_task(client.new_session_token("a.b.c"))
    await settle()
    await time.advance(7.5)
    assert not refresh.done()
    await time.advance(1)
    assert refresh.done()
    with pytest.raises(UpstreamError, match="too many calls") as caught:
        await refresh
    assert caught.value.unsent is True
    gatekeeper.open_gate.set()
    assert await first is Verdict.VALID
    assert gatekeeper.most == 1


async def test_a_caller_that_goes_away_gives_its_place_back() -> None:
    gatekeeper = Gatekeeper()
    client = OtplessClient(settings_for(max_upstream=1), http=gatekeeper)
    first = asyncio.create_task(client.validate_session("a.b.c"))
    await settle()
    first.cancel()
    await asyncio.wait([first])
    gatekeeper.open_gate.set()
    assert await client.validate_session("a.b.c") is Verdict.VALID


# The key set


@dataclass
class Keyring:
    """A client of an emulator in the same process; its clock is the test's."""

    emulator: Emulator
    client: OtplessClient
    clock: Clock

    def token(self, kid: str | None = None) -> str:
        claims = {"sub": "s-1", "sessionId": "s-1", "iss": "https://otpless.com", "userId": "MO-1", "exp": 2e9}
        return self.emulator.issue(claims, kid=kid)

    @property
    def fetches(self) -> int:
        return self.emulator.count("/.well-known/jwks")


@pytest.fixture
async def keyring(clock: Clock) -> AsyncIterator[Keyring]:
    emulator = Emulator(clock=clock)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(emulator.app)) as http:
        client = OtplessClient(settings_for("http://otpless.localhost"), http=http, monotonic=clock)
        yield Keyring(emulator, client, clock)
        await client.close()


async def test_the_key_set_is_fetched_once_and_then_hourly(keyring: Keyring) -> None:
    for _ in range(5):
        assert (await keyring.client.verify(keyring.token())).session_id == "s-1"
        keyring.clock.advance(600)
    assert keyring.fetches == 1
    keyring.clock.advance(600)
    await keyring.client.verify(keyring.token())
    assert keyring.fetches == 2


async def test_many_unknown_keys_at_once_cost_one_fetch(keyring: Keyring) -> None:
    tokens = [keyring.token(kid=f"made-up-{number}") for number in range(30)]
    outcomes = await asyncio.gather(*(keyring.client.verify(token) for token in tokens), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {UnknownKeyError}
    assert keyring.fetches == 1


async def test_who_comes_during_a_fetch_waits_for_it_too(keyring: Keyring) -> None:
    first = asyncio.create_task(keyring.client.verify(keyring.token()))
    while not keyring.fetches:  # noqa: ASYNC110 - the fetch is under way as soon as it was seen
        await asyncio.sleep(0)
    assert (await keyring.client.verify(keyring.token())).session_id == "s-1"
    await first
    assert keyring.fetches == 1


async def test_unknown_keys_cost_a_fetch_every_ten_seconds_at_most(keyring: Keyring) -> None:
    await keyring.client.verify(keyring.token())
    for _ in range(10):
        with pytest.raises(UnknownKeyError):
            await keyring.client.verify(keyring.token(kid="made-up"))
        keyring.clock.advance(0.9)
    assert keyring.fetches == 1
    keyring.clock.advance(1.1)
    with pytest.raises(UnknownKeyError):
        await keyring.client.verify(keyring.token(kid="made-up"))
    assert keyring.fetches == 2


async def test_a_new_key_is_picked_up_and_one_that_was_retired_goes(keyring: Keyring) -> None:
    old = keyring.token()
    await keyring.client.verify(old)
    keyring.emulator.rotate_key()
    keyring.clock.advance(10)
    await keyring.client.verify(keyring.token())
    await keyring.client.verify(old)
    assert keyring.fetches == 2
    keyring.emulator.retire_keys()
    keyring.clock.advance(3600)
    await keyring.client.verify(keyring.token())
    with pytest.raises(UnknownKeyError):
        await keyring.client.verify(old)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status"),
        Fault("garbage"),
        Fault("status", status=200, body=b'{"keys": []}'),
        Fault("status", status=404),
    ],
    ids=lambda fault: f"{fault.kind} {fault.status} {fault.body}",
)
async def test_an_outage_leaves_known_keys_working_and_unknown_ones_without_a_verdict(
    keyring: Keyring, fault: Fault
) -> None:
    await keyring.client.verify(keyring.token())
    keyring.emulator.add_fault(fault)
    keyring.clock.advance(7200)
    assert (await keyring.client.verify(keyring.token())).session_id == "s-1"
    for _ in range(2):
        with pytest.raises(UpstreamError):
            await keyring.client.verify(keyring.token(kid="made-up"))
    keyring.emulator.clear_faults()
    keyring.clock.advance(10)
    with pytest.raises(UnknownKeyError):
        await keyring.client.verify(keyring.token(kid="made-up"))


async def test_without_any_keys_nothing_can_be_checked_until_they_can_be_had(keyring: Keyring) -> None:
    keyring.emulator.add_fault(Fault("status"))
    for _ in range(5):
        with pytest.raises(UpstreamError):
            await keyring.client.verify(keyring.token())
    assert keyring.fetches == 1
    keyring.emulator.clear_faults()
    keyring.clock.advance(10)
    assert (await keyring.client.verify(keyring.token())).session_id == "s-1"


async def test_the_issuer_is_the_settings(clock: Clock) -> None:
    emulator = Emulator(EmulatorSettings(issuer="https://elsewhere.example"), clock=clock)
    token = emulator.sign_in()["sessionInfo"]["sessionToken"]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(emulator.app)) as http:
        url = "http://otpless.localhost"
        with pytest.raises(TokenError):
            await OtplessClient(settings_for(url), http=http).verify(token)
        other = OtplessClient(settings_for(url, issuer="https://elsewhere.example"), http=http)
        assert (await other.verify(token)).issuer == "https://elsewhere.example"


async def test_a_token_of_another_algorithm_costs_no_fetch(keyring: Keyring) -> None:
    with pytest.raises(TokenError):
        await keyring.client.verify("eyJhbGciOiJub25lIn0.e30.eA")
    assert keyring.fetches == 0


# Whose connections these are


@only_httpx
async def test_an_http_client_that_was_given_is_not_closed(backend: Backend) -> None:
    info = backend.sign_in()
    async with httpx.AsyncClient() as http:
        async with OtplessClient(settings_for(backend.url), http=http) as client:
            await client.validate_session(info["sessionToken"])
        assert not http.is_closed


@pytest.mark.parametrize("wrong", [SECRET, 7, httpx.AsyncClient])
def test_what_cannot_send_requests_is_told_at_once_with_what_to_give(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"http: .* httpx\.AsyncClient") as caught:
        OtplessClient(settings_for(), http=wrong)
    assert SECRET not in str(caught.value)


async def test_another_kind_of_http_client_is_told_at_once() -> None:
    with httpx.Client() as http, pytest.raises(ConfigurationError, match=r"not httpx\.Client"):
        OtplessClient(settings_for(), http=http)  # type: ignore[arg-type]
    async with httpx2.AsyncClient() as http:
        with pytest.raises(ConfigurationError, match=r"not httpx2\.AsyncClient"):
            OtplessClient(settings_for(), http=http)  # type: ignore[arg-type]


def given(answer: httpx.Response) -> OtplessClient:
    """A client on an `httpx.AsyncClient` that answers everything so, with a body that is there already."""
    http = httpx.AsyncClient(transport=httpx.MockTransport(lambda _: answer))
    return OtplessClient(settings_for(), http=http)


async def test_an_answer_that_is_there_in_full_is_read() -> None:
    assert await given(httpx.Response(200, json={"success": True})).validate_session("a.b.c") is Verdict.VALID
    over = httpx.Response(401, json={"errorCode": "7415"})
    assert await given(over).validate_session("a.b.c") is Verdict.INACTIVE
    zipped = gzip.compress(b'{"success": true}')
    decoded = httpx.Response(200, headers={"content-encoding": "gzip"}, content=zipped)
    assert await given(decoded).validate_session("a.b.c") is Verdict.VALID


@pytest.mark.parametrize(("size", "fits"), [(65_536, True), (65_537, False)])
async def test_an_answer_that_is_there_in_full_may_have_64_kib_too(size: int, fits: bool) -> None:
    client = given(httpx.Response(200, content=b'{"success": true' + b" " * (size - 17) + b"}"))
    if fits:
        assert await client.validate_session("a.b.c") is Verdict.VALID
    else:
        with pytest.raises(UpstreamError, match="64 KiB"):
            await client.validate_session("a.b.c")


@only_httpx
async def test_an_event_hook_may_read_the_answer_and_one_that_keeps_nothing_of_it_loses_it(backend: Backend) -> None:
    async def read(response: httpx.Response) -> None:
        await response.aread()

    async def lose(response: httpx.Response) -> None:
        async for _ in response.aiter_raw():
            pass

    async def close(response: httpx.Response) -> None:
        await response.aclose()

    token = backend.sign_in()["sessionToken"]
    async with httpx.AsyncClient(event_hooks={"response": [read]}) as http:
        assert await OtplessClient(settings_for(backend.url), http=http).validate_session(token) is Verdict.VALID
    for hook in (lose, close):
        async with httpx.AsyncClient(event_hooks={"response": [hook]}) as http:
            with pytest.raises(UpstreamError, match="was lost"):
                await OtplessClient(settings_for(backend.url), http=http).validate_session(token)


@only_httpx
async def test_an_http_client_that_was_given_and_closed_is_no_verdict(backend: Backend) -> None:
    http = httpx.AsyncClient()
    await http.aclose()
    with pytest.raises(UpstreamError) as caught:
        await OtplessClient(settings_for(backend.url), http=http).validate_session("a.b.c")
    assert caught.value.unsent is True


@respx.mock
async def test_a_cookie_that_is_no_text_is_no_verdict_where_a_given_http_client_would_carry_it_on() -> None:
    odd = [(b"location", b"/elsewhere"), (b"set-cookie", b"\xff=1; Path=/")]
    respx.post(VALIDATE).mock(return_value=httpx.Response(302, headers=odd))
    async with httpx.AsyncClient() as http:
        with pytest.raises(UpstreamError) as caught:
            await OtplessClient(settings_for(), http=http).validate_session("a.b.c")
    assert caught.value.unsent is False


@only_httpx
async def test_a_given_http_client_does_not_follow_redirects_here_even_if_it_would(backend: Backend) -> None:
    info = backend.sign_in()
    backend.emulator.add_fault(Fault("redirect", location=f"{backend.url}/elsewhere"))
    async with httpx.AsyncClient(follow_redirects=True) as http:
        with pytest.raises(UpstreamError, match="307"):
            await OtplessClient(settings_for(backend.url), http=http).validate_session(info["sessionToken"])
    assert backend.emulator.count("elsewhere") == 0


async def test_a_closed_client_opens_again_when_it_is_used(backend: Backend) -> None:
    info = backend.sign_in()
    client = backend.client()
    for _ in range(2):
        assert await client.validate_session(info["sessionToken"]) is Verdict.VALID
        await client.close()


def test_one_client_serves_event_loops_one_after_another_and_leaves_nothing_open(backend: Backend) -> None:
    token = backend.sign_in()["sessionToken"]
    client = backend.client()

    async def ask() -> Verdict:
        await client.verify(token)
        return await client.validate_session(token)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", r"the \(type, exc, tb\) signature of throw", DeprecationWarning)  # mypyc's
        assert [asyncio.run(ask()) for _ in range(THREADS)] == [Verdict.VALID] * THREADS
        gc.collect()


def test_one_client_serves_event_loops_in_several_threads(backend: Backend) -> None:
    token = backend.sign_in()["sessionToken"]
    client = backend.client()
    verdicts = []

    async def ask() -> None:
        verdicts.extend(await asyncio.gather(*(client.validate_session(token) for _ in range(5))))

    threads = [threading.Thread(target=asyncio.run, args=(ask(),)) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == [Verdict.VALID] * 5 * THREADS


class Leaving:
    """A sender that answers just after somebody who waits for a place has given up."""

    def __init__(self) -> None:
        self.leaves: asyncio.Task[Verdict] | None = None
        self.may_answer = asyncio.Event()

    async def send(self, request: Request, *, deadline: float) -> Answer:  # noqa: ARG002 - as fast as it may
        await self.may_answer.wait()
        if self.leaves is not None:
            self.leaves.cancel()
        return Answer(200, {}, b'{"success": true}')

    async def open(self) -> None:
        """Nothing to make."""

    async def close(self) -> None:
        """Nothing to close."""


async def test_whoever_gives_up_in_the_moment_that_a_place_gets_free_takes_it_from_nobody() -> None:
    http = Leaving()
    client = OtplessClient(settings_for(max_upstream=1), http=http)
    first, leaves, last = [asyncio.create_task(client.validate_session("a.b.c")) for _ in range(3)]
    await settle()
    http.leaves = leaves
    http.may_answer.set()
    assert await first is Verdict.VALID
    assert await last is Verdict.VALID
    assert leaves.cancelled()
    assert await client.validate_session("a.b.c") is Verdict.VALID
