"""`doctor` on applications with one thing wrong, on the cookie, and on the running site."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import httpx
import httpx2
import pytest
from asgi import serving
from conftest import make_settings
from doctored import APP, Examine
from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import RedirectResponse
from fastapi.testclient import TestClient
from processes import steady_port
from starlette.middleware.base import RequestResponseEndpoint
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from fastapi_otpless_session import (
    CurrentSession,
    OtplessClient,
    OtplessSessionMiddleware,
    OtplessSessions,
    OtplessSettings,
    Session,
    create_session_router,
    current_session,
    fresh_within,
)
from fastapi_otpless_session.doctor.application import Place, view
from fastapi_otpless_session.doctor.places import meets
from fastapi_otpless_session.emulator import Emulator

CORS = """
from starlette.middleware.cors import CORSMiddleware

def add_cors(**values):
    app.add_middleware(CORSMiddleware, **{
        "allow_origins": ["https://shop.example"],
        "allow_methods": ["*"],
        "allow_headers": ["Content-Type", "X-Session-Token"],
        "expose_headers": ["X-Session-Token"],
        **values,
    })
"""
TRUST = {"OTPLESS_TRUSTED_ORIGINS": "https://shop.example"}
CLEAR = {"OTPLESS_COOKIE_SECURE": "false"}
BEARER = {"OTPLESS_TOKEN_SOURCES": "authorization,cookie"}


# The application


@pytest.mark.parametrize(
    ("check", "status", "text"),
    [
        pytest.param("middleware", "ok", "", id="as it should be"),
        pytest.param("middleware", "problem", "app.user_middleware.clear()", id="no middleware"),
        pytest.param("middleware", "problem", "app.add_middleware(OtplessSessionMiddleware)", id="twice"),
        pytest.param(
            "middleware",
            "warning",
            "outer = FastAPI(); outer.mount('/shop', app); app = outer",
            id="in a mounted one only",
        ),
        pytest.param(
            "mounted-apps", "ok", "inner = FastAPI(); app.mount('/admin', inner)", id="a mounted one without its own"
        ),
        pytest.param(
            "mounted-apps",
            "warning",
            "inner = FastAPI(); inner.add_middleware(OtplessSessionMiddleware); app.mount('/admin', inner)",
            id="a mounted one with its own",
        ),
        pytest.param("router", "ok", "", id="a router"),
        pytest.param(
            "router", "warning", "app = FastAPI(); app.add_middleware(OtplessSessionMiddleware)", id="no router"
        ),
        pytest.param(
            "router", "warning", "app.include_router(create_session_router(), prefix='/again')", id="two routers"
        ),
        pytest.param("cors-order", "skipped", "", id="no CORS"),
        pytest.param("cors-order", "ok", f"{CORS}\nadd_cors()", id="CORS outside"),
        pytest.param(
            "cors-order",
            "warning",
            f"{CORS}\nadd_cors()\napp.user_middleware.reverse()",
            id="CORS inside",
        ),
        pytest.param(
            "cors-order",
            "ok",
            "from starlette.middleware.cors import CORSMiddleware\napp = CORSMiddleware(app, allow_origins=['*'])",
            id="CORS around the application",
        ),
        pytest.param("cors-headers", "ok", f"{CORS}\nadd_cors()", id="header exposed"),
        pytest.param("cors-headers", "ok", f"{CORS}\nadd_cors(allow_headers=['*'])", id="all headers allowed"),
        pytest.param("cors-headers", "ok", f"{CORS}\nadd_cors(expose_headers=[])", id="no list that overwrites ours"),
        pytest.param(
            "cors-headers", "problem", f"{CORS}\nadd_cors(expose_headers=['X-Page'])", id="header not exposed"
        ),
        pytest.param(
            "cors-headers",
            "problem",
            "from starlette.middleware.cors import CORSMiddleware\n"
            "app = CORSMiddleware(app, allow_headers=['*'], expose_headers=['X-Page'])",
            id="header not exposed by what is wrapped around",
        ),
        pytest.param("cors-headers", "problem", f"{CORS}\nadd_cors(allow_headers=[])", id="header not allowed"),
        pytest.param(
            "cors-headers",
            "warning",
            f"{CORS}\nadd_cors(expose_headers=['X-Page'], allow_credentials=True)",
            id="header not exposed, but there are cookies",
        ),
        pytest.param("cors-methods", "skipped", "", id="no CORS, no methods"),
        pytest.param("cors-methods", "ok", f"{CORS}\nadd_cors()", id="all methods"),
        pytest.param(
            "cors-methods", "ok", f"{CORS}\nadd_cors(allow_methods=['POST', 'DELETE'])", id="the router's methods"
        ),
        pytest.param("cors-methods", "problem", f"{CORS}\nadd_cors(allow_methods=['GET'])", id="no POST"),
        pytest.param("cors-methods", "problem", f"{CORS}\nadd_cors(allow_methods=['post', 'delete'])", id="in letters"),
        pytest.param("cors-methods", "warning", f"{CORS}\nadd_cors(allow_methods=['GET', 'POST'])", id="no DELETE"),
        pytest.param(
            "cors-methods",
            "problem",
            "from starlette.middleware.cors import CORSMiddleware\napp = CORSMiddleware(app, allow_origins=['*'])",
            id="no POST, by what is wrapped around",
        ),
        pytest.param(
            "cors-methods",
            "skipped",
            f"app = FastAPI(); app.add_middleware(OtplessSessionMiddleware)\n{CORS}\nadd_cors(allow_methods=['GET'])",
            id="no router, no methods",
        ),
        pytest.param("cors-origins", "ok", f"{CORS}\nadd_cors()", id="a trusted origin"),
        pytest.param(
            "cors-origins",
            "problem",
            f"{CORS}\nadd_cors(allow_origins=['https://a.example'])",
            id="an origin not trusted",
        ),
        pytest.param(
            "cors-origins",
            "problem",
            f"{CORS}\nadd_cors(allow_origins=['https://shop.example/'])",
            id="an origin with a slash at its end",
        ),
        pytest.param(
            "cors-origins",
            "ok",
            f"{CORS}\nadd_cors(allow_origins=['https://shop.example/', 'https://shop.example'])",
            id="an origin with and without a slash",
        ),
        pytest.param(
            "cors-origins",
            "problem",
            f"{CORS}\nadd_cors(allow_origins=['*'], allow_credentials=True)",
            id="everybody with credentials",
        ),
        pytest.param(
            "middleware-order",
            "ok",
            "@app.middleware('http')\nasync def timed(request, call_next):\n    return await call_next(request)",
            id="a middleware that does not ask",
        ),
        pytest.param(
            "middleware-order",
            "problem",
            "@app.middleware('http')\nasync def greet(request, call_next):\n"
            "    await request.state.otpless.session()\n    return await call_next(request)",
            id="a middleware that asks too early",
        ),
        pytest.param(
            "middleware-order",
            "warning",
            "from starlette.middleware.trustedhost import TrustedHostMiddleware\n"
            "app.add_middleware(TrustedHostMiddleware, allowed_hosts=['shop.example'])\napp.user_middleware.reverse()",
            id="hosts looked at too late",
        ),
        pytest.param(
            "middleware-order",
            "ok",
            "from starlette.middleware.gzip import GZipMiddleware\napp.add_middleware(GZipMiddleware)",
            id="GZip outside",
        ),
        pytest.param(
            "cookie-name",
            "problem",
            "from starlette.middleware.sessions import SessionMiddleware\n"
            "app.add_middleware(SessionMiddleware, secret_key='x', session_cookie='__Host-otpless_session')",
            id="another middleware has our cookie",
        ),
        pytest.param(
            "cookie-name",
            "ok",
            "from starlette.middleware.sessions import SessionMiddleware\n"
            "app.add_middleware(SessionMiddleware, secret_key='x')",
            id="another middleware has another cookie",
        ),
    ],
)
def test_what_is_wrong_with_an_application_is_found(examine: Examine, check: str, status: str, text: str) -> None:
    found = examine(app=f"{APP}\n{text}", **TRUST)
    assert found[check] == status, found.text(check)


ASKING = """
from fastapi import APIRouter, Depends, FastAPI, Security
from fastapi_otpless_session import *

