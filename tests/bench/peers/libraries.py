"""What people use instead: an application for each library, as its documentation says.

Each of them verifies locally, with a key that is given to it. Where a library takes keys only from the network, they
are put where it keeps them once it has fetched them; that is said at the place.
"""

# Annotations are evaluated at once here: FastAPI could not find those that name something local.

import base64
import json
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import itsdangerous
import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from jwt.algorithms import RSAAlgorithm
from starlette.types import ASGIApp

SECRET = "a secret of the bench's, longer than 32 bytes"
KEY_ID = "s-0183"
"""SuperTokens tells the two kinds of its keys apart by their first letter; to the others it is all the same."""
DAY = 86_400
PATIENCE = 10.0
PACKAGES = (
    *("fastapi", "starlette", "uvloop", "pyjwt", "clerk-backend-api", "descope", "auth0-fastapi-api"),
    *("stytch", "supertokens-python", "fastapi-users", "redis"),
)

Headers = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True)
class Peer:
    """An application, the headers of a request that it takes for signed in, and the status of its answer."""

    app: ASGIApp
    headers: Headers = ()
    status: int = 200


Open = Callable[[], AbstractAsyncContextManager[Peer]]


@dataclass(frozen=True)
class Library:
    """A row of the table."""

    key: str
    name: str
    open: Open
    note: str = ""


def bare() -> FastAPI:
    app = FastAPI()

    @app.get("/")
    async def hello() -> dict[str, str]:
        return {"hello": "world"}

    return app


def depending(who: Callable[..., Any]) -> FastAPI:
    """Return an application whose route depends on whoever is signed in."""
    app = FastAPI()

    @app.get("/")
    async def hello(user: Annotated[Any, Depends(who)]) -> dict[str, str]:
        return {"hello": "world" if user else "nobody"}

    return app


# Tokens of about 600 bytes


@cache
def private_key() -> RSAPrivateKey:
    return generate_private_key(public_exponent=65537, key_size=2048)


def public_pem() -> str:
    return private_key().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def public_jwk() -> dict[str, Any]:
    public = RSAAlgorithm.to_jwk(private_key().public_key(), as_dict=True)
    return {**{name: public[name] for name in ("kty", "n", "e")}, "use": "sig", "alg": "RS256", "kid": KEY_ID}


def token(header: dict[str, str] | None = None, **claims: Any) -> str:
    now = int(time.time())
    basics = {"sub": "user_2b7e151628aed2a6abf7158809cf4f3c", "iat": now - 5, "nbf": now - 5, "exp": now + DAY}
    named = {"sid": "sess_2b7e151628aed2a6abf7158809cf4f3c", "jti": uuid.uuid4().hex, "name": "Asha Rao"}
    content = {**basics, **named, **claims}
    return jwt.encode(content, private_key(), algorithm="RS256", headers={"kid": KEY_ID, **(header or {})})


def bearer(text: str) -> Headers:
    return ((b"authorization", f"Bearer {text}".encode()),)


# Starlette and PyJWT


@asynccontextmanager
async def session_middleware() -> AsyncIterator[Peer]:
    from starlette.middleware.sessions import SessionMiddleware

    app = FastAPI()
    app.add_middleware(SessionMiddleware, secret_key=SECRET)

    @app.get("/")
    async def hello(request: Request) -> dict[str, str]:
        return {"hello": request.session["user_id"]}

    content = base64.b64encode(json.dumps({"user_id": "MO-1"}).encode())
    yield Peer(app, ((b"cookie", b"session=" + itsdangerous.TimestampSigner(SECRET).sign(content)),))


