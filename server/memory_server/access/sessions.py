"""Sessions of the protocol eras up to 2025-11-25, which any server process of one Redis can serve.

A session id carries what `initialize` agreed on, when it expires, and a code over both, the namespace and the agent. It
grants nothing: the credential of each request names the caller. Redis holds only which sessions a client ended, and
which resources one follows, for each agent a limited number.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mcp_types as types
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, LATEST_HANDSHAKE_VERSION
from pydantic import ValidationError
from redis.exceptions import ResponseError

from memory_core.crypto.integrity import Integrity
from memory_core.crypto.keyring import Keyring, Secret
from memory_core.errors import MemoryServiceError, StoreRefused
from memory_core.records import keys
from memory_core.records.authority_codes import Authority
from memory_core.records.damage import is_wrong_type
from memory_core.redis_client import Client
from memory_server.access.identity import SessionOwner

if TYPE_CHECKING:
    from memory_server.engine.redis_backend import Backend

log = logging.getLogger(__name__)
LIFE_SECONDS = 30 * 86_400
KEPT_ENDED, KEPT_FOLLOWED = 1000, 1024
"""How many ended sessions, and followed resources of all its sessions, are kept of one agent."""
_MOST_ID, _MOST_NAME, _MOST_URI = 2048, 64, 256
_KEY_BYTES = 32
_PATIENCE_SECONDS = 5.0
"""How long `initialize` waits for Redis. Later the id is valid at this process only."""
_CAPABILITIES = {"elicitation": ("form", "url"), "sampling": ("context", "tools"), "roots": ("listChanged",)}
"""What a server may ask of its client. Session ids carry these capabilities; nothing here uses others."""


@dataclass(frozen=True, slots=True)
class ClientSession:
    """What a valid session id says."""

    id: str
    owner: SessionOwner
    version: str
    expires: int
    nonce: str
    client_name: str
    client_version: str
    capabilities: tuple[str, ...]

    @property
    def holder(self) -> str:
        """The part of key names that stands for the owner, whose names may not be valid."""
        return keys.digest(json.dumps([self.owner.namespace, self.owner.agent]))

    @property
    def has_expired(self) -> bool:
        return self.expires <= time.time()

    def initialize(self) -> dict[str, Any]:
        """Return the parameters of the `initialize` that opened the session."""
        return {
            "protocolVersion": self.version,
            "capabilities": _nested(self.capabilities),
            "clientInfo": {"name": self.client_name, "version": self.client_version},
        }


class Sessions:
    """Makes and checks session ids, and keeps what must outlive a process in Redis."""

    def __init__(self, backend: Callable[[], Awaitable[Backend]]) -> None:
        self._backend = backend
        self._own = _signing(Secret(secrets.token_bytes(_KEY_BYTES)))
        self._shared: Integrity | None = None

    async def open(self, owner: SessionOwner, params: Mapping[str, Any]) -> str | None:
        """Return the id of a new session; None if the parameters of `initialize` are not valid."""
        try:
            asked = types.InitializeRequestParams.model_validate(params, by_name=False)
        except ValidationError:
            return None
        version = asked.protocol_version
        fields = [
            version if version in HANDSHAKE_PROTOCOL_VERSIONS else LATEST_HANDSHAKE_VERSION,
            int(time.time()) + LIFE_SECONDS,
            secrets.token_urlsafe(12),
            asked.client_info.name[:_MOST_NAME],
            asked.client_info.version[:_MOST_NAME],
            *_flat(asked.capabilities.model_dump(mode="json", by_alias=True, exclude_none=True)),
        ]
        payload = base64.urlsafe_b64encode(json.dumps(fields, separators=(",", ":")).encode()).decode().rstrip("=")
        integrity = await self._signer() or self._own
        return f"{payload}.{_sign(integrity, owner, payload)}"

    async def find(self, owner: SessionOwner, session_id: str) -> ClientSession | None:
        """Return the session of an id; None if it is forged, expired, ended or of another agent or namespace."""
        session = await self._check(owner, session_id) if len(session_id) <= _MOST_ID else None
        return None if session is None or session.has_expired or await self._has_ended(session) else session

    async def end(self, session: ClientSession) -> None:
        """Record for all servers that a session has ended. Raises StoreUnavailable."""
        ended, followed = keys.ended_sessions(session.holder), keys.followed_resources(session.holder)

        async def record(client: Client) -> None:
            members = await client.zrange(followed, 0, -1)
            pipe = client.pipeline(transaction=False)
            pipe.zadd(ended, {session.nonce: session.expires})
            pipe.zremrangebyscore(ended, "-inf", time.time())
            pipe.zremrangebyrank(ended, 0, -KEPT_ENDED - 1)
            pipe.expire(ended, LIFE_SECONDS)
            if own := [member for member in members if member.decode().startswith(f"{session.nonce} ")]:
                pipe.zrem(followed, *own)
            await pipe.execute()

        await self._run(ended, lambda client: client.zcard(ended))
        await self._run(followed, record)

    async def follow(self, session: ClientSession, uri: str) -> None:
        """Record that a session follows a resource. Raises StoreUnavailable."""
        if len(uri) > _MOST_URI:
            return  # no resource has such a URI
        key = keys.followed_resources(session.holder)

        async def record(client: Client) -> None:
            pipe = client.pipeline(transaction=False)
            pipe.zadd(key, {f"{session.nonce} {uri}": time.time()})
            pipe.zremrangebyrank(key, 0, -KEPT_FOLLOWED - 1)
            pipe.expire(key, LIFE_SECONDS)
            await pipe.execute()

        await self._run(key, record)

    async def unfollow(self, session: ClientSession, uri: str) -> None:
        """Record that a session no longer follows a resource. Raises StoreUnavailable."""
        key = keys.followed_resources(session.holder)
        await self._run(key, lambda client: client.zrem(key, f"{session.nonce} {uri}"))

    async def followed(self, session: ClientSession) -> set[str]:
        """Return the URIs of the resources that a session follows. Raises StoreUnavailable."""
        key, prefix = keys.followed_resources(session.holder), f"{session.nonce} "
        members = await self._run(key, lambda client: client.zrange(key, 0, -1))
        texts = [member.decode(errors="replace") for member in members]
        return {text.removeprefix(prefix) for text in texts if text.startswith(prefix)}

    async def _check(self, owner: SessionOwner, session_id: str) -> ClientSession | None:
        payload, _, code = session_id.partition(".")
        if not code or not await self._is_signed(owner, payload, code):
            return None
        try:
            fields: Any = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        except (ValueError, binascii.Error):
            return None
        version, expires, nonce, name, client_version, *capabilities = fields
        return ClientSession(
            session_id, owner, version, expires, nonce, name, client_version, tuple(map(str, capabilities))
        )

    async def _is_signed(self, owner: SessionOwner, payload: str, code: str) -> bool:
        if _is_valid(self._own, owner, payload, code):
            return True
        if self._shared is not None and _is_valid(self._shared, owner, payload, code):
            return True
        integrity = await self._signer()
        return integrity is not None and _is_valid(integrity, owner, payload, code)

    async def _signer(self) -> Integrity | None:
        """Return what all servers of this Redis sign with: the signing key, or else a key that Redis holds."""
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                backend = await self._backend()
                await backend.client()
                if backend.integrity.signs:
                    self._shared = backend.integrity
                else:
                    self._shared = _signing(Secret(await backend.read(_key_in_redis)))
        except (MemoryServiceError, ResponseError, TimeoutError):
            log.warning("Redis does not answer: sessions that open now end with this process")
            return None
        return self._shared

    async def _has_ended(self, session: ClientSession) -> bool:
        """Whether a client ended the session at any server. While Redis is down, no call is answered anyway."""
        key = keys.ended_sessions(session.holder)
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                return await self._run(key, lambda client: client.zscore(key, session.nonce)) is not None
        except (MemoryServiceError, TimeoutError):
            return False

    async def _run(self, key: str, command: Callable[[Client], Awaitable[Any]]) -> Any:
        """Run a command that may be repeated; a key of another type is removed first. Raises StoreUnavailable."""
        backend = await self._backend()
        try:
            return await backend.read(command)
        except StoreRefused as error:
            if not isinstance(error.__cause__, ResponseError) or not is_wrong_type(error.__cause__):
                raise
        await backend.read(lambda client: client.unlink(key))
        return await backend.read(command)


def _signing(secret: Secret) -> Integrity:
    return Integrity(Keyring(own=secret))


def _sign(integrity: Integrity, owner: SessionOwner, payload: str) -> str:
    return integrity.sign_authority(Authority.SESSION, owner.namespace, payload, owner.agent)


def _is_valid(integrity: Integrity, owner: SessionOwner, payload: str, code: str) -> bool:
    return integrity.inspect_authority(Authority.SESSION, owner.namespace, payload, code, owner.agent) is None


async def _key_in_redis(client: Client) -> bytes:
    """Return the key of a Redis whose servers have no signing key; the first server makes it."""
    key = await client.get(keys.SESSION_KEY)
    if key is None or len(key) != _KEY_BYTES:
        made = secrets.token_bytes(_KEY_BYTES)
        await client.set(keys.SESSION_KEY, made, nx=key is None)
        key = await client.get(keys.SESSION_KEY)
    return key


def _flat(capabilities: Mapping[str, Any]) -> list[str]:
    """Return capabilities as `elicitation`, `elicitation.form`, …"""
    found: list[str] = []
    for name, parts in _CAPABILITIES.items():
        if name in capabilities:
            found += [name, *[f"{name}.{part}" for part in parts if capabilities[name].get(part) not in (None, False)]]
    return found


def _nested(capabilities: tuple[str, ...]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for text in capabilities:
        name, _, part = text.partition(".")
        known: dict[str, Any] = nested.setdefault(name, {})
        if part:
            known[part] = True if part == "listChanged" else {}
    return nested