def user(session: FreshSession): ...
def visitor(session: OptionalSession): ...

app = FastAPI(dependencies=[{of_all}])
app.add_middleware(OtplessSessionMiddleware)
shop = APIRouter(dependencies=[{of_router}])
shop.include_router(create_session_router(), prefix="/auth", dependencies=[{of_inclusion}])
app.include_router(shop, prefix="/shop")
"""


@pytest.mark.parametrize(
    ("place", "asked", "status"),
    [
        ("of_all", "Depends(current_session)", "problem"),
        ("of_router", "Depends(current_session)", "problem"),
        ("of_inclusion", "Depends(current_session)", "problem"),
        ("of_all", "Security(current_session)", "problem"),
        ("of_all", "Depends(fresh_session)", "problem"),
        ("of_all", "Depends(fresh_within(60))", "problem"),
        ("of_all", "Depends(current_session_details)", "problem"),
        ("of_all", "Depends(user)", "problem"),
        ("of_all", "Depends(optional_session)", "ok"),
        ("of_inclusion", "Depends(visitor)", "ok"),
        ("of_all", "", "ok"),
    ],
)
def test_a_sign_in_that_asks_for_a_session_is_a_problem(examine: Examine, place: str, asked: str, status: str) -> None:
    found = examine(app=ASKING.format(**{"of_all": "", "of_router": "", "of_inclusion": "", place: asked}))
    assert found["router"] == status, found.text("router")
    assert "POST /shop/auth/login" in found.text("router")


SHADOWED = """
from fastapi import APIRouter, FastAPI, Request
from fastapi_otpless_session import OtplessSessionMiddleware, create_session_router
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Route

def own(request: Request): return PlainTextResponse("mine")
page = Starlette(routes=[Route("/{{path:path}}", own)])

