"""Secrets that never reach Redis: master keys, transport keys, and the embedded default's own signing key.

They encrypt nothing directly: each use derives its own key by HKDF-SHA-256 (RFC 5869).
"""

from __future__ import annotations

import base64
import binascii
import logging
import re
import secrets
import shlex
import stat
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from memory_core.crypto.secret_files import cannot_read, read_private, secret_of
from memory_core.errors import KeyMissing, UnsafeStart

if TYPE_CHECKING:  # the supervisor starts without pydantic
    from memory_core.settings.settings import Settings

log = logging.getLogger(__name__)
KEY_BYTES = 32
COMMAND_SECONDS = 30.0
HOW_TO_SET = (
    "set MEMORY_MASTER_KEY, MEMORY_MASTER_KEY_FILE or _COMMAND; `redis-memory keys new` makes one if you have none"
)


@dataclass(frozen=True, slots=True)
class Secret:
    """32 random bytes. `id` identifies them in records without revealing them."""

    value: bytes = field(repr=False)

    @property
    def id(self) -> str:
        """Sixteen hex digits."""
        return self.derive("id").hex()[:16]

    @property
    def encoded(self) -> str:
        """Base64, as in the settings."""
        return base64.b64encode(self.value).decode()

    def derive(self, purpose: str) -> bytes:
        """Derive the 32-byte key of one purpose. It reveals neither the secret nor other keys."""
        return HKDF(SHA256(), KEY_BYTES, salt=None, info=f"redis-memory/{purpose}".encode()).derive(self.value)


class Keyring:
    """The secrets of a process. The first master key is current; the others only open old data."""

    def __init__(
        self, masters: Iterable[Secret] = (), own: Secret | None = None, transports: Iterable[Secret] = ()
    ) -> None:
        self.masters = tuple(masters)
        self._given = tuple(transports)
        self.transports = (*self._given, *(Secret(master.derive("transport")) for master in self.masters))
        """The first encrypts messages between servers and sidecars; all of them decrypt."""
        self._all = {secret.id: secret for secret in (*self.masters, *([own] if own else []))}

    def with_own(self, own_key: Path) -> Keyring:
        """Add the embedded default's own key, if its file exists."""
        own = next(iter(_secrets(read_private(own_key), str(own_key))), None) if own_key.exists() else None
        return Keyring(self.masters, own, self._given)

    @property
    def master(self) -> Secret:
        """The current master key. Raises KeyMissing if there is none."""
        if not self.masters:
            raise KeyMissing("this server has no master key", hint=HOW_TO_SET)
        return self.masters[0]

    @property
    def signer(self) -> Secret | None:
        """The secret for integrity codes: the master key, or else the embedded default's own; None without both."""
        return next(iter(self._all.values()), None)

    def secret(self, secret_id: str) -> Secret:
        """Find a secret by its id. Raises KeyMissing if this process does not have it."""
        if secret_id not in self._all:
            raise KeyMissing(
                "this was written under a key that this server does not have", hint="add it as an older key"
            )
        return self._all[secret_id]


def load_keyring(settings: Settings, own_key: Path | None = None) -> Keyring:
    """Read the keys of the settings and the embedded default's own key. Raises UnsafeStart for an invalid key."""
    transport = secret_of(settings.transport_key, settings.transport_key_file, "transport_key")
    transports = [] if transport is None else _secrets(transport, "transport_key")
    keyring = Keyring(_masters(settings), transports=transports)
    return keyring.with_own(own_key) if own_key else keyring


def new_key() -> str:
    """Make a random key in base64."""
    return Secret(secrets.token_bytes(KEY_BYTES)).encoded


def _masters(settings: Settings) -> list[Secret]:
    sources = [settings.master_key, settings.master_key_file, settings.master_key_command]
    if sum(source is not None for source in sources) > 1:
        raise UnsafeStart("several of master_key, master_key_file and master_key_command are set", hint="keep one")
    if settings.master_key is not None:
        return _secrets(settings.master_key.get_secret_value(), "master_key")
    if settings.master_key_file is not None:
        return _secrets(_of_file(settings.master_key_file), "master_key_file")
    if settings.master_key_command is not None:
        return _secrets(_of_command(settings.master_key_command), "master_key_command")
    return []


def _secrets(text: str, source: str) -> list[Secret]:
    found = [_secret(part, source) for part in re.split(r"[\s,]+", text.strip()) if part]
    if not found:
        raise UnsafeStart(f"{source} holds no key", hint=HOW_TO_SET)
    return found


def _secret(text: str, source: str) -> Secret:
    try:
        value = bytes.fromhex(text) if len(text) == 2 * KEY_BYTES else base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        value = b""
    if len(value) != KEY_BYTES:
        raise UnsafeStart(f"{source} is not a key: {KEY_BYTES} bytes in base64 or hex", hint=HOW_TO_SET)
    if len(set(value)) < 8:
        raise UnsafeStart(f"{source} is not a random key", hint=HOW_TO_SET)
    return Secret(value)


def _of_file(path: Path) -> str:
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o007:
            log.warning("other users of this machine can read the master key; chmod 600 its file")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise cannot_read("master_key_file", error) from None


def _of_command(command: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603
            shlex.split(command), capture_output=True, timeout=COMMAND_SECONDS, check=True, stdin=subprocess.DEVNULL
        )
        return done.stdout.decode()
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise UnsafeStart(f"master_key_command failed: {type(error).__name__}", hint="run it by hand") from None


def framed(parts: Iterable[bytes]) -> bytes:
    """Join byte strings unambiguously: each after its length. Used for all that is signed or authenticated."""
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)
