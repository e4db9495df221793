"""Reads the URLs that name a Redis: one server, a cluster, or a master that Sentinels know; each also over TLS."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from redis.asyncio.connection import parse_url

Address = tuple[str, int]
Kind = Literal["server", "cluster", "sentinel"]
_DEFAULT_PORT = {"cluster": 6379, "sentinel": 26379}


@dataclass(frozen=True, slots=True)
class Place:
    """What a URL says; `options` are those of redis-py's connections, `seeds` the nodes or Sentinels to ask first.

    `service` is the name by which Sentinels know the master.
    """

    kind: Kind
    options: dict[str, Any] = field(repr=False)
    seeds: tuple[Address, ...] = ()
    service: str = ""


def read_url(url: str) -> Place:
    """Read `redis[s]://…`, `unix://…`, `redis[s]+cluster://host:port,host:port` or
    `redis[s]+sentinel://host:port,host:port/service`.

    Raises:
        ValueError: it is none of these.
    """
    scheme, _, rest = url.partition("://")
    plain, _, kind = scheme.partition("+")
    if not kind:
        return Place("server", dict(parse_url(url)))
    if kind not in ("cluster", "sentinel") or plain not in ("redis", "rediss"):
        raise ValueError("no scheme of Redis")
    parts = urlsplit(f"{plain}://{rest}")
    login, at, hosts = parts.netloc.rpartition("@")
    seeds = tuple(_address(host, _DEFAULT_PORT[kind]) for host in hosts.split(",") if host)
    path = parts.path.strip("/")
    if not seeds or (kind == "sentinel" and not path):
        raise ValueError("no host, or no name of a service")
    database = path if kind == "cluster" else "0"
    query = f"?{parts.query}" if parts.query else ""
    options = dict(parse_url(f"{plain}://{login}{at}host/{database}{query}"))
    options.pop("host", None)
    return Place(kind, options, seeds, "" if kind == "cluster" else path)


def _address(host: str, default: int) -> Address:
    parts = urlsplit(f"//{host}")
    if not parts.hostname:
        raise ValueError("no host")
    return parts.hostname, parts.port or default