app = FastAPI()
app.add_middleware(OtplessSessionMiddleware)
{before}
app.include_router(create_session_router(), prefix="{prefix}")
{after}
"""


@pytest.mark.parametrize(
    ("before", "says"),
    [
        ("app.mount('/', page)", "what is mounted at / gets it"),
        ("app.mount('/auth', page)", "what is mounted at /auth gets it"),
        ("app.post('/auth/login')(own)", "the route POST /auth/login gets it"),
        (
            "app.add_route('/{path:path}', own, methods=['GET', 'POST'])",
            "the route GET, HEAD, POST /{path:path} gets it",
        ),
        (
            "shop = APIRouter(prefix='/auth'); shop.post('/login')(own); app.include_router(shop)",
            "another router gets it",
        ),
    ],
    ids=["a mount", "a mount of its folder", "a route", "a route for all paths", "a router"],
)
def test_a_sign_in_that_another_route_gets_first_is_a_problem(examine: Examine, before: str, says: str) -> None:
    found = examine(app=SHADOWED.format(before=before, prefix="/auth", after=""))
    assert found["router"] == "problem", found.text("router")
    assert says in found.text("router")
    assert "POST /auth/login" in found.text("router")
    assert "before it" in found.text("router")


@pytest.mark.parametrize("prefix", ["/auth", "/{shop}/auth", "/{number:int}/{shop}"])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "app.mount('/', page); app.post('/auth/login')(own)"),
        ("app.host('shop.example', page)", ""),
        ("app.mount('/auth', Starlette(routes=[Host('shop.example', page)]))", ""),
        ("app.get('/auth/login')(own); app.mount('/admin', page); app.add_route('/{path:path}', own)", ""),
    ],
    ids=["what comes later", "a host", "a mounted host", "what is for others"],
)
def test_a_sign_in_that_comes_first_is_fine(examine: Examine, before: str, after: str, prefix: str) -> None:
    found = examine(app=SHADOWED.format(before=before, prefix=prefix, after=after))
    assert found["router"] == "ok", found.text("router")


def test_a_sign_in_in_what_is_mounted_may_be_shadowed_there(examine: Examine) -> None:
    mounted = "outer = FastAPI(); outer.mount('/shop', app); app = outer"
    inside = SHADOWED.format(before="app.mount('/', page)", prefix="/auth", after=mounted)
    assert "what is mounted at /shop/ gets" in examine(app=inside).text("router")
    assert examine(app=SHADOWED.format(before="", prefix="/auth", after=mounted))["router"] == "ok"


@pytest.mark.parametrize("hook", ["on_sign_in", "on_refresh", "on_sign_out", "on_reuse"])
def test_a_hook_that_the_middleware_was_given_is_told_where_it_belongs(examine: Examine, hook: str) -> None:
    found = examine(app=APP.replace("Middleware)", f"Middleware, {hook}=print)"))
    assert found["middleware-stack"] == "problem"
    assert f"TypeError: OtplessSessionMiddleware.__init__() got an unexpected keyword argument '{hook}'" in found.text(
        "middleware-stack"
    )
    assert f"sessions=OtplessSessions({hook}=…))" in found.text("middleware-stack")


@pytest.mark.parametrize("added", ["added", "in a mounted one"])
def test_settings_without_their_keyword_are_told_that_they_need_it(examine: Examine, added: str) -> None:
    text = (
        "inner = FastAPI(); inner.add_middleware(OtplessSessionMiddleware, OtplessSettings()); app.mount('/a', inner)"
    )
    if added == "added":
        text = "app.add_middleware(OtplessSessionMiddleware, OtplessSettings())"
    found = examine(app=f"{APP}\nfrom fastapi_otpless_session import OtplessSettings\n{text}")
    assert found["middleware-stack"] == "problem"
    assert "takes 2 positional arguments but 3 were given" in found.text("middleware-stack")
    assert "settings= and sessions= are keywords" in found.text("middleware-stack")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("app.add_middleware(OtplessSessionMiddleware, setings=None)", "unexpected keyword argument 'setings'"),
        (
            "inner = FastAPI(); inner.add_middleware(OtplessSessionMiddleware, on_reuse=print); app.mount('/a', inner)",
            "The middleware of the application mounted at /a cannot be built (TypeError",
        ),
        (
            "def other(app): print('building'); raise SystemExit('no licence')\napp.add_middleware(other)",
            "(SystemExit: no licence)",
        ),
        (
            "import threading\ndef slow(app): threading.Event().wait()\napp.add_middleware(slow)",
            "(TimeoutError: it took longer than --timeout allows)",
        ),
    ],
    ids=["a slip", "in a mounted one", "another's that ends it", "another's without end"],
)
def test_middleware_that_cannot_be_built_is_a_problem(examine: Examine, text: str, says: str) -> None:
    found = examine("--timeout", "2", app=f"{APP}\n{text}")
    assert found["middleware-stack"] == "problem"
    assert says in found.text("middleware-stack")


def test_middleware_is_built_to_see_whether_it_can_be_and_not_kept(examine: Examine) -> None:
    build = "import sys\nclass Each:\n    def __init__(self, app): sys.stdout.write('built')"
    found = examine(app=f"{APP}\n{build}\napp.add_middleware(Each)")
    assert found["middleware-stack"] == "ok"
    assert found.err.count("built") == 1
    app = FastAPI()
    app.add_middleware(OtplessSessionMiddleware, settings=make_settings())
    assert view(app).failure is None
    app.add_middleware(CORSMiddleware)  # Starlette refuses that once there is a stack


HOSTS = """
from starlette.middleware.trustedhost import TrustedHostMiddleware
app.add_middleware(TrustedHostMiddleware, allowed_hosts=["www.shop.example", "*.shop.example"])
"""
PROXIES = """
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
app.add_middleware(ProxyHeadersMiddleware)
app.user_middleware.reverse()
"""


@pytest.mark.parametrize(
    ("check", "status", "text", "variables"),
    [
        ("trusted-hosts", "ok", HOSTS, {}),
        ("trusted-hosts", "ok", HOSTS, {"OTPLESS_COOKIE_DOMAIN": "shop.example"}),
        ("trusted-hosts", "problem", HOSTS, {"OTPLESS_COOKIE_DOMAIN": "tea.example"}),
        ("middleware-order", "warning", PROXIES, {}),
        (
            "cors-order",
            "problem",
            f"{CORS}\nadd_cors()\napp.user_middleware.reverse()",
            {"OTPLESS_REQUIRED_PATHS": "/**"},
        ),
        ("cors-headers", "skipped", f"{CORS}\nadd_cors()", {"OTPLESS_TOKEN_SOURCES": "cookie"}),
        ("cors-headers", "ok", f"{CORS}\nadd_cors(allow_headers=['Authorization'])", BEARER),
        ("cors-headers", "problem", f"{CORS}\nadd_cors()", BEARER),
        (
            "cors-headers",
            "problem",
            f"{CORS}\nadd_cors(allow_headers=['Authorization'], expose_headers=['X-Page'])",
            BEARER,
        ),
        (
            "cors-headers",
            "ok",
            f"{CORS}\nadd_cors()",
            {"OTPLESS_TOKEN_SOURCES": "authorization,header,cookie"},
        ),
        ("cors-origins", "warning", f"{CORS}\nadd_cors(allow_origins=['*'])", {"OTPLESS_TRUSTED_ORIGINS": ""}),
        ("unknown-tokens", "ok", "", {"OTPLESS_TOKEN_SOURCES": "cookie"}),
        ("exempt-paths", "warning", "", {"OTPLESS_EXEMPT_PATHS": "/auth/**"}),
    ],
)
def test_an_application_and_its_settings_have_to_agree(
    examine: Examine, check: str, status: str, text: str, variables: dict[str, str]
) -> None:
    found = examine(app=f"{APP}\n{text}", **{**TRUST, **variables})
    assert found[check] == status, found.text(check)


def test_the_header_that_pages_send_the_token_in_is_to_be_allowed_and_the_one_they_get_it_in_exposed(
    examine: Examine,
) -> None:
    cors = f"{CORS}\nadd_cors(allow_headers=[], expose_headers=['X-Page'])"
    fix = examine(app=f"{APP}\n{cors}", **TRUST, **BEARER).text("cors-headers")
    assert 'CORSMiddleware(allow_headers=[..., "Authorization"], expose_headers=[..., "X-Session-Token"])' in fix


@pytest.mark.parametrize("written", ["https://shop.example/", "https://Shop.example", "https://shop.example:443"])
def test_an_origin_that_browsers_write_otherwise_is_told_as_they_write_it(examine: Examine, written: str) -> None:
    cors = f"{CORS}\nadd_cors(allow_origins=[{written!r}, 'https://a.example'])"
    says = examine(app=f"{APP}\n{cors}", OTPLESS_TRUSTED_ORIGINS=f"{written},https://a.example").text("cors-origins")
    assert f"{written} in allow_origins never matches" in says
    assert says.endswith('CORSMiddleware(allow_origins=["https://shop.example", "https://a.example"])')


def test_the_methods_that_pages_of_other_origins_lack_are_named(examine: Examine) -> None:
    says = examine(app=f"{APP}\n{CORS}\nadd_cors(allow_methods=['GET'])", **TRUST).text("cors-methods")
    assert "CORSMiddleware lacks POST and DELETE in allow_methods" in says
    assert says.endswith('CORSMiddleware(allow_methods=["*"]), or ["GET", "POST", "DELETE"]')


def test_a_host_that_is_turned_away_is_no_sites(examine: Examine) -> None:
    found = examine("--site", "https://shop.example", "--timeout", "2", app=f"{APP}\n{HOSTS}")
    assert found["trusted-hosts"] == "problem"
    assert "refuses shop.example" in found.text("trusted-hosts")


def test_header_tokens_that_nobody_can_have_are_noticed(examine: Examine) -> None:
    app = f"{APP}\napp = FastAPI(); app.add_middleware(OtplessSessionMiddleware)"
    assert examine(app=app, OTPLESS_ACCEPT_UNKNOWN_TOKENS="false")["unknown-tokens"] == "warning"
    assert examine(app=APP, OTPLESS_ACCEPT_UNKNOWN_TOKENS="false")["unknown-tokens"] == "ok"
    assert "ACCEPT_UNKNOWN_TOKENS=false" in examine(app=APP, OTPLESS_ACCEPT_UNKNOWN_TOKENS="true").text(
        "unknown-tokens"
    )


def test_path_globs_that_match_no_route_are_named(examine: Examine) -> None:
    found = examine(app=APP, OTPLESS_REQUIRED_PATHS="/orders/*,/ordres/**", OTPLESS_EXEMPT_PATHS="/orders/help,/faq")
    assert found["required-paths"] == "problem"
    assert found.checks["required-paths"]["finding"].startswith("/ordres/** in ")
    assert found["exempt-paths"] == "warning"
    assert found.checks["exempt-paths"]["finding"].startswith("/faq in ")


@pytest.mark.skipif(not hasattr(FastAPI, "frontend"), reason="a newer FastAPI's")
@pytest.mark.parametrize(
    ("glob", "text", "status"),
    [
        ("/shop/**", "app.frontend('/shop', directory='.')", "ok"),
        ("/shop", "app.frontend('/shop', directory='.')", "ok"),
        ("/shop/css/*", "app.frontend('/shop', directory='.')", "ok"),
        ("/shops/**", "app.frontend('/shop', directory='.')", "problem"),
        ("/anything/**", "app.frontend('/', directory='.')", "ok"),
        ("/tea/shop/**", "tea.frontend('/shop', directory='.'); app.include_router(tea, prefix='/tea')", "ok"),
        ("/shop/**", "tea.frontend('/shop', directory='.'); app.include_router(tea, prefix='/tea')", "problem"),
        ("/tea/**", "tea.frontend('/', directory='.'); app.include_router(tea, prefix='/tea')", "ok"),
        ("/inner/shop/**", "inner.frontend('/shop', directory='.'); app.mount('/inner', inner)", "ok"),
    ],
)
def test_a_path_glob_meets_a_frontend(examine: Examine, glob: str, text: str, status: str) -> None:
    routers = "from fastapi import APIRouter\ntea, inner = APIRouter(), FastAPI()"
    found = examine(app=f"{APP}\n{routers}\n{text}", OTPLESS_REQUIRED_PATHS=glob)
    assert found["required-paths"] == status, found.text("required-paths")


@pytest.mark.parametrize(
    ("glob", "route", "meet"),
    [
        ("/account/**", "/account", True),
        ("/account/**", "/account/{page}", True),
        ("/account/**", "/accounts", False),
        ("/**", "/", True),
        ("/*", "/{page}", True),
        ("/*", "/a/b", False),
        ("/a/*/c", "/a/{x:int}/c", True),
        ("/a/b", "/a/{x}", True),
        ("/a/b", "/a/{x}/c", False),
        ("/files/one/two", "/files/{path:path}", True),
        ("/report-*", "/report-{year}.pdf", True),
        ("/report-*", "/report-2026", True),
        ("/report-2026.pdf", "/report-{year}.pdf", True),
        ("/report-2026.txt", "/report-{year}.pdf", False),
        ("/x", "/", False),
    ],
)
def test_a_glob_meets_a_route_where_a_path_can_match_both(glob: str, route: str, meet: bool) -> None:
    assert meets(glob, Place(route)) is meet


def test_a_glob_meets_what_is_mounted() -> None:
    assert meets("/static/css/**", Place("/static", is_open=True))
    assert not meets("/assets/**", Place("/static", is_open=True))


MISREAD = """
from typing import Annotated
from fastapi import APIRouter, Depends, WebSocket
from fastapi_otpless_session import CurrentSessionDetails, FreshSession, Session, SessionDetails, fresh_within

