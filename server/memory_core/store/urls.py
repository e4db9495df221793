"""URLs of Redis: one server, a cluster, or a master behind Sentinels; each also over TLS."""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

from redis.asyncio.connection import parse_url

from memory_core.errors import InvalidArgument, echo

Address = tuple[str, int]
UrlKind = Literal["server", "cluster", "sentinel"]
_PARAMETERS = (
    *("db", "username", "password", "client_name", "socket_keepalive", "socket_read_size", "sentinel_username"),
    *("sentinel_password", "ssl_keyfile", "ssl_certfile", "ssl_password", "ssl_ca_certs", "ssl_ca_path", "ssl_ca_data"),
    *("ssl_cert_reqs", "ssl_check_hostname", "ssl_min_version", "ssl_ciphers", "socket_timeout"),
    *("socket_connect_timeout", "health_check_interval", "max_connections", "timeout", "protocol"),
)
"""Those of redis-py that make sense in a URL."""
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
        ValueError: it is not such a URL. InvalidArgument: it has an unknown parameter.
    """
    _check_parameters(url)
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


def _check_parameters(url: str) -> None:
    """Refuse what redis-py would pass on to its connections, which fail at the first command."""
    for name in parse_qs(urlsplit(url).query, keep_blank_values=True):
        if name not in _PARAMETERS:
            near = get_close_matches(name, _PARAMETERS, 1)
            hint = f"did you mean {near[0]}?" if near else f"known ones: {', '.join(sorted(_PARAMETERS))}"
            raise InvalidArgument(f"REDIS_URL has the unknown parameter {echo(name)}", hint=hint)


def _address(host: str, default: int) -> Address:
    parts = urlsplit(f"//{host}")
    if not parts.hostname:
        raise ValueError("no host")
    return parts.hostname, parts.port or default