@asynccontextmanager
async def base_http_middleware() -> AsyncIterator[Peer]:
    from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
    from starlette.responses import Response

    class Nothing(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
            return await call_next(request)

    app = bare()
    app.add_middleware(Nothing)
    yield Peer(app)


def pyjwt_application() -> FastAPI:
    key = private_key().public_key()
    scheme = HTTPBearer()

    async def current_user(credentials: Annotated[HTTPAuthorizationCredentials, Depends(scheme)]) -> dict[str, Any]:
        try:
            claims: dict[str, Any] = jwt.decode(credentials.credentials, key, algorithms=["RS256"])
        except jwt.InvalidTokenError:
            raise HTTPException(401, "Could not validate credentials", {"WWW-Authenticate": "Bearer"}) from None
        return claims

    return depending(current_user)


@asynccontextmanager
async def pyjwt() -> AsyncIterator[Peer]:
    yield Peer(pyjwt_application(), bearer(token()))


@asynccontextmanager
async def pyjwt_refusing() -> AsyncIterator[Peer]:
    forger = generate_private_key(public_exponent=65537, key_size=2048)
    content = jwt.decode(token(), options={"verify_signature": False})
    forged = jwt.encode(content, forger, algorithm="RS256", headers={"kid": KEY_ID})
    yield Peer(pyjwt_application(), bearer(forged), 401)


# Services with a library of their own


@asynccontextmanager
async def clerk() -> AsyncIterator[Peer]:
    """`authenticate_request` with a `jwt_key`, which Clerk calls networkless."""
    from clerk_backend_api.security import authenticate_request_async
    from clerk_backend_api.security.types import AuthenticateRequestOptions

    options = AuthenticateRequestOptions(jwt_key=public_pem(), authorized_parties=["https://shop.example"])

    async def signed_in(request: Request) -> dict[str, Any]:
        state = await authenticate_request_async(request, options)
        if not state.is_signed_in or state.payload is None:
            raise HTTPException(401, state.message)
        claims: dict[str, Any] = state.payload
        return claims

    yield Peer(depending(signed_in), bearer(token(azp="https://shop.example", iss="https://clerk.shop.example")))


@asynccontextmanager
async def descope() -> AsyncIterator[Peer]:
    """`validate_session` of a client that has been given the project's public key."""
    from descope import DescopeClientAsync

    project = "P2bench0000000000000000000000"
    client = DescopeClientAsync(project_id=project, public_key=public_jwk())

    async def signed_in(credentials: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]) -> dict[str, Any]:
        claims: dict[str, Any] = await client.validate_session(credentials.credentials)
        return claims

    yield Peer(depending(signed_in), bearer(token(iss=f"https://api.descope.com/{project}", drn="DS")))
    await client.aclose()


@asynccontextmanager
async def auth0() -> AsyncIterator[Peer]:
    """`require_auth()`; its metadata and keys come through `custom_fetch`, once, and are kept ten minutes."""
    from fastapi_plugin import Auth0FastAPI

    domain, audience = "bench.eu.auth0.com", "https://api.shop.example"
    issuer = f"https://{domain}/"

    async def fetch(url: str) -> dict[str, Any]:
        if url.endswith("openid-configuration"):
            return {"issuer": issuer, "jwks_uri": f"{issuer}.well-known/jwks.json"}
        return {"keys": [public_jwk()]}

    plugin = Auth0FastAPI(domain=domain, audience=audience, custom_fetch=fetch)
    yield Peer(depending(plugin.require_auth()), bearer(token(iss=issuer, aud=audience)))


@asynccontextmanager
async def stytch() -> AsyncIterator[Peer]:
    """`authenticate_jwt_async`. Its key client takes no keys: what it would fetch is put in the place of fetching."""
    from stytch import Client

    project = "project-live-00000000-0000-0000-0000-000000000000"
    client = Client(project_id=project, secret=SECRET, environment="live")
    client.sessions.jwks_client.fetch_data = _keeping(client.sessions.jwks_client)
    now = "2026-01-01T00:00:00Z"
    session = {
        "id": "session-live-00000000-0000-0000-0000-000000000000",
        "attributes": {},
        "roles": [],
        "started_at": now,
        "last_accessed_at": now,
        "expires_at": "2036-01-01T00:00:00Z",
        "authentication_factors": [],
    }

    async def signed_in(credentials: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]) -> Any:
        return (await client.sessions.authenticate_jwt_async(credentials.credentials)).session

    claims: dict[str, Any] = {"iss": f"stytch.com/{project}", "aud": [project], "https://stytch.com/session": session}
    yield Peer(depending(signed_in), bearer(token(**claims)))
    await client.close()


