"""An application with fastapi-users, as its documentation builds one: users in SQLite by SQLAlchemy's asyncio."""

# Annotations are evaluated at once here: FastAPI could not find those that name something local.

import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import redis.asyncio
from fastapi import Depends, FastAPI
from fastapi_users import BaseUserManager, FastAPIUsers, UUIDIDMixin
from fastapi_users.authentication import AuthenticationBackend, BearerTransport, RedisStrategy
from fastapi_users.authentication.strategy.db import AccessTokenDatabase, DatabaseStrategy
from fastapi_users.db import BaseUserDatabase, SQLAlchemyBaseUserTableUUID, SQLAlchemyUserDatabase
from fastapi_users_db_sqlalchemy.access_token import (
    SQLAlchemyAccessTokenDatabase,
    SQLAlchemyBaseAccessTokenTableUUID,
)
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase

LIFE = 86_400


class Base(DeclarativeBase):
    pass


class User(SQLAlchemyBaseUserTableUUID, Base):
    pass


class AccessToken(SQLAlchemyBaseAccessTokenTableUUID, Base):
    pass


class Memory(BaseUserDatabase[User, uuid.UUID]):
    """A database adapter of one's own, as the documentation allows: a dict."""

    def __init__(self, kept: dict[uuid.UUID, User]) -> None:
        self._kept = kept

    async def get(self, id: uuid.UUID) -> User | None:  # noqa: A002 - its base's name
        return self._kept.get(id)


class UserManager(UUIDIDMixin, BaseUserManager[User, uuid.UUID]):
    pass


Opened = Callable[..., AsyncIterator[Any]]


@dataclass(frozen=True)
class Databases:
    """The dependencies that the documentation has one write: where users are, and where access tokens are."""

    user: Callable[..., Any]
    access_token: Opened


def databases(make_session: async_sessionmaker[AsyncSession], kept: dict[uuid.UUID, User] | None) -> Databases:
    async def get_async_session() -> AsyncIterator[AsyncSession]:
        async with make_session() as session:
            yield session

    Session = Annotated[AsyncSession, Depends(get_async_session)]  # noqa: N806 - a type

    async def get_user_db(session: Session) -> AsyncIterator[Any]:
        yield SQLAlchemyUserDatabase(session, User)

    async def get_access_token_db(session: Session) -> AsyncIterator[Any]:
        yield SQLAlchemyAccessTokenDatabase(session, AccessToken)

    async def get_memory() -> Memory:
        return Memory(kept or {})

    return Databases(get_user_db if kept is None else get_memory, get_access_token_db)


def strategy(client: Any, get_access_token_db: Opened) -> Callable[..., Any]:
    """Return the dependency that says where sessions are: in Redis, or in the database."""

    def redis_strategy() -> Any:
        return RedisStrategy(client, lifetime_seconds=LIFE)

    def database_strategy(access_token_db: Annotated[AccessTokenDatabase[Any], Depends(get_access_token_db)]) -> Any:
        return DatabaseStrategy(access_token_db, lifetime_seconds=LIFE)

    return redis_strategy if client else database_strategy


def built(given: Databases, get_strategy: Callable[..., Any]) -> FastAPI:
    async def get_user_manager(user_db: Annotated[Any, Depends(given.user)]) -> AsyncIterator[UserManager]:
        yield UserManager(user_db)

    transport = BearerTransport(tokenUrl="auth/login")
    users = FastAPIUsers[User, uuid.UUID](
        get_user_manager, [AuthenticationBackend(name="bench", transport=transport, get_strategy=get_strategy)]
    )
    app = FastAPI()

    @app.get("/")
    async def hello(user: Annotated[User, Depends(users.current_user(active=True))]) -> dict[str, str]:
        return {"hello": str(user.id)}

    return app


@asynccontextmanager
async def application(folder: Path, redis_url: str | None, *, in_memory: bool) -> AsyncIterator[tuple[FastAPI, str]]:
    """Give an application and a token of somebody who is signed in; the token is in Redis, or in the database.

    `in_memory`: the user is in a dict, and not in the database.
    """
    engine = create_async_engine(f"sqlite+aiosqlite:///{folder}/users.db")
    make_session = async_sessionmaker(engine, expire_on_commit=False)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    client = redis.asyncio.from_url(redis_url, decode_responses=True) if redis_url else None
    async with make_session() as session:
        user = await SQLAlchemyUserDatabase(session, User).create({"email": "asha@example.com", "hashed_password": "-"})
        tokens = SQLAlchemyAccessTokenDatabase(session, AccessToken)
        writes = RedisStrategy(client, LIFE) if client else DatabaseStrategy(tokens, LIFE)
        token = await writes.write_token(user)
    given = databases(make_session, {user.id: user} if in_memory else None)
    yield built(given, strategy(client, given.access_token)), token
    if client:
        await client.aclose()
    await engine.dispose()
