"""redis/users.acl with passwords, so that the tests run under the shipped users."""

from __future__ import annotations

import hashlib

from memory_core.package_data import resource
from memory_core.redis_client import Client

SERVER, SIDECAR, MIGRATE, VIEW = "rm-server", "rm-sidecar", "rm-migrate", "rm-view"
PASSWORDS = {name: f"password-of-{name}" for name in (SERVER, SIDECAR, MIGRATE, VIEW)}
ALMIGHTY = "user default on nopass ~* &* +@all"
TOLERATED = {"config|get"}
"""Commands that the server tries but does not need; see docs/decisions/0011."""


def acl_text(default: str | None = None) -> str:
    """Return the ACL file with passwords; `default` replaces the line of the default user."""
    text = resource("redis/users.acl").read_text()
    for name, password in PASSWORDS.items():
        text = text.replace(f"REPLACE_{name[3:].upper()}_SHA256", hashlib.sha256(password.encode()).hexdigest())
    lines = text.splitlines()
    if default:
        lines = [default if line.startswith("user default ") else line for line in lines]
    return "\n".join(lines) + "\n"


async def denials(client: Client) -> set[tuple[str, str, str]]:
    """Return the ACL denials since the last reset of the log, without the tolerated ones."""
    entries = [{_text(name): _text(value) for name, value in entry.items()} for entry in await client.acl_log()]
    found = {(entry["username"], entry["reason"], entry["object"]) for entry in entries}
    return {denial for denial in found if denial[2] not in TOLERATED}


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