def _keeping(client: jwt.PyJWKClient) -> Callable[[], dict[str, Any]]:
    """Return what PyJWKClient's `fetch_data` does when the network is instant: the key set, kept as it keeps it."""

    def fetch() -> dict[str, Any]:
        keys = {"keys": [public_jwk()]}
        if client.jwk_set_cache is not None:
            client.jwk_set_cache.put(keys)
        return keys

    return fetch


@asynccontextmanager
async def supertokens() -> AsyncIterator[Peer]:
    """Its middleware and `verify_session()`. Its key cache is filled: it has no other way in but a running core."""
    from supertokens_python import InputAppInfo, SupertokensConfig, init
    from supertokens_python.framework.fastapi import get_middleware
    from supertokens_python.recipe import session
    from supertokens_python.recipe.session import jwks
    from supertokens_python.recipe.session.framework.fastapi import verify_session

    place = InputAppInfo(app_name="bench", api_domain="https://shop.example", website_domain="https://shop.example")
    core = SupertokensConfig(connection_uri="http://127.0.0.1:9")
    recipes = [session.init(use_dynamic_access_token_signing_key=False)]
    init(app_info=place, supertokens_config=core, framework="fastapi", recipe_list=recipes, telemetry=False)
    jwks.cached_keys = jwks.CachedKeys(jwt.PyJWKSet.from_dict({"keys": [public_jwk()]}).keys, DAY)
    app = depending(verify_session())
    app.add_middleware(get_middleware())
    claims = {"sessionHandle": uuid.uuid4().hex, "refreshTokenHash1": uuid.uuid4().hex, "tId": "public"}
    yield Peer(app, bearer(token({"version": "5"}, **claims, rsub="user_2b7e151628aed2a6abf7158809cf4f3c")))


# fastapi-users


def fastapi_users(strategy: str, *, users_in_memory: bool = False) -> Open:
    """Sessions of fastapi-users in Redis or in the database, and its users in SQLite, as its documentation has it.

    `users_in_memory`: they cost nothing to look up, so that what is measured is the library and Redis.
    """

    @asynccontextmanager
    async def opened() -> AsyncIterator[Peer]:
        import users

        with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder), strategy == "redis") as url:
            async with users.application(Path(folder), url, in_memory=users_in_memory) as (app, text):
                yield Peer(app, bearer(text))

    return opened


@contextmanager
def redis_server(folder: Path, wanted: bool) -> Iterator[str | None]:
    """Run a Redis of one's own; None where none is wanted. Raises `RuntimeError` where it is not installed."""
    if not wanted:
        yield None
        return
    binary = shutil.which("redis-server") or shutil.which("valkey-server")
    if binary is None:
        raise RuntimeError("redis-server is not installed (Debian: apt-get install redis-server)")
    socket = folder / "s"
    command = [binary, "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603 - what was found on PATH
    try:
        deadline = time.monotonic() + PATIENCE
        while not socket.exists():
            if time.monotonic() > deadline:
                raise RuntimeError("redis-server did not start")
            time.sleep(0.02)
        yield f"unix://{socket}"
    finally:
        server.terminate()
        server.wait()


LIBRARIES = (
    Library("peer-starlette", "Starlette SessionMiddleware", session_middleware),
    Library("peer-base-http", "BaseHTTPMiddleware that does nothing", base_http_middleware),
    Library("peer-pyjwt", "PyJWT in a dependency", pyjwt),
    Library("peer-pyjwt-refusing", "PyJWT, refusing a bad signature", pyjwt_refusing),
    Library("peer-clerk", "Clerk", clerk),
    Library("peer-descope", "Descope", descope),
    Library("peer-auth0", "Auth0", auth0),
    Library("peer-stytch", "Stytch", stytch),
    Library("peer-supertokens", "SuperTokens", supertokens),
    Library("peer-users", "fastapi-users, Redis, users in memory", fastapi_users("redis", users_in_memory=True)),
    Library("peer-users-redis", "fastapi-users, Redis, users in SQLite", fastapi_users("redis")),
    Library("peer-users-database", "fastapi-users, all in SQLite", fastapi_users("database")),
)
