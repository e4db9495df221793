"""Renders the redis.conf of the embedded Redis: the shipped file plus the values of this machine."""

from __future__ import annotations

import socket
from pathlib import Path

from memory_core.crypto.secret_files import write_private
from memory_core.package_data import resource
from memory_server.local.binaries import RedisBinaries
from memory_server.local.paths import Address, LocalPaths


def render_config(paths: LocalPaths, address: Address, binaries: RedisBinaries, password: str) -> Path:
    """Write the configuration with mode 0600 and return its path. Raises FileNotFoundError."""
    lines = [
        resource("redis/redis.conf").read_text(encoding="utf-8"),
        "# --- This machine (written at every start) ---",
        f"unixsocket {_quote(address.socket)}",
        "unixsocketperm 700",
        "bind 127.0.0.1",
        f"port {address.port}",
        f"requirepass {_quote(password)}",
        f"dir {_quote(paths.data_dir)}",
        f"logfile {_quote(paths.redis_log)}",
        f"pidfile {_quote(paths.data_dir / 'redis.pid')}",
        "daemonize no",
        f"loadmodule {_quote(binaries.module)} ON_TIMEOUT FAIL DEFAULT_DIALECT 2",
    ]
    write_private(paths.config, "\n".join(lines) + "\n")
    return paths.config


def choose_port(last: Address | None) -> int:
    """Return the last port if it is free, else any free loopback port."""
    for port in (last.port if last is not None else 0, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except (OSError, OverflowError):
                continue
            return int(probe.getsockname()[1])
    return 0


def _quote(value: str | Path) -> str:
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return '"' + text.replace("\n", "\\n").replace("\r", "\\r") + '"'