router = APIRouter()

def wrong(session=Depends(CurrentSession)): ...
def right(session: CurrentSession): ...
"""


@pytest.mark.parametrize(
    ("route", "status"),
    [
        ("@router.get('/r')\ndef r(session=Depends(CurrentSession)): ...", "problem"),
        ("@router.get('/r')\ndef r(details=Depends(CurrentSessionDetails)): ...", "problem"),
        ("@router.get('/r')\ndef r(session: Session): ...", "problem"),
        ("@router.post('/r')\ndef r(order: list[str], session: Session | None = None): ...", "problem"),
        ("@router.get('/r')\ndef r(details: SessionDetails): ...", "problem"),
        ("@router.get('/r')\ndef r(user=Depends(wrong)): ...", "problem"),
        ("@router.get('/r')\ndef r(session: Annotated[Session, Depends(fresh_within)]): ...", "problem"),
        ("@router.get('/r')\ndef r(session: Annotated[Session, Depends(fresh_within(9))]): ...", "ok"),
        ("@router.websocket('/r')\nasync def r(websocket: WebSocket, session=Depends(CurrentSession)): ...", "problem"),
        ("@router.post('/r')\ndef r(order: list[str], session: FreshSession): ...", "ok"),
        ("@router.get('/r')\ndef r(user=Depends(right)): ...", "ok"),
        ("@router.get('/r')\ndef r(word: Annotated[str, Depends(lambda: 'x')]): ...", "ok"),
    ],
)
def test_a_session_that_fastapi_takes_for_a_part_of_the_request_is_noticed(
    examine: Examine, route: str, status: str
) -> None:
    found = examine(app=f"{APP}\n{MISREAD}\n{route}\napp.include_router(router, prefix='/shop')")
    assert found["session-arguments"] == status
    assert ("/shop/r" in found.text("session-arguments")) == (status == "problem")


REFUSING = """
from fastapi import FastAPI
from fastapi.responses import JSONResponse, RedirectResponse
from fastapi_otpless_session import OtplessSessionMiddleware

