"""URLs of Redis: one server, a cluster, or a master behind Sentinels; each also over TLS."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from redis.asyncio.connection import parse_url

Address = tuple[str, int]
UrlKind = Literal["server", "cluster", "sentinel"]
_DEFAULT_PORT = {"cluster": 6379, "sentinel": 26379}


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """A parsed URL. `options` are for redis-py's connections; `seeds` are the nodes or Sentinels to ask first.

    `service` is the name of the master at the Sentinels.
    """

    kind: UrlKind
    options: dict[str, Any] = field(repr=False)
    seeds: tuple[Address, ...] = ()
    service: str = ""


def read_url(url: str) -> RedisUrl:
    """Parse `redis[s]://…`, `unix://…`, `redis[s]+cluster://host:port,host:port` or
    `redis[s]+sentinel://host:port,host:port/service`.

    Raises:
        ValueError: it is not such a URL.
    """
    scheme, _, rest = url.partition("://")
    plain, _, kind = scheme.partition("+")
    if not kind:
        return RedisUrl("server", dict(parse_url(url)))
    if kind not in ("cluster", "sentinel") or plain not in ("redis", "rediss"):
        raise ValueError("not a Redis scheme")
    parts = urlsplit(f"{plain}://{rest}")
    login, at, hosts = parts.netloc.rpartition("@")
    seeds = tuple(_address(host, _DEFAULT_PORT[kind]) for host in hosts.split(",") if host)
    path = parts.path.strip("/")
    if not seeds or (kind == "sentinel" and not path):
        raise ValueError("no host, or no service name")
    database = path if kind == "cluster" else "0"
    query = f"?{parts.query}" if parts.query else ""
    options = dict(parse_url(f"{plain}://{login}{at}host/{database}{query}"))
    options.pop("host", None)
    return RedisUrl(kind, options, seeds, "" if kind == "cluster" else path)


def _address(host: str, default: int) -> Address:
    parts = urlsplit(f"//{host}")
    if not parts.hostname:
        raise ValueError("no host")
    return parts.hostname, parts.port or default
