"""The public keys of an OAuth server: fetched with limits, renewed in the background, forgotten when too old."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from memory_core.errors import InvalidArgument, IssuerUnavailable

log = logging.getLogger(__name__)
FETCH_SECONDS = 5.0
MAX_BYTES = 256 * 1024
FRESH_SECONDS = 300.0
"""Older keys are renewed in the background, while they are used."""
MAX_AGE_SECONDS = 3600.0
"""Older keys are not used: an issuer withdraws a key by no longer publishing it."""
COOL_SECONDS = 5.0
_MIN_RSA_BITS, _MAX_RSA_BITS = 2048, 8192
_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVES = {"P-256": ("ES256",), "P-384": ("ES384",), "P-521": ("ES512",), "Ed25519": ("EdDSA",), "Ed448": ("EdDSA",)}
"""No symmetric algorithm: a public key must not be usable as a shared secret."""


@dataclass(frozen=True, slots=True)
class IssuerKey:
    """A public key and the algorithms that it may be used with."""

    key_id: str | None
    public: Any
    algorithms: tuple[str, ...]


class IssuerKeys:
    """The keys of one issuer. Only a token that names an unknown key waits for a renewal."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._keys: list[IssuerKey] = []
        self._loaded_at = self._tried_at = float("-inf")
        self._renewal: asyncio.Task[None] | None = None

    async def find(self, key_id: Any) -> IssuerKey | None:
        """Return the key with this id; without an id, the only key.

        Raises:
            IssuerUnavailable: the keys could not be read for an hour.
        """
        if (found := self._among(key_id)) is None or self._is_older_than(MAX_AGE_SECONDS):
            await self._renew()
            found = self._among(key_id)
        elif self._is_older_than(FRESH_SECONDS):
            self._start_renewal()
        if self._is_older_than(MAX_AGE_SECONDS):
            raise IssuerUnavailable("the token issuer's keys cannot be read", retry_after=COOL_SECONDS)
        return found

    def _among(self, key_id: Any) -> IssuerKey | None:
        if key_id is None:
            return self._keys[0] if len(self._keys) == 1 else None
        return next((key for key in self._keys if key.key_id == key_id), None)

    def _is_older_than(self, seconds: float) -> bool:
        return time.monotonic() - self._loaded_at > seconds

    async def _renew(self) -> None:
        self._start_renewal()
        if self._renewal:
            await asyncio.shield(self._renewal)

    def _start_renewal(self) -> None:
        """Load the keys once for all callers, at most every few seconds."""
        is_running = self._renewal is not None and not self._renewal.done()
        if not is_running and time.monotonic() - self._tried_at >= COOL_SECONDS:
            self._renewal = asyncio.create_task(self._load())

    async def _load(self) -> None:
        try:
            self._keys = await asyncio.to_thread(_parse, await _read(self._source))
            self._loaded_at = time.monotonic()
        except Exception as error:  # whatever an issuer sends: the present keys stay in use until they are too old
            log.warning("the token issuer's keys cannot be read: %s", type(error).__name__)
        finally:
            self._tried_at = time.monotonic()


async def _read(source: str) -> bytes:
    """Read the key set from a URL or a file, within the limits of bytes and seconds."""
    async with asyncio.timeout(FETCH_SECONDS):
        if not source.startswith(("https://", "http://")):
            return _bounded(await asyncio.to_thread(_read_file, source))
        body = b""
        async with httpx2.AsyncClient(timeout=FETCH_SECONDS) as http, http.stream("GET", source) as answer:
            answer.raise_for_status()
            async for part in answer.aiter_bytes():
                body = _bounded(body + part)
        return body


def _read_file(path: str) -> bytes:
    with Path(path).open("rb") as file:
        return file.read(MAX_BYTES + 1)


def _bounded(body: bytes) -> bytes:
    if len(body) > MAX_BYTES:
        raise InvalidArgument(f"the key set is longer than {MAX_BYTES} bytes")
    return body


def _parse(body: bytes) -> list[IssuerKey]:
    return [found for key in json.loads(body)["keys"] if (found := _usable(key))]


def _usable(key: dict[str, Any]) -> IssuerKey | None:
    """Return a key for signatures that is strong enough, bound to the algorithms that it is published for."""
    from jwt import PyJWK, PyJWTError

    if key.get("use", "sig") != "sig":
        return None
    try:
        public = PyJWK(key).key
    except PyJWTError:
        public = None
    strong = key.get("kty") != "RSA" or _MIN_RSA_BITS <= getattr(public, "key_size", 0) <= _MAX_RSA_BITS
    allowed = _RSA if key.get("kty") == "RSA" else _CURVES.get(str(key.get("crv")), ())
    algorithms = tuple(each for each in allowed if key.get("alg", each) == each)
    if public is None or not strong or not algorithms:
        log.warning("a key of the token issuer is not used: %s %s", key.get("kty"), key.get("alg"))
        return None
    return IssuerKey(key.get("kid"), public, algorithms)