app = FastAPI()

@app.get("/sign-in")
def sign_in(): ...

@app.get("/account/sign-in")
def sign_in_there(): ...

{refusing}

app.add_middleware(OtplessSessionMiddleware, on_refusal=refuse)
"""
TO_SIGN_IN = "def refuse(connection, error): return RedirectResponse('/sign-in?next=' + connection.url.path)"
BY_NAME = "async def refuse(connection, error): return RedirectResponse(connection.url_for('sign_in'), 303)"
TO_ACCOUNT = "def refuse(connection, error): return RedirectResponse('/account/sign-in')"


@pytest.mark.parametrize(
    ("required", "exempt", "refusing", "status"),
    [
        pytest.param("/**", "", TO_SIGN_IN, "problem", id="everything"),
        pytest.param("/**", "", BY_NAME, "problem", id="everything, by the route's name, not at once"),
        pytest.param("/orders/*,/account/**", "", TO_ACCOUNT, "problem", id="the folder of the page"),
        pytest.param("/**", "", BY_NAME.replace("await", "").replace("async ", ""), "problem", id="at once"),
        pytest.param(
            "/**",
            "",
            "def refuse(connection, error):\n    print('refused')\n"
            "    return RedirectResponse(connection.url.path + '/x')",
            "problem",
            id="ever further",
        ),
        pytest.param("/**", "/sign-in", TO_SIGN_IN, "ok", id="exempt"),
        pytest.param("/account/**", "", TO_SIGN_IN, "ok", id="another folder"),
        pytest.param("/**", "", "def refuse(connection, error): ...", "ok", id="the default answer"),
        pytest.param("/**", "", "async def refuse(connection, error): raise error", "ok", id="the error itself"),
        pytest.param(
            "/**", "", "def refuse(connection, error): return RedirectResponse('https://id.example/')", "ok", id="away"
        ),
        pytest.param(
            "/**", "", "def refuse(connection, error): return JSONResponse(error.body, 401)", "ok", id="an answer"
        ),
        pytest.param(
            "/**",
            "",
            "def refuse(connection, error):\n"
            "    if connection.url.path == '/sign-in': return JSONResponse('Sign in')\n"
            "    return RedirectResponse('/sign-in')",
            "ok",
            id="an answer there",
        ),
        pytest.param("/**", "", "def refuse(connection, error): return connection.state.mine", "skipped", id="fails"),
        pytest.param("/**", "", "refuse = None", "skipped", id="none"),
        pytest.param("", "", TO_SIGN_IN, "skipped", id="nothing is required"),
    ],
)
def test_a_refusal_that_redirects_to_what_is_refused_is_a_problem(
    examine: Examine, required: str, exempt: str, refusing: str, status: str
) -> None:
    app = REFUSING.format(refusing=refusing)
    found = examine(app=app, OTPLESS_REQUIRED_PATHS=required, OTPLESS_EXEMPT_PATHS=exempt)
    assert found["on-refusal"] == status, found.text("on-refusal")
    assert ("OTPLESS_EXEMPT_PATHS=/" in found.text("on-refusal")) == (status == "problem")


def test_what_the_doctor_advises_ends_the_redirects(examine: Examine) -> None:
    exempt = {"OTPLESS_EXEMPT_PATHS": "/help"}
    wrapped = REFUSING.format(refusing=TO_SIGN_IN).replace(
        "app.add_middleware(OtplessSessionMiddleware, ", "app = OtplessSessionMiddleware(app, "
    )
    advice = examine(app=wrapped, OTPLESS_REQUIRED_PATHS="/**", **exempt).text("on-refusal")
    assert advice.endswith("OTPLESS_EXEMPT_PATHS=/help,/sign-in")
    exempt["OTPLESS_EXEMPT_PATHS"] = advice.rpartition("=")[2]
    assert examine(app=wrapped, OTPLESS_REQUIRED_PATHS="/**", **exempt)["on-refusal"] == "ok"


def test_where_a_proxy_adds_to_paths_they_are_advised_as_the_router_has_them(examine: Examine) -> None:
    app = f"{REFUSING.format(refusing=BY_NAME)}\napp.root_path = '/shop'"
    found = examine(app=app, OTPLESS_REQUIRED_PATHS="/**")
    assert found.text("on-refusal").endswith("OTPLESS_EXEMPT_PATHS=/sign-in")
    found = examine(app=app, OTPLESS_REQUIRED_PATHS="/**", OTPLESS_EXEMPT_PATHS="/sign-in")
    assert found["on-refusal"] == "ok"


# The cookie, and the site


@pytest.mark.parametrize(
    ("check", "status", "site", "variables"),
    [
        ("cookie-secure", "ok", "https://shop.example", {}),
        ("cookie-secure", "problem", "http://shop.example", {}),
        ("cookie-secure", "warning", "http://localhost:8000", {}),
        ("cookie-secure", "warning", "http://[::1]:8000", {}),
        ("cookie-secure", "warning", "https://shop.example", CLEAR),
        ("cookie-secure", "warning", "http://shop.example", CLEAR),
        ("cookie-secure", "warning", "http://localhost.example", CLEAR),
        ("cookie-secure", "warning", None, CLEAR),
        ("cookie-secure", "ok", "http://localhost:8000", CLEAR),
        ("cookie-secure", "ok", "http://shop.localhost", CLEAR),
        ("cookie-secure", "ok", "http://127.1.2.3:8000", CLEAR),
        ("cookie-secure", "ok", "http://[::1]:8000", CLEAR),
        ("cookie-samesite", "ok", None, {}),
        ("cookie-samesite", "warning", None, {"OTPLESS_COOKIE_SAMESITE": "none"}),
        ("cookie-samesite", "ok", None, {"OTPLESS_COOKIE_SAMESITE": "none", **TRUST}),
        ("settings", "problem", None, {"OTPLESS_COOKIE_SAMESITE": "none", "OTPLESS_COOKIE_SECURE": "false"}),
        ("cookie-domain", "ok", None, {}),
        ("cookie-domain", "warning", "https://www.shop.example", {"OTPLESS_COOKIE_DOMAIN": "shop.example"}),
        ("cookie-domain", "problem", "https://shop.example", {"OTPLESS_COOKIE_DOMAIN": "api.shop.example"}),
        ("cookie-domain", "problem", None, {"OTPLESS_COOKIE_DOMAIN": "localhost"}),
        ("cookie-domain", "problem", None, {"OTPLESS_COOKIE_DOMAIN": "127.0.0.1"}),
        ("cookie-path", "problem", None, {"OTPLESS_COOKIE_PATH": "/orders"}),
        ("cookie-path", "warning", None, {"OTPLESS_COOKIE_PATH": "/auth"}),
        ("trusted-origins", "ok", None, TRUST),
        ("trusted-origins", "warning", None, {"OTPLESS_TRUSTED_ORIGINS": "http://shop.example"}),
        ("trusted-origins", "warning", "https://a.example", {"OTPLESS_TRUSTED_ORIGINS": "http://localhost:3000"}),
        ("trusted-origins", "ok", "https://a.example", {"OTPLESS_TRUSTED_ORIGINS": "capacitor://localhost"}),
        ("trusted-origins", "ok", "http://127.0.0.2", {"OTPLESS_TRUSTED_ORIGINS": "http://shop.localhost:3000"}),
        ("cookie-secure", "skipped", None, {"OTPLESS_TOKEN_SOURCES": "header"}),
        ("proxy-headers", "warning", None, {"FORWARDED_ALLOW_IPS": "*"}),
        ("proxy-headers", "ok", None, {"FORWARDED_ALLOW_IPS": "10.0.0.7"}),
        ("proxy-headers", "warning", "https://shop.example", {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}),
    ],
)
def test_flags_are_held_against_the_site(
    examine: Examine, check: str, status: str, site: str | None, variables: dict[str, str]
) -> None:
    found = examine(*(["--site", site, "--timeout", "2"] if site else []), app=APP, **variables)
    assert found[check] == status, found.text(check)


def behind_proxy(app: ASGIApp, host: bytes | None) -> ASGIApp:
    """Stand before an application as a proxy does that puts a host of its own into requests."""

    async def proxied(scope: Scope, receive: Receive, send: Send) -> None:
        if host is not None and scope["type"] == "http":
            kept = [(name, value) for name, value in scope["headers"] if name != b"host"]
            scope = {**scope, "headers": [*kept, (b"host", host)]}
        await app(scope, receive, send)

    return proxied


@pytest.mark.parametrize(
    ("host", "path", "status", "says"),
    [
        (None, "", "ok", "takes requests of its own pages"),
        (b"upstream:8000", "", "problem", "proxy changes the Host header"),
        (None, "/elsewhere", "problem", "answers 404"),
    ],
    ids=["passed on", "changed", "another path"],
)
def test_a_running_site_says_whether_its_proxy_keeps_the_host(
    examine: Examine, host: bytes | None, path: str, status: str, says: str
) -> None:
    app = FastAPI()
    app.add_middleware(OtplessSessionMiddleware, settings=make_settings())
    app.include_router(create_session_router(), prefix="/auth")
    with serving(behind_proxy(app, host)) as site:
        found = examine("--site", f"{site}{path}", app=APP)
    assert found["same-origin"] == status
    assert says in found.text("same-origin")


def test_the_host_that_nginx_is_told_to_pass_on_has_its_port(examine: Examine) -> None:
    app = FastAPI()
    app.add_middleware(OtplessSessionMiddleware, settings=make_settings())
    app.include_router(create_session_router(), prefix="/auth")
    with serving(behind_proxy(app, b"upstream:8000")) as site:  # nginx's $host has none
        advice = examine("--site", site, app=APP).text("same-origin")
    assert "proxy_set_header Host $http_host;" in advice


def test_a_site_that_does_not_run_is_a_warning(examine: Examine) -> None:
    found = examine("--site", f"http://127.0.0.1:{steady_port()}", app=APP)
    assert found["same-origin"] == "warning"


# What it calls a problem is one


def test_a_refusal_that_redirects_to_what_is_refused_has_no_end() -> None:
    app = FastAPI()
    app.add_middleware(
        OtplessSessionMiddleware,
        settings=make_settings(required_paths=["/**"]),
        on_refusal=lambda _connection, _error: RedirectResponse("/sign-in"),
    )
    with pytest.raises(httpx2.TooManyRedirects):
        TestClient(app).get("/orders")


@pytest.mark.skipif(not hasattr(FastAPI, "frontend"), reason="a newer FastAPI's")
def test_a_frontend_can_be_required_to_have_a_session(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("Tea")
    app = FastAPI()
    app.add_middleware(OtplessSessionMiddleware, settings=make_settings(required_paths=["/shop/**"]))
    app.frontend("/shop", directory=tmp_path)
    app.frontend("/open", directory=tmp_path)
    client = TestClient(app)
    assert client.get("/shop/index.html").status_code == 401
    assert client.get("/open/index.html").status_code == 200


def test_a_sign_in_that_asks_for_a_session_is_a_401() -> None:
    app = FastAPI(dependencies=[Depends(current_session)])
    app.add_middleware(OtplessSessionMiddleware, settings=make_settings())
    app.include_router(create_session_router(), prefix="/auth")
    answer = TestClient(app).post("/auth/login", json={})
    assert (answer.status_code, answer.json()["detail"]["code"]) == (401, "session_missing")


def test_a_session_that_fastapi_misreads_is_a_422() -> None:
    app = FastAPI()
    app.add_middleware(OtplessSessionMiddleware, settings=make_settings())

    @app.get("/called")
    async def called(session: Annotated[Any, Depends(CurrentSession)]) -> None: ...

    @app.get("/bare")
    async def bare(session: Session) -> None: ...

    @app.get("/within")
    async def within(session: Annotated[Any, Depends(fresh_within)]) -> None: ...

    client = TestClient(app)
    for path, place in (("/called", ["query", "args"]), ("/bare", ["body"]), ("/within", ["query", "seconds"])):
        answer = client.get(path)
        assert answer.status_code == 422
        assert answer.json()["detail"][0]["loc"] == place


def test_middleware_that_cannot_be_built_answers_every_request_with_an_error() -> None:
    app = FastAPI()
    app.add_middleware(OtplessSessionMiddleware, on_sign_in=print)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="on_sign_in"):
        TestClient(app).get("/")


def other_origin(app: FastAPI) -> TestClient:
    """A page of a trusted origin, as far as headers go."""
    return TestClient(app, base_url="https://api.example", headers={"Origin": "https://shop.example"})


def with_cors(settings: OtplessSettings, *, outside: bool = True, **values: Any) -> FastAPI:
    app = FastAPI()
    cors = {"allow_origins": ["https://shop.example"], "allow_headers": ["X-Session-Token"], **values}
    layers: list[Callable[[], None]] = [
        lambda: app.add_middleware(OtplessSessionMiddleware, settings=settings),
        lambda: app.add_middleware(CORSMiddleware, **cors),
    ]
    for add in layers if outside else reversed(layers):
        add()
    app.include_router(create_session_router(), prefix="/auth")
    return app


@pytest.mark.parametrize("outside", [True, False])
def test_cors_inside_does_not_see_what_required_paths_refuse(outside: bool) -> None:
    settings = make_settings(required_paths=["/account/**"], trusted_origins=["https://shop.example"])
    answer = other_origin(with_cors(settings, outside=outside)).get("/account/1")
    assert answer.status_code == 401
    assert ("access-control-allow-origin" in answer.headers) is outside


@pytest.mark.parametrize(
    ("expose", "seen"), [(["X-Session-Token"], True), ([], True), (["X-Page"], False)], ids=["ours", "none", "others"]
)
def test_a_list_of_exposed_headers_overwrites_ours(expose: list[str], seen: bool) -> None:
    emulator = Emulator()
    settings = make_settings(trusted_origins=["https://shop.example"])
    http = httpx.AsyncClient(transport=httpx.ASGITransport(app=emulator.app))
    app = FastAPI()
    app.add_middleware(
        OtplessSessionMiddleware, sessions=OtplessSessions(settings, client=OtplessClient(settings, http=http))
    )
    app.add_middleware(CORSMiddleware, allow_origins=["https://shop.example"], expose_headers=expose)
    app.include_router(create_session_router(), prefix="/auth")
    answer = other_origin(app).post("/auth/login?channel=header", json=emulator.sign_in())
    assert answer.status_code == 200
    assert ("X-Session-Token" in answer.headers["access-control-expose-headers"]) is seen


def test_an_origin_that_is_not_trusted_cannot_sign_out() -> None:
    assert other_origin(with_cors(make_settings())).post("/auth/logout").status_code == 403
    trusting = make_settings(trusted_origins=["https://shop.example"])
    assert other_origin(with_cors(trusting)).post("/auth/logout").status_code == 204


@pytest.mark.parametrize(
    ("path", "method"), [("login", "POST"), ("logout", "POST"), ("sessions/1", "DELETE")], ids=["in", "out", "a device"]
)
@pytest.mark.parametrize("allowed", [["*"], ["POST", "DELETE"], ["GET"], ["post", "delete"]], ids=",".join)
def test_a_method_that_is_not_allowed_fails_the_preflight(path: str, method: str, allowed: list[str]) -> None:
    app = with_cors(make_settings(), allow_methods=allowed)
    preflight = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": "content-type"}
    answer = other_origin(app).options(f"/auth/{path}", headers=preflight)
    assert (answer.status_code == 200) is not {"*", method}.isdisjoint(allowed)


@pytest.mark.parametrize(
    ("origin", "matches"),
    [
        ("https://shop.example", True),
        ("https://shop.example/", False),
        ("https://Shop.example", False),
        ("https://shop.example:443", False),
    ],
)
def test_cors_compares_origins_letter_by_letter(origin: str, matches: bool) -> None:
    answer = other_origin(with_cors(make_settings(), allow_origins=[origin])).get("/orders")
    assert ("access-control-allow-origin" in answer.headers) is matches


@pytest.mark.parametrize("allowed", [["X-Session-Token"], []], ids=["allowed", "not allowed"])
def test_a_header_that_is_not_allowed_fails_the_preflight(allowed: list[str]) -> None:
    preflight = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "X-Session-Token"}
    answer = other_origin(with_cors(make_settings(), allow_headers=allowed)).options("/orders", headers=preflight)
    assert (answer.status_code == 200) is bool(allowed)


def test_a_middleware_outside_of_ours_has_no_session_to_ask_for() -> None:
    app = FastAPI()
    app.add_middleware(OtplessSessionMiddleware, settings=make_settings())

    @app.middleware("http")
    async def greet(request: Request, call_next: RequestResponseEndpoint) -> Response:
        await request.state.otpless.session()
        return await call_next(request)

    with pytest.raises(AttributeError, match="otpless"):
        TestClient(app).get("/")
