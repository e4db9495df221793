"""Checks OAuth 2.1 access tokens: JWTs signed with the authorization server's published keys.

The first token loads PyJWT and the keys, to keep the start fast.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memory_core.errors import IssuerUnavailable
from memory_core.records.access import Access, Scope, known_scopes
from memory_core.records.names import check_name
from memory_core.settings.auth import AuthSettings

if TYPE_CHECKING:
    from jwt import PyJWK

log = logging.getLogger(__name__)
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""No symmetric ones: a public key must not be usable as a shared secret."""
LONGEST_TOKEN = 16_384
_FRESH_SECONDS = 300.0
_COOL_SECONDS = 5.0
_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_FETCH_SECONDS = 5


class OAuthVerifier:
    """Checks the tokens of one issuer for one audience."""

    def __init__(self, settings: AuthSettings, namespace: str) -> None:
        assert settings.jwks
        self._settings = settings
        self._namespace = namespace
        self._keys = _Keys(settings.jwks)

    async def verify(self, token: str) -> Access | None:
        """Return what a token grants, None if it is invalid; raises IssuerUnavailable without the issuer's keys."""
        import jwt

        if len(token) > LONGEST_TOKEN:
            return None
        try:
            header = jwt.get_unverified_header(token)
            if header.get("alg") not in ALGORITHMS:
                return None
            if (key := await self._keys.find(header.get("kid"))) is None:
                return None
            claims = jwt.decode(
                token,
                key.key,
                algorithms=ALGORITHMS,
                issuer=self._settings.issuer,
                audience=self._settings.audience,
                leeway=self._settings.leeway_seconds,
                options={"require": ["exp", "iss", "aud"]},
            )
            return self._access(claims)
        except IssuerUnavailable:
            raise
        except Exception as error:  # a hostile token, or an unsuitable key, can raise anything
            log.info("a token was refused: %s", type(error).__name__)
            return None

    def _access(self, claims: dict[str, Any]) -> Access | None:
        agent, namespace = claims.get(self._settings.agent_claim), claims.get(self._settings.namespace_claim)
        scopes = _scopes(claims)
        if not isinstance(agent, str) or not isinstance(namespace, str | None) or not scopes:
            return None
        namespace = self._namespace if namespace is None else check_name(namespace, "namespace")
        jti = claims.get("jti")
        token_id = jti if isinstance(jti, str) and _ID.fullmatch(jti) else ""
        return Access(check_name(agent, "agent"), namespace, scopes, float(claims["exp"]), token_id)


def _scopes(claims: dict[str, Any]) -> frozenset[Scope]:
    """Read `scope` (RFC 9068) or `scp`: a list, or words separated by spaces."""
    given: Any = claims.get("scope", claims.get("scp", ""))
    names = given.split() if isinstance(given, str) else given if isinstance(given, list) else []
    return known_scopes(name for name in names if isinstance(name, str))


class _Keys:
    """The issuer's keys. Fetched again when they are old or when a token names an unknown one."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._keys: list[PyJWK] = []
        self._loaded_at = self._tried_at = float("-inf")
        self._loading = asyncio.Lock()

    async def find(self, kid: Any) -> PyJWK | None:
        """Return the key with this id; without an id, the only key."""
        found = self._among(kid)
        if found is None or time.monotonic() - self._loaded_at > _FRESH_SECONDS:
            await self._renew()
            found = self._among(kid)
        if not self._keys:
            raise IssuerUnavailable("the token issuer's keys cannot be read", retry_after=_COOL_SECONDS)
        return found

    def _among(self, kid: Any) -> PyJWK | None:
        if kid is None:
            return self._keys[0] if len(self._keys) == 1 else None
        return next((key for key in self._keys if key.key_id == kid), None)

    async def _renew(self) -> None:
        """Load the keys once for all waiting callers, at most every few seconds."""
        async with self._loading:
            if time.monotonic() - self._tried_at < _COOL_SECONDS:
                return
            try:
                self._keys = await asyncio.to_thread(_load_keys, self._source)
                self._loaded_at = time.monotonic()
            except Exception as error:
                log.warning("the token issuer's keys cannot be read: %s", type(error).__name__)
            self._tried_at = time.monotonic()


def _load_keys(source: str) -> list[PyJWK]:
    from jwt import PyJWKClient, PyJWKSet

    if source.startswith(("https://", "http://")):
        return PyJWKClient(source, cache_jwk_set=False, timeout=_FETCH_SECONDS).get_signing_keys(refresh=True)
    keys = PyJWKSet.from_json(Path(source).read_text(encoding="utf-8")).keys
    return [key for key in keys if key.public_key_use in ("sig", None)]
