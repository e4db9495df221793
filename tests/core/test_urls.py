"""A URL names the kind of Redis and how to reach it."""

from __future__ import annotations

import pytest
from redis.asyncio.connection import SSLConnection

from memory_core.errors import InvalidArgument
from memory_core.store.connection import connect
from memory_core.store.urls import read_url


def test_cluster_url_lists_seed_nodes() -> None:
    parsed = read_url("redis+cluster://anna:s%40cret@one:7000,two,[::1]:7002")
    assert (parsed.kind, parsed.seeds) == ("cluster", (("one", 7000), ("two", 6379), ("::1", 7002)))
    assert parsed.options == {"username": "anna", "password": "s@cret"}


def test_sentinel_url_lists_sentinels_and_the_service() -> None:
    parsed = read_url("rediss+sentinel://:pw@one,two:1/shared?ssl_ca_certs=ca.pem&sentinel_password=other")
    assert (parsed.kind, parsed.seeds, parsed.service) == ("sentinel", (("one", 26379), ("two", 1)), "shared")
    assert parsed.options == {
        "password": "pw",
        "db": 0,
        "connection_class": SSLConnection,
        "ssl_ca_certs": "ca.pem",
        "sentinel_password": "other",
    }


def test_password_is_never_shown() -> None:
    assert "secret" not in repr(read_url("redis+cluster://:secret@one"))


@pytest.mark.parametrize(
    "url",
    [
        "redis+cluster://",
        "redis+sentinel://one:1",
        "unix+cluster:///socket",
        "redis+raft://one",
        "redis+cluster://one:no",
        "http://one",
    ],
)
def test_invalid_url_is_refused_without_quoting_it(url: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        connect(url)
    assert url not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("redis://one/0?ssl_cert=x", "ssl_certfile"),
        ("rediss://:secret@one?retry=1", "known ones"),
        ("redis+cluster://one?redis_connect_func=x", "known ones"),
        ("redis+sentinel://one/shared?sentinel_passwort=x", "sentinel_password"),
        ("unix:///run/redis.sock?nonsense", "known ones"),
    ],
)
def test_unknown_parameter_is_refused_by_name(url: str, hint: str) -> None:
    with pytest.raises(InvalidArgument, match=r"unknown parameter '[a-z_]+'") as refused:
        connect(url)
    assert hint in refused.value.hint
    assert "secret" not in refused.value.text()
