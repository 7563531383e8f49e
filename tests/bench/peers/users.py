"""An application with fastapi-users, as its documentation builds one: users in SQLite by SQLAlchemy's asyncio."""

# Annotations are evaluated at once here: FastAPI could not find those that name something local.

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import redis.asyncio
from fastapi import Depends, FastAPI
from fastapi_users import BaseUserManager, FastAPIUsers, UUIDIDMixin
from fastapi_users.authentication import AuthenticationBackend, BearerTransport, RedisStrategy
from fastapi_users.authentication.strategy.db import AccessTokenDatabase, DatabaseStrategy
from fastapi_users.db import SQLAlchemyBaseUserTableUUID, SQLAlchemyUserDatabase
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


class UserManager(UUIDIDMixin, BaseUserManager[User, uuid.UUID]):
    pass


@asynccontextmanager
async def application(folder: Path, redis_url: str | None) -> AsyncIterator[tuple[FastAPI, str]]:
    """Give an application and a token of somebody who is signed in; the token is in Redis, or in the database."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{folder}/users.db")
    make_session = async_sessionmaker(engine, expire_on_commit=False)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)

    async def get_async_session() -> AsyncIterator[AsyncSession]:
        async with make_session() as session:
            yield session

    async def get_user_db(session: Annotated[AsyncSession, Depends(get_async_session)]) -> AsyncIterator[Any]:
        yield SQLAlchemyUserDatabase(session, User)

    async def get_user_manager(user_db: Annotated[Any, Depends(get_user_db)]) -> AsyncIterator[UserManager]:
        yield UserManager(user_db)

    async def get_access_token_db(
        session: Annotated[AsyncSession, Depends(get_async_session)],
    ) -> AsyncIterator[Any]:
        yield SQLAlchemyAccessTokenDatabase(session, AccessToken)

    client = redis.asyncio.from_url(redis_url, decode_responses=True) if redis_url else None

    def redis_strategy() -> Any:
        return RedisStrategy(client, lifetime_seconds=LIFE)

    def database_strategy(access_token_db: Annotated[AccessTokenDatabase[Any], Depends(get_access_token_db)]) -> Any:
        return DatabaseStrategy(access_token_db, lifetime_seconds=LIFE)

    backend = AuthenticationBackend(
        name="bench",
        transport=BearerTransport(tokenUrl="auth/login"),
        get_strategy=redis_strategy if client else database_strategy,
    )
    users = FastAPIUsers[User, uuid.UUID](get_user_manager, [backend])
    app = FastAPI()

    @app.get("/")
    async def hello(user: Annotated[User, Depends(users.current_user(active=True))]) -> dict[str, str]:
        return {"hello": str(user.id)}

    async with make_session() as session:
        user = await SQLAlchemyUserDatabase(session, User).create({"email": "asha@example.com", "hashed_password": "-"})
        if client:
            strategy = redis_strategy()
        else:
            strategy = database_strategy(SQLAlchemyAccessTokenDatabase(session, AccessToken))
        token = await strategy.write_token(user)
    yield app, token
    if client:
        await client.aclose()
    await engine.dispose()
