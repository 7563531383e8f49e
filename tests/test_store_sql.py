"""The PostgreSQL store: the contract, and what is PostgreSQL's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fastapi_otpless_session.stores import SessionStore, open_store
from fastapi_otpless_session.testing.store_contract import ContractClock, StoreContract

MakeStore = Callable[[ContractClock], SessionStore]


class TestPostgreSQL(StoreContract):
    @pytest.fixture
    def make_store(self, postgres_url: str) -> MakeStore:
        return lambda clock: open_store(postgres_url, offset=lambda: clock.offset)
