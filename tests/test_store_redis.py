"""The Redis store, on one server and in a Cluster: the contract, and what is Redis's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from backends import RedisCluster, RedisServer

from fastapi_otpless_session.stores import SessionStore, open_store
from fastapi_otpless_session.testing.store_contract import ContractClock, StoreContract

MakeStore = Callable[[ContractClock], SessionStore]


class TestRedis(StoreContract):
    @pytest.fixture
    def make_store(self, redis_server: RedisServer) -> MakeStore:
        return lambda clock: open_store(redis_server.url, offset=lambda: clock.offset)


class TestCluster(StoreContract):
    @pytest.fixture
    def make_store(self, redis_cluster: RedisCluster) -> MakeStore:
        return lambda clock: open_store(redis_cluster.url, offset=lambda: clock.offset)
