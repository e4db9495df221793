"""Hands the transport keys of the sidecar to a running supervisor.

They are written for a moment next to the socket, never next to the data that they open.
"""

from __future__ import annotations

import base64
import os
import signal
from pathlib import Path

from memory_core.crypto.keyring import Secret
from memory_core.crypto.secret_files import write_private
from memory_server.local.paths import State


def identify(keys: str) -> list[str]:
    """Return the ids of keys in base64, separated by commas. They reveal nothing."""
    return [Secret(base64.b64decode(key)).id for key in keys.split(",") if key]


def lacks(state: State, keys: str) -> bool:
    """Whether the running sidecar cannot open what is sealed under the first of the keys."""
    return bool(keys) and identify(keys)[0] not in state.transport_keys


def merge(keys: str, earlier: str) -> str:
    """Return the keys, and after them those of the earlier ones that are missing."""
    return ",".join(dict.fromkeys(key for key in f"{keys},{earlier}".split(",") if key))


def hand_over(state: State, keys: str) -> None:
    """Give keys to the supervisor, which starts its sidecar again. Raises OSError, UnsafeStart."""
    write_private(_path(state.socket), keys)
    os.kill(state.supervisor_pid, signal.SIGHUP)


def receive(socket: str) -> str:
    """Return the keys that were handed over, once; empty if there are none."""
    try:
        keys = _path(socket).read_text(encoding="ascii")
        identify(keys)
    except (OSError, ValueError):
        return ""
    finally:
        _path(socket).unlink(missing_ok=True)
    return keys


def _path(socket: str) -> Path:
    return Path(socket).with_suffix(".transport")
