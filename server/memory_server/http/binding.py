"""Checks the listening address, and which Host and Origin headers are allowed."""

from __future__ import annotations

import ssl

from mcp.server.transport_security import TransportSecuritySettings

from memory_core.crypto.secret_files import is_open_to_others
from memory_core.errors import UnsafeStart, echo
from memory_core.settings.settings import Settings
from memory_server.local.running import is_loopback

_HOSTS = ("127.0.0.1:*", "localhost:*", "[::1]:*")
_ORIGINS = ("http://127.0.0.1:*", "http://localhost:*", "http://[::1]:*")


def check_bind(settings: Settings) -> None:
    """Refuse an address beyond loopback without authentication, allowed hosts and TLS, and incomplete TLS settings.

    Without authentication, also refuse what lets other machines reach a loopback address.

    Raises:
        UnsafeStart: a setting is missing or cannot be used.
    """
    _check_tls(settings)
    if settings.auth.mode == "off":
        _check_only_loopback(settings)
    if is_loopback(settings.host):
        return
    if not settings.allowed_hosts:
        raise UnsafeStart(
            f"binding to {settings.host} needs allowed_hosts", hint="name the hosts by which clients reach the server"
        )
    if settings.tls_cert is None and not settings.behind_proxy:
        raise UnsafeStart(
            f"binding to {settings.host} without TLS would expose tokens to eavesdroppers",
            hint="set tls_cert and tls_key, or behind_proxy: true if a proxy terminates TLS",
        )


def _check_only_loopback(settings: Settings) -> None:
    """Refuse each setting that lets other machines in. A proxy or a forwarded port makes strangers look local."""
    foreign = [host for host in settings.allowed_hosts if not is_loopback(_without_port(host))]
    if not is_loopback(settings.host):
        problem = f"binding to {settings.host}"
    elif settings.behind_proxy:
        problem = "behind_proxy"
    elif foreign:
        problem = f"the allowed host {echo(foreign[0])}"
    else:
        return
    raise UnsafeStart(
        f"{problem} needs authentication, which is off",
        hint="set auth.mode to tokens or oauth, or serve only 127.0.0.1, without behind_proxy and allowed_hosts",
    )


def _check_tls(settings: Settings) -> None:
    if settings.tls_cert is None and settings.tls_key is None:
        return
    if settings.tls_cert is None or settings.tls_key is None:
        raise UnsafeStart("tls_cert and tls_key need each other", hint="set both or neither")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_cert, settings.tls_key, "")
    except OSError:  # includes ssl.SSLError
        hint = "both must be paths of PEM files, and the key must not have a password"
        raise UnsafeStart("tls_cert and tls_key cannot be used", hint=hint) from None
    if is_open_to_others(settings.tls_key, 0o007):
        message = f"other users of this machine can read tls_key {settings.tls_key}"
        raise UnsafeStart(message, hint="chmod 600 it, or 640 for a group")


def transport_security(settings: Settings) -> TransportSecuritySettings:
    """Return the Host and Origin headers that the SDK accepts."""
    hosts = [form for host in settings.allowed_hosts for form in _with_any_port(host)]
    own = [f"{settings.host}:*"] if is_loopback(settings.host) and ":" not in settings.host else []
    own = [host for host in own if host not in _HOSTS]
    return TransportSecuritySettings(
        allowed_hosts=[*_HOSTS, *own, *hosts],
        allowed_origins=[*_ORIGINS, *(f"http://{host}" for host in own), *settings.allowed_origins],
    )


def _with_any_port(host: str) -> tuple[str, ...]:
    return (host,) if _has_port(host) else (host, f"{host}:*")


def _has_port(host: str) -> bool:
    return ":" in host.rpartition("]")[2]


def _without_port(host: str) -> str:
    return (host.rpartition(":")[0] if _has_port(host) else host).strip("[]")
